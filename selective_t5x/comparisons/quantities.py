"""Checks that the metrics of several runs are the same quantities."""

from collections.abc import Mapping, Sequence
from typing import Any

from selective_t5x.comparisons.plan import Cell
from selective_t5x.errors import UserError
from selective_t5x.runs import losses
from selective_t5x.runs.files import SUMMARY_FILE, read_json
from selective_t5x.runs.losses import LOSS
from selective_t5x.runs.summary import read_summary

Summaries = Mapping[str, Mapping[str, Any]]


def loss_metric(summaries: Summaries) -> str:
  """Returns the loss metric to compare.

  This is losses.LOSS. If no run gives it and all have the same objective, it is
  T5X's 'loss', the objective itself.

  Args:
    summaries: {name of a run: result of `summarize`}.

  Raises:
    UserError: the losses are not the same quantity.
  """
  definitions = {k: s['loss_definition'] for k, s in summaries.items()}
  if set(definitions.values()) == {None}:
    _refuse_several(
      {k: s['loss_setting'] for k, s in summaries.items()},
      'what the runs minimise',
    )
    return 'loss'
  _refuse_several(
    {k: d or 'an unknown quantity' for k, d in definitions.items()},
    LOSS,
  )
  return LOSS


def same_accuracy(summaries: Summaries) -> bool:
  """Whether the accuracies of runs are the same quantity."""
  return len({s['accuracy_definition'] for s in summaries.values()}) == 1


def check_resumable(cells: Sequence[Cell]) -> None:
  """Refuses to train cells whose loss would differ from that of finished ones.

  Raises:
    UserError: an earlier version, which measured another loss, has trained some
      cells, and others are still to train.
  """
  finished = [cell for cell in cells if cell.finished]
  if len(finished) == len(cells):
    return
  for cell in finished:
    path = cell.folder / SUMMARY_FILE
    if 'loss_definition' in read_json(path):
      continue
    definition = read_summary(cell.folder)['loss_definition']
    if definition != losses.TOKENS:
      raise UserError(
        f'{cell.folder}: was trained by an earlier version, whose loss is '
        f'{definition or "an unknown quantity"}; this version measures '
        f'{losses.TOKENS}: give another --output_dir'
      )


def _refuse_several(values: Mapping[str, str], what: str) -> None:
  """Raises UserError if runs have different values."""
  examples: dict[str, str] = {}
  for name, value in values.items():
    examples.setdefault(value, name)
  if len(examples) > 1:
    listing = '; '.join(f'{name}: {value}' for value, name in examples.items())
    raise UserError(
      f'{what} is not the same quantity in all runs, so that their losses '
      f'cannot be compared: {listing}. Compare runs of one kind, or train the '
      'others again in another --output_dir'
    )
