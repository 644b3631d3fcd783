"""The claims of the papers and the rules of their verdicts.

This module is only data; selective_t5x.studies.reproduction runs it.
"""

import dataclasses

from selective_t5x.studies import pruning
from selective_t5x.studies.experiments import (
  PRUNING,
  TOKEN_TRANSITION,
  synthetic_file,
)
from selective_t5x.studies.rules import Rule
from selective_t5x.studies.verdicts import (
  NEGLIGIBLE,
  Lower,
  LowerWithTemperatures,
  MemoryFactor,
  OutOfReach,
  Same,
  Smaller,
  Solves,
)


@dataclasses.dataclass(frozen=True)
class Claim:
  """A claim of a paper, and the rule that decides whether it holds here.

  Attributes:
    statement: the claim in our words.
    source: the paper and the place in it.
    experiment: a name in experiments.EXPERIMENTS, PRUNING or TOKEN_TRANSITION;
      None: two cores cannot decide.
    rule: the rule of the verdict.
    paper_scale: the gin files of the paper's own experiment, as far as known.
    fast: the experiment with --fast; None: it has none.
    in_fast: whether --fast decides it by default.
  """

  statement: str
  source: str
  experiment: str | None
  rule: Rule
  paper_scale: str = ''
  fast: str | None = None
  in_fast: bool = False


_LM = 'wikipedia_sample_lm'
_LM_EXPERIMENT = 'language_modelling'
_LM_FAST = 'language_modelling_250_steps'
_PAPER = 'arXiv 2410.02703'
_REVIEWS = f'{_PAPER}, asked in its reviews'
_REPLY = f"{_PAPER}, the authors' reply in its reviews"
_LOG = 'github.com/andrew-healey/context-compression, log.md'
_SSA = 'arXiv 2411.12892'
_C4 = 'gin/experiments/c4_lm.gin'
_C4_PRUNING = 'gin/experiments/c4_pruning.gin'
_T5 = 'gin/experiments/t5_span_corruption_selective.gin'


def _lm(
  statement: str, source: str, rule: Rule, in_fast: bool = False
) -> Claim:
  return Claim(statement, source, _LM_EXPERIMENT, rule, _C4, _LM_FAST, in_fast)


def _even(
  statement: str, source: str, variant: str, than: str, file: str | None = None
) -> Claim:
  """Returns a claim of variants that need an even number of heads."""
  experiment = 'language_modelling_even_heads'
  return Claim(
    statement,
    source,
    experiment,
    Lower(_LM, variant, than),
    _c4(file or variant),
    f'{experiment}_250_steps',
  )


def _c4(variant: str) -> str:
  return f'{_C4} gin/attention/{variant}.gin'


CLAIMS = {
  'variable_assignment': Claim(
    'asked for the present value of a variable, a selective model answers '
    'right and a baseline does not',
    f'{_PAPER}, section 2',
    'variable_assignment',
    Solves('variable_assignment', ('selective',), ('baseline',)),
    synthetic_file('variable_assignment'),
    fast='variable_assignment',
    in_fast=True,
  ),
  'variable_assignment_ood': Claim(
    'the same out of distribution: what is asked for was assigned only at the '
    'very beginning',
    f'{_PAPER}, section 2',
    'variable_assignment',
    Solves('variable_assignment_ood', ('selective',), ('baseline',)),
    synthetic_file('variable_assignment'),
    fast='variable_assignment',
    in_fast=True,
  ),
  'copy': Claim(
    'where everything must be kept, selection does no harm: both copy',
    f'{_PAPER}, sections 1 and 2',
    'copy',
    Solves('copy', ('baseline', 'selective')),
    synthetic_file('copy'),
    fast='copy',
  ),
  'parity': Claim(
    'both learn parity with a scratchpad after all bits, which must be kept',
    f'{_PAPER}, appendix A2, in a format of ours',
    'parity_3000_steps',
    Solves('parity', ('baseline', 'selective')),
    synthetic_file('parity'),
    fast='parity',
  ),
  'parity_interleaved': Claim(
    'both learn parity where little must be kept: with the running parity '
    'after every bit, two tokens',
    f'{_PAPER}, appendix A2, whose format was not seen',
    'parity_interleaved',
    Solves('parity', ('baseline', 'selective')),
    synthetic_file('parity_interleaved'),
    fast='parity_interleaved',
  ),
  'language_modelling': _lm(
    'a selective language model has a lower loss than a baseline of its size',
    f'{_PAPER}, abstract',
    Lower(_LM, 'selective', 'baseline'),
    in_fast=True,
  ),
  'twice_the_heads': _lm(
    'it is as good as a baseline with twice the heads and attention parameters',
    f'{_PAPER}, abstract',
    Lower(_LM, 'selective', 'twice_the_heads', NEGLIGIBLE),
    in_fast=True,
  ),
  't5_span_corruption': Claim(
    'T5 with a selective decoder has a lower loss of span corruption',
    f'{_PAPER}, its T5 experiment',
    't5_span_corruption',
    Lower('wikipedia_sample_span_corruption', 'selective', 'baseline'),
    _T5,
  ),
  'memory_at_the_baseline_loss': Claim(
    "trained with the memory loss and pruned until its loss is the baseline's, "
    'the cache is 16 times smaller at context 512 (here 256), 25 at 1,024, 47 '
    'at 2,048',
    f'{_PAPER}, abstract',
    PRUNING,
    MemoryFactor('at_baseline_loss', 'selective_memory_loss', 16),
    _C4_PRUNING,
  ),
  'memory_without_loss_of_quality': Claim(
    'trained with the memory loss, the cache is about 10 times smaller at '
    'context 2,048 (here 256) without any loss of quality (here within 1 % of '
    'the own loss)',
    _REPLY,
    PRUNING,
    MemoryFactor('within_1_percent', 'selective_memory_loss', 10),
    _C4_PRUNING,
  ),
  'memory_of_rivals': Claim(
    "at the baseline's loss it is smaller than H2O, TOVA and a window make "
    "the baseline's own",
    _REVIEWS,
    PRUNING,
    Smaller('at_baseline_loss', 'selective', tuple(pruning.RIVALS)),
    _C4_PRUNING,
  ),
  'memory_loss': Claim(
    'the memory loss lets more be pruned, here within 1 % of the own loss',
    f'{_PAPER}, section 5',
    PRUNING,
    Smaller('within_1_percent', 'selective_memory_loss', ('selective',)),
    _C4_PRUNING,
  ),
  'memory_loss_is_free': _lm(
    'the memory loss does not make the unpruned loss worse',
    'ours: not seen in the paper',
    Lower(_LM, 'selective_memory_loss', 'selective', NEGLIGIBLE),
  ),
  'selection_head': _lm(
    'which head selects does not matter: before selection they are all alike',
    _REPLY,
    Same(_LM, 'selective_head_1', 'selective'),
  ),
  'selection_by_the_mean': _lm(
    'the mean of the heads selects as well as one of them',
    f'{_REVIEWS}; the authors had not tried it',
    Same(_LM, 'selective_mean', 'selective'),
  ),
  'selection_bilinear': _lm(
    'a head selects better than queries and keys made for it, a bilinear form',
    f'{_PAPER}, appendix A3',
    Lower(_LM, 'selective', 'selective_bilinear'),
  ),
  'selection_per_head': _lm(
    'one head selecting for all is better than each head for itself',
    _REPLY,
    Lower(_LM, 'selective', 'selective_per_head'),
  ),
  'two_masks': _even(
    'two heads selecting, each for half of the heads, are better than one',
    f'{_LOG}, where heads of their own select',
    'selective_two_masks',
    'selective',
  ),
  'two_own_masks': _even(
    'two bilinear forms selecting, each for half of the heads, are better than '
    'one head',
    _LOG,
    'selective_two_own_masks',
    'selective',
    'selective_bilinear',
  ),
  **{
    f'without_{name}': _lm(
      f'selection is better for its constraint: {what}',
      f'{_PAPER}, section 3; that it is better by little is of {_LOG}',
      Lower(_LM, 'selective', f'selective_{variant}'),
    )
    for name, variant, what in (
      ('relu', 'no_relu', 'negative logits mask nothing'),
      ('bos', 'masks_bos', 'the first token is never masked'),
      ('self', 'masks_self', 'no token masks itself'),
    )
  },
  **{
    f'against_{name}': _lm(
      f'a selective model is better than {what}',
      _REVIEWS,
      Lower(_LM, 'selective', name),
    )
    for name, what in (
      ('window', 'sliding-window attention'),
      ('strided', 'strided sparse attention'),
    )
  },
  **{
    f'{name}_language_modelling': dataclasses.replace(
      _lm(
        f'{what} has a lower loss than a baseline of its size',
        source,
        Lower(_LM, name, 'baseline'),
      ),
      paper_scale=_c4(name),
    )
    for name, what, source in (
      ('ssa', 'SSA', _SSA),
      ('forgetting', 'the Forgetting Transformer', 'arXiv 2503.02130'),
      (
        'stick_breaking',
        'stick-breaking attention whose remainder is lost',
        'arXiv 2410.17980, a form of ours',
      ),
      (
        'stick_breaking_value',
        'stick-breaking attention whose remainder goes to the own value',
        "arXiv 2410.17980, the tests of its authors' kernel",
      ),
      (
        'stick_breaking_bias',
        'stick-breaking attention whose remainder goes to a learned bias, with '
        'a norm of each head,',
        "arXiv 2410.17980, its authors' model",
      ),
    )
  },
  'differential_language_modelling': _even(
    'the Differential Transformer, half the heads of twice the size, has a '
    'lower loss than a baseline of its size',
    'arXiv 2410.05258',
    'differential',
    'baseline',
  ),
  'differential_v2_language_modelling': _even(
    'Differential Transformer V2 has a lower loss than a baseline of its heads',
    "the authors' note of January 2026",
    'differential_v2',
    'baseline',
  ),
  'ssa_token_transition': Claim(
    'temperatures bring an attention map of sharp and flat rows nearer to the '
    'truth',
    f'{_SSA}, section 4',
    TOKEN_TRANSITION,
    LowerWithTemperatures('l1_error'),
    fast=TOKEN_TRANSITION,
    in_fast=True,
  ),
  'ssa_spikiness': Claim(
    'temperatures make rows sharp without large weights: their norm is smaller',
    f'{_SSA}, section 4',
    TOKEN_TRANSITION,
    LowerWithTemperatures('weight_norm'),
    fast=TOKEN_TRANSITION,
    in_fast=True,
  ),
  'downstream_tasks': Claim(
    'selective models are better on six downstream tasks',
    f'{_PAPER}, abstract',
    None,
    OutOfReach('models that two cores train are at chance on such tasks'),
    f'{_C4} gin/runs/downstream.gin',
  ),
  'longer_contexts': Claim(
    'the longer the context, the more memory the memory loss saves: 16, 25, 47 '
    'times',
    f'{_PAPER}, abstract',
    None,
    OutOfReach(
      'needs models that use 2,048 tokens of context; make study-context '
      'measures small ones up to 1,024'
    ),
    'gin/experiments/c4_contexts.gin gin/attention/selective.gin '
    'gin/attention/memory_loss.gin',
  ),
}
