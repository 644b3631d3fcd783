"""Maps gin files of the real T5X to the suite's replacements."""

import re

_WMT = 'gin/experiments/t5_wmt_ende.gin'
_C4 = 'gin/experiments/t5_span_corruption_baseline.gin'
_DECODER = 'gin/models/t5_decoder_only/{}.gin'
_SIZES = ('base', 'large', 'xl', 'xxl')

# {path below T5X's package: our file, with advice where a file is not enough}
_INSTEAD = {
  **{
    f'configs/runs/{run}.gin': f'gin/runs/{run}.gin'
    for run in ('pretrain', 'finetune', 'eval', 'infer')
  },
  'configs/runs/infer_from_tfexample_file.gin': (
    'gin/runs/infer_file.gin, for a file of JSON lines'
  ),
  **{
    f'examples/t5/t5_1_1/{size}.gin': f'gin/models/t5_1_1/{size}.gin'
    for size in ('tiny', 'small', *_SIZES)
  },
  **{
    f'examples/t5/mt5/{size}.gin': (
      f'gin/models/t5_1_1/{size}.gin, with vocabularies.Choice.path = the '
      'SentencePiece model of mT5'
    )
    for size in ('tiny', 'small', *_SIZES)
  },
  **{
    f'examples/t5/t5_1_0/{size}.gin': f'gin/models/t5_1_0/{size.lower()}.gin'
    for size in ('tiny', 'small', 'base', 'large', '3B', '11B')
  },
  'examples/t5/local_tiny.gin': 'gin/test/tiny.gin',
  **{
    f'examples/t5/t5_1_1/examples/{name}.gin': ours
    for name, ours in {
      'base_c4_pretrain': f'{_C4} and then gin/models/t5_1_1/base.gin',
      'small_c4_pretrain': _C4,
      'base_wmt14enfr_eval': 'gin/runs/eval.gin',
      'base_wmt14enfr_finetune': _WMT,
      'base_wmt14enfr_train': _WMT,
      'base_wmt19_ende_train': _WMT,
      'base_wmt_eval': 'gin/runs/eval.gin',
      'base_wmt_finetune': _WMT,
      'base_wmt_from_scratch': _WMT,
      'base_wmt_from_scratch_adamw': f'{_WMT} and then '
      'gin/optimizers/adamw.gin',
      'base_wmt_from_scratch_lion': _WMT,
      'base_wmt_infer': 'gin/runs/infer.gin',
      'small_wmt_finetune': _WMT,
      'test_train_eval_t5_tiny': 'gin/test/tiny.gin',
      'test_train_t5_tiny': 'gin/test/tiny.gin',
    }.items()
  },
  **{
    f'examples/decoder_only/models/{size}.gin': _DECODER.format(size)
    for size in _SIZES
  },
}
# T5X's guides use names such as models/t5_1_1_small.gin.
_VERSION_AND_SIZE = re.compile(r'(?:^|/)(t5_1_[01])_([a-z]+)\.gin$')


def replacement(name: str) -> str:
  """Names the replacement of one of T5X's gin files.

  Args:
    name: the path in a flag or include: 't5x/configs/runs/pretrain.gin', its
      end 'runs/pretrain.gin', or the 'models/t5_1_1_small.gin' of T5X's guides.

  Returns:
    '; only the real T5X has it, use ...' for an error message; '' if the file
    is not T5X's.
  """
  ours = _ours(name)
  if ours:
    return f'; only the real T5X has it, use {ours}'
  if name.startswith('t5x/'):
    return '; only the real T5X has it, and nothing here stands for it'
  return ''


def model_of(name: str) -> str | None:
  """Returns the suite's model file for one of T5X's; None for other files."""
  ours = _ours(name)
  return ours if ours and ours.startswith('gin/models/') else None


def _ours(name: str) -> str | None:
  """Returns the replacement of one of T5X's files; None for other files."""
  path = name.removeprefix('./').removeprefix('t5x/')
  guide_name = _VERSION_AND_SIZE.search(path)
  if guide_name:
    path = 'examples/t5/{}/{}.gin'.format(*guide_name.groups())
  return _INSTEAD.get(path) or _INSTEAD.get(f'configs/{path}')
