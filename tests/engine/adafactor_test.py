import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util
from jax.sharding import PartitionSpec as P

from selective_t5x.errors import UserError
from t5x import adafactor, optimizers

ROW, COLUMN = adafactor.FactorDim.ROW, adafactor.FactorDim.COLUMN
NONE = adafactor.FactorDim.NONE


def _written_out(param, grads, rate, decay=0.8):
  """Algorithm 4 of arXiv 1804.04235 for a matrix, without weight decay."""
  rows, columns = np.zeros(param.shape[0]), np.zeros(param.shape[1])
  for t, grad in enumerate(grads, start=1):
    beta = 1 - t**-decay
    square = grad**2 + 1e-30
    rows = beta * rows + (1 - beta) * square.mean(1)
    columns = beta * columns + (1 - beta) * square.mean(0)
    moments = np.outer(rows, columns) / rows.mean()
    update = grad / np.sqrt(moments)
    update /= max(1.0, np.sqrt((update**2).mean()))
    scale = max(1e-3, np.sqrt((param**2).mean()))
    param = param - rate * scale * update
  return param


def test_a_matrix_steps_as_the_paper_says():
  rng = np.random.default_rng(0)
  param = rng.normal(size=(6, 4))
  grads = rng.normal(size=(5, 6, 4))
  optimizer = adafactor.Adafactor(0.1, min_dim_size_to_factor=2).create(
    {'w': jnp.asarray(param, jnp.float32)}
  )
  for grad in grads:
    optimizer = optimizer.apply_gradient({'w': jnp.asarray(grad, jnp.float32)})
  np.testing.assert_allclose(
    optimizer.target['w'], _written_out(param, grads, 0.1), rtol=1e-5
  )


def test_stacked_parameters_step_as_each_alone():
  rng = np.random.default_rng(1)
  stack = jnp.asarray(rng.normal(size=(3, 6, 4)), jnp.float32)
  grads = jnp.asarray(rng.normal(size=(3, 6, 4)), jnp.float32)
  rules = {'layers': 'batch', 'embed': 'row', 'mlp': 'column'}
  together = adafactor.Adafactor(0.1, logical_factor_rules=rules)
  together.set_param_axes({'w': P('layers', 'embed', 'mlp')})
  stepped = together.create({'w': stack}).apply_gradient({'w': grads})
  alone = adafactor.Adafactor(0.1, min_dim_size_to_factor=2)
  for i in range(3):
    one = alone.create({'w': stack[i]}).apply_gradient({'w': grads[i]})
    np.testing.assert_allclose(
      stepped.target['w'][i], one.target['w'], rtol=1e-5
    )


def test_moments_of_heads_are_as_small_as_their_rules_say():
  opt = adafactor.Adafactor(
    logical_factor_rules=adafactor.standard_logical_factor_rules()
  )
  opt.set_param_axes(
    {
      'query': P('embed', 'heads', 'kv'),
      'bias': P('heads', 'relpos_buckets'),
      'scale': P('embed'),
    }
  )
  optimizer = opt.create(
    {
      'query': jnp.ones((8, 2, 4)),
      'bias': jnp.ones((2, 32)),
      'scale': jnp.ones((8,)),
    }
  )
  shapes = jax.tree.map(jnp.shape, optimizer.state_dict()['state'])
  assert shapes['param_states'] == {
    'query': {'v_row': (8,), 'v_col': (2, 4), 'v': (1,), 'm': (1,)},
    'bias': {'v_row': (1,), 'v_col': (1,), 'v': (2, 32), 'm': (1,)},
    'scale': {'v_row': (1,), 'v_col': (1,), 'v': (8,), 'm': (1,)},
  }


def test_logical_axes_go_to_moments_of_the_parameters_shape():
  axes = {'w': P('embed', 'mlp'), 'b': P('mlp')}
  opt = adafactor.Adafactor(min_dim_size_to_factor=2, beta1=0.9)
  optimizer = opt.create({'w': jnp.ones((4, 6)), 'b': jnp.ones((6,))})
  named = opt.derive_logical_axes(optimizer, axes)
  states = named.state.param_states
  assert named.target == axes and named.state.step is None
  assert states['w'].v is None and states['w'].m == P('embed', 'mlp')
  assert states['w'].v_row is None and states['w'].v_col is None
  assert states['b'].v == P('mlp')


def test_state_comes_back_from_its_state_dict():
  params = {'w': jnp.ones((4, 6)), 'b': jnp.ones((6,))}
  opt = adafactor.Adafactor(0.1, min_dim_size_to_factor=2, beta1=0.9)
  stepped = opt.create(params).apply_gradient(jax.tree.map(jnp.sin, params))
  restored = opt.create(params).restore_state(stepped.state_dict())
  jax.tree.map(np.testing.assert_array_equal, restored, stepped)


@pytest.mark.parametrize(
  'rules, axes, message',
  [
    ({'embed': ROW}, ('embd',), "no rule for the axis 'embd'.*nearest: embed"),
    ({'embed': 'rows'}, ('embed',), "'rows' is no factor rule.*nearest: row"),
    (
      {'embed': ROW, 'mlp': COLUMN, 'kv': NONE},
      ('embed', 'mlp', 'kv'),
      'no axis of it can be NONE',
    ),
  ],
)
def test_rules_that_cannot_be_are_named(rules, axes, message):
  opt = adafactor.Adafactor(logical_factor_rules=rules)
  with pytest.raises(UserError, match=message):
    opt.set_param_axes({'w': P(*axes)})


@pytest.mark.parametrize(
  'rule, message',
  [
    (adafactor.HEURISTIC_RULE, 'needs a factor rule'),
    ((ROW, COLUMN), r'has 2 axes, its shape \(2, 3, 4\) has 3'),
  ],
)
def test_a_rule_that_does_not_fit_names_the_parameter(rule, message):
  factor_map = adafactor.HParamMap([('w', rule)])
  with pytest.raises(ValueError, match=f'layer/w.*{message}'):
    adafactor.Adafactor(factor_map=factor_map).create(
      {'layer': {'w': jnp.ones((2, 3, 4))}}
    )


def test_an_argument_of_another_type_is_refused():
  with pytest.raises(TypeError, match='expected a bool or an HParamMap'):
    adafactor.Adafactor(multiply_by_parameter_scale='yes')
  with pytest.raises(TypeError, match='expected None or an HParamMap'):
    adafactor.Adafactor(factor_map={'w': (ROW, COLUMN)})
  with pytest.raises(ValueError, match='no learning rate'):
    adafactor.Adafactor().create({'w': jnp.ones(3)}).apply_gradient(
      {'w': jnp.ones(3)}
    )


def _multi(*parts):
  return optimizers.MultiOptimizer(
    [
      (traverse_util.ModelParamTraversal(lambda path, _, n=n: n in path), opt)
      for n, opt in parts
    ]
  )


def test_a_multi_optimizer_leaves_the_other_parameters_alone():
  params = {'a': {'w': jnp.ones((4, 6))}, 'b': {'w': jnp.ones((4, 6))}}
  axes = {'a': {'w': P('embed', 'mlp')}, 'b': {'w': P('embed', 'mlp')}}
  opt = _multi(('a', adafactor.Adafactor(0.1)))
  optimizer = opt.create(params)
  stepped = optimizer.apply_gradient(params, learning_rate=0.2)
  alone = adafactor.Adafactor(0.2).create(params['a'])
  np.testing.assert_array_equal(
    stepped.target['a']['w'], alone.apply_gradient(params['a']).target['w']
  )
  np.testing.assert_array_equal(stepped.target['b']['w'], params['b']['w'])
  named = opt.derive_logical_axes(optimizer, axes)
  assert named.state.param_states['a']['w'].v == P('embed', 'mlp')
  assert named.state.param_states['b']['w'] is None


def test_two_optimizers_of_one_parameter_are_refused():
  opt = _multi(('a', adafactor.Adafactor(0.1)), ('w', adafactor.Adafactor(0.1)))
  with pytest.raises(ValueError, match='match the same leaves.*a/w'):
    opt.create({'a': {'w': jnp.ones(3)}})


@pytest.mark.slow
def test_five_steps_equal_those_of_the_real_t5x(tmp_path):
  results = {}
  for engine in ('t5x', 'embedded'):
    run = subprocess.run(
      [
        sys.executable,
        '-m',
        'tests.engine.adafactor_runs',
        tmp_path / f'{engine}.npz',
      ],
      env=os.environ | {'SELECTIVE_T5X_ENGINE': engine},
      capture_output=True,
      text=True,
      check=False,
    )
    if engine == 't5x' and run.returncode:
      pytest.skip(f'no real T5X here: {run.stderr.strip().splitlines()[-1]}')
    assert run.returncode == 0, run.stderr[-3000:]
    results[engine] = dict(np.load(tmp_path / f'{engine}.npz'))
  assert results['t5x'].keys() == results['embedded'].keys()
  for name, expected in results['t5x'].items():
    np.testing.assert_allclose(
      results['embedded'][name], expected, rtol=1e-6, atol=1e-7, err_msg=name
    )
