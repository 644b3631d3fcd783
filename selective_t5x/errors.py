"""Errors that a user can mend, and the nearest valid names for them."""

import difflib
from collections.abc import Iterable


class UserError(ValueError):
  """Something the user gave is wrong; the message is one clear line.

  The command line prints the message without a traceback and exits with 2.
  """


def did_you_mean(name: str, known: Iterable[str], count: int = 3) -> str:
  """Returns '; nearest: a, b' for the known names closest to name, or ''."""
  known = sorted(set(known))
  near = difflib.get_close_matches(name, known, n=count, cutoff=0.5)
  if not near:
    lowered = {k.lower(): k for k in known}
    near = [
      lowered[k]
      for k in difflib.get_close_matches(
        name.lower(), lowered, n=count, cutoff=0.5
      )
    ]
  return f'; nearest: {", ".join(near)}' if near else ''
