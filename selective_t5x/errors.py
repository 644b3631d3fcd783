"""Errors that a user can correct, and checks of what users write."""

import difflib
import numbers
import os
from collections.abc import Iterable, Mapping


class UserError(ValueError):
  """An input of the user is wrong; the message is one clear line.

  The command line prints the message without a traceback and exits with 2.
  """


class RunError(RuntimeError):
  """A run cannot continue for an external reason; the message is one line.

  The command line prints the message without a traceback and exits with 1.
  """


class Interrupted(Exception):
  """A run was asked to stop and has saved its state, so it can resume.

  The command line prints the message and exits with INTERRUPTED.
  """


# EX_TEMPFAIL of sysexits.h: nothing is wrong, try again.
INTERRUPTED = 75


def is_integer(value: object) -> bool:
  """Returns whether a setting is an integer; a boolean is not."""
  return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def is_number(value: object) -> bool:
  """Returns whether a setting is a real number; a boolean is not."""
  return isinstance(value, numbers.Real) and not isinstance(value, bool)


def is_remote(path: object) -> bool:
  """Returns whether a path is a URL, such as gs://bucket/run."""
  return '://' in str(path)


def absolute_path(path: str) -> str:
  """Returns a local path as an absolute one, and a URL as it is."""
  return path if is_remote(path) else os.path.abspath(path)


def changes(
  there: Mapping[str, object], here: Mapping[str, object], count: int = 3
) -> str:
  """Returns 'KEY is A there, B here; …' for all differences, '' for none."""
  changed = [k for k in {**there, **here} if there.get(k) != here.get(k)]
  shown = [
    f'{k} is {there.get(k)} there, {here.get(k)} here' for k in changed[:count]
  ]
  if len(changed) > count:
    shown.append(f'{len(changed) - count} more differ')
  return '; '.join(shown)


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
