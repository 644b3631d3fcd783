"""Draws loss against cache memory: the command line of `budgets.frontier`."""

from selective_t5x.budgets import frontier
from selective_t5x.cli import exits

if __name__ == '__main__':
  exits.run_main(frontier.main)
