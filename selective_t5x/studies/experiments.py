"""The comparisons that decide the claims.

This module is only data; selective_t5x.studies.reproduction runs it.
"""

import dataclasses

from selective_t5x.comparisons.plan import Variant
from selective_t5x.studies import pruning, t5_span_corruption


@dataclasses.dataclass(frozen=True)
class Experiment:
  """A comparison that decides claims; it has one result folder.

  Attributes:
    gin_files: gin files that its variants share.
    variants: the first is the reference of its tables.
    gin_bindings: 'KEY = VALUE' texts.
  """

  gin_files: tuple[str, ...]
  variants: tuple[Variant, ...]
  gin_bindings: tuple[str, ...] = ()


def _attention(*files: str) -> tuple[str, ...]:
  return tuple(f'gin/attention/{name}.gin' for name in files)


BASELINE = Variant('baseline', _attention('baseline'))
SELECTIVE = Variant('selective', _attention('selective'))
TWICE = Variant('twice_the_heads', _attention('twice_the_heads'))
# Further variants of language modelling, beside those of `pruning`.
_OTHERS = (
  TWICE,
  Variant('selective_head_1', SELECTIVE.gin_files, ('SELECTION_HEAD = 1',)),
  *(
    Variant(name, _attention(name))
    for name in (
      'selective_mean',
      'selective_per_head',
      'selective_bilinear',
      'selective_no_relu',
      'selective_masks_bos',
      'selective_masks_self',
    )
  ),
  # Half of the context of 256, and its square root.
  Variant('window', _attention('window'), ('WINDOW = 128',)),
  Variant('strided', _attention('strided'), ('STRIDE = 16',)),
  *(
    Variant(name, _attention(name))
    for name in (
      'ssa',
      'forgetting',
      'stick_breaking',
      'stick_breaking_value',
      'stick_breaking_bias',
    )
  ),
)
# These variants need an even number of heads.
_OF_EVEN_HEADS = (
  BASELINE,
  SELECTIVE,
  Variant('selective_two_masks', _attention('selective_two_masks')),
  Variant(
    'selective_two_own_masks',
    _attention('selective_bilinear'),
    ('SELECTION_GROUPS = 2',),
  ),
  Variant('differential', _attention('differential')),
  Variant('differential_v2', _attention('differential_v2')),
)
# Four heads of size 32 in place of two of 64, so that a group of heads has more
# than one head.
_EVEN_HEADS = (
  'EMB_DIM = 128',
  'NUM_HEADS = 4',
  'HEAD_DIM = 32',
  'NUM_LAYERS = 2',
  'MLP_DIM = 384',
)
_250_STEPS = (
  'TRAIN_STEPS = 250',
  'EVAL_PERIOD = 125',
  'CHECKPOINT_PERIOD = 125',
)


def synthetic_file(name: str) -> str:
  """Returns the gin file of a generated task."""
  return f'gin/experiments/{name}.gin'


def _synthetic(name: str, gin_bindings: tuple[str, ...] = ()) -> Experiment:
  return Experiment(
    (synthetic_file(name),), (BASELINE, SELECTIVE), gin_bindings
  )


_LANGUAGE_MODELS = (*pruning.VARIANTS, *_OTHERS)
EXPERIMENTS = {
  'variable_assignment': _synthetic('variable_assignment'),
  'copy': _synthetic('copy'),
  'parity': _synthetic('parity'),
  # One in three selective models is below 0.99 after the file's 1,500 steps.
  'parity_3000_steps': _synthetic('parity', ('TRAIN_STEPS = 3000',)),
  'parity_interleaved': _synthetic('parity_interleaved'),
  # This includes the models of the pruning study, which searches use.
  'language_modelling': Experiment(pruning.GIN_FILES, _LANGUAGE_MODELS),
  'language_modelling_250_steps': Experiment(
    pruning.GIN_FILES, _LANGUAGE_MODELS, _250_STEPS
  ),
  'language_modelling_even_heads': Experiment(
    pruning.GIN_FILES, _OF_EVEN_HEADS, _EVEN_HEADS
  ),
  'language_modelling_even_heads_250_steps': Experiment(
    pruning.GIN_FILES, _OF_EVEN_HEADS, (*_EVEN_HEADS, *_250_STEPS)
  ),
  't5_span_corruption': Experiment(
    t5_span_corruption.GIN_FILES, t5_span_corruption.VARIANTS
  ),
}
# Two experiments train no comparison: the searches of budgets for the language
# models of PRUNED, and a small fit.
PRUNING = 'pruning'
PRUNED = 'language_modelling'
TOKEN_TRANSITION = 'token_transition'
