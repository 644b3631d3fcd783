"""Searches cache budgets: the command line of `budgets.search`."""

from selective_t5x.budgets import search
from selective_t5x.cli import exits

if __name__ == '__main__':
  exits.run_main(search.main)
