import jax
import jax.numpy as jnp
import numpy as np
import pytest
from clu import metrics as clu_metrics

from t5x import metrics


def test_a_window_of_steps_averages_by_step_and_by_second():
  steps = [
    {
      'loss': metrics.AveragePerStep.from_model_output(jnp.array([x, x])),
      'rate': metrics.TimeRate.from_model_output(jnp.array(10.0)),
      'steps': metrics.StepsPerTime.from_model_output(),
      'sum': metrics.Sum.from_model_output(jnp.array([x])),
      'seconds': metrics.Time(),
      'mean': clu_metrics.Average.from_model_output(jnp.array([x])),
    }
    for x in (1.0, 2.0, 6.0)
  ]
  merged = steps[0]
  for step in steps[1:]:
    merged = jax.jit(lambda a, b: {k: a[k].merge(b[k]) for k in a})(
      merged, step
    )
  merged = metrics.set_time_metrics_duration(merged, 4.0)
  merged = metrics.set_step_metrics_num_steps(merged, 3)
  values = {k: float(m.compute()) for k, m in merged.items()}
  assert values == {
    'loss': 6.0,
    'rate': 7.5,
    'steps': 0.75,
    'sum': 9.0,
    'seconds': 4.0,
    'mean': 3.0,
  }


def test_time_metrics_need_a_duration_and_are_merged_before_it_is_set():
  rate = metrics.TimeRate.from_model_output(jnp.array(1.0))
  with pytest.raises(ValueError, match='replace_duration'):
    rate.compute()
  with pytest.raises(ValueError, match='already set'):
    rate.merge(rate.replace_duration(2.0))


def test_zeros_of_a_traced_metric_have_its_shapes():
  shape = jax.eval_shape(
    lambda: metrics.AveragePerStep.from_model_output(jnp.ones((3,)))
  )
  zeros = metrics.shape_obj_to_defined_obj(shape)
  assert isinstance(zeros, metrics.AveragePerStep)
  np.testing.assert_array_equal(zeros.total, 0.0)


def test_dict_of_sums():
  sums = metrics.create_metrics_dict({'tokens': 3})
  assert float(sums['tokens'].merge(metrics.Sum(4)).compute()) == 7
