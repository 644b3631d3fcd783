"""Draws loss against cache memory: the command line of `budgets.frontier`."""

from selective_t5x import compare
from selective_t5x.budgets import frontier

if __name__ == '__main__':
  compare.run_command(frontier.main)
