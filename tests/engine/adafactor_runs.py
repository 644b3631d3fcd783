"""Five Adafactor steps for each of several settings, written to a file.

    python -m tests.engine.adafactor_runs FILE.npz

Run once on each engine by adafactor_test.py, which compares the files.
"""

import sys

import jax
import numpy as np

import selective_t5x  # noqa: F401
from t5x import adafactor

ROW, COLUMN = adafactor.FactorDim.ROW, adafactor.FactorDim.COLUMN
BATCH, NONE = adafactor.FactorDim.BATCH, adafactor.FactorDim.NONE
SHAPES = {
  'scale': (5,),
  'kernel': (6, 4),
  'heads': (6, 2, 3),
  'stack': (2, 4, 6),
}
RULES = [
  ('scale', None),
  ('kernel', (COLUMN, ROW)),
  ('heads', (ROW, COLUMN, COLUMN)),
  ('stack', (BATCH, ROW, COLUMN)),
]
SETTINGS = {
  'plain': {},
  'no_scale': {'multiply_by_parameter_scale': False},
  'scale_of_some': {
    'multiply_by_parameter_scale': adafactor.HParamMap(
      [('heads', False), ('.*', True)]
    )
  },
  'momentum': {'beta1': 0.9, 'step_offset': -3},
  'short_momentum': {'beta1': 0.5, 'dtype_momentum': 'bfloat16'},
  'decay': {'weight_decay_rate': 0.01, 'decay_rate': 0.5},
  'decay_by_rate': {'weight_decay_rate_lr_exponent': 2.0},
  'clipped': {'global_norm_clip_threshold': 0.1, 'clipping_threshold': 0.5},
  'unclipped': {'clipping_threshold': None, 'max_parameter_scale': 0.2},
  'not_factored': {'factored': False, 'factor_map': None},
  'only_batch': {
    'factor_map': adafactor.HParamMap(
      [('stack', (BATCH, NONE, NONE)), *RULES[:3]]
    )
  },
  'skip_nan': {'skip_nan_updates': True},
}


def run(settings) -> dict[str, np.ndarray]:
  """Returns {name: array} of the parameters and moments after five steps."""
  settings = {
    'min_dim_size_to_factor': 2,
    'factor_map': adafactor.HParamMap(RULES),
    **settings,
  }
  rng = np.random.default_rng(0)

  def draw():
    return {
      name: rng.normal(size=shape).astype(np.float32)
      for name, shape in SHAPES.items()
    }

  optimizer = adafactor.Adafactor(**settings).create(draw())
  for step in range(5):
    grads = draw()
    if settings.get('skip_nan_updates'):
      grads['scale'][step] = np.nan
    optimizer = optimizer.apply_gradient(grads, learning_rate=0.1 / (step + 1))
  return {
    jax.tree_util.keystr(path, simple=True, separator='/'): np.asarray(
      leaf, np.float32
    )
    for path, leaf in jax.tree_util.tree_leaves_with_path(
      optimizer.state_dict()
    )
  }


if __name__ == '__main__':
  np.savez(
    sys.argv[1],
    **{
      f'{setting}/{name}': array
      for setting, kwargs in SETTINGS.items()
      for name, array in run(kwargs).items()
    },
  )
