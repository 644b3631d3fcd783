"""The needle grid: needle retrieval by length of the text and depth in it.

The examples are those of needle_retrieval, at its difficulty, with a part of
its filler and the queried needle at a given depth:

  needle_l<L>: L percent of the filler, the queried needle anywhere; 25, 50, 75
    and 100. Splits train, validation, test.
  needle_l<L>_d<D>: the same with the queried needle at D percent of the filler;
    0, 25, 50, 75 and 100. Splits validation, test.

  needle_lengths: the mixture of the former, for training: a model with learned
    positions has to see every length.
  needle_grid: the mixture of the latter, which an evaluation reports one by
    one: the grid.

TASK_FEATURE_LENGTHS are those of needle_retrieval, the longest.
"""

import functools

import seqio

from selective_t5x.tasks import needle_retrieval, synthetic

LENGTHS = (25, 50, 75, 100)
DEPTHS = (0, 25, 50, 75, 100)
# Streams of random numbers that no task of the same example function has.
_FIRST_STREAM = 100


def _register():
  """Adds the tasks and both mixtures."""
  stream = _FIRST_STREAM
  lengths, grid = [], []
  for length in LENGTHS:
    for depth in (None, *DEPTHS):
      name = f'needle_l{length}' + ('' if depth is None else f'_d{depth}')
      (lengths if depth is None else grid).append(name)
      splits = ('train', 'validation', 'test')
      if depth is not None:
        splits = splits[1:]
      streams = {split: stream + i for i, split in enumerate(splits)}
      stream += len(splits)
      synthetic.register(
        name,
        needle_retrieval.Difficulty,
        functools.partial(needle_retrieval.example, length=length, depth=depth),
        streams=streams,
      )
  seqio.MixtureRegistry.add('needle_lengths', lengths, default_rate=1)
  seqio.MixtureRegistry.add('needle_grid', grid, default_rate=1)


_register()
