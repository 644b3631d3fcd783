"""Searches cache budgets: the command line of `budgets.search`."""

from selective_t5x import compare
from selective_t5x.budgets import search

if __name__ == '__main__':
  compare.run_command(search.main)
