"""Runs the identical layers of a network, in a Python loop or scanned.

Settings, names and the tree of parameters are those of T5X's
examples/scalable_t5: scanned layers are one module whose parameters have an
axis 'layers' at position 1.
"""

from collections.abc import Callable, Mapping
from typing import Any

import flax
import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.linen import partitioning

# The position of a parameter's axis of layers: T5X's param_scan_axis.
LAYERS_AXIS = 1

# What a layer saves for the backward pass, by T5X's names; the rest is
# recomputed. 'minimal' saves the products with parameters.
REMAT_POLICIES = {
  'none': None,
  'minimal': jax.checkpoint_policies.checkpoint_dots_with_no_batch_dims,
  'full': jax.checkpoint_policies.nothing_saveable,
}


def unstacked(
  params: Mapping[str, Any], name: str, layers: int
) -> dict[str, Any]:
  """Splits the parameters of scanned layers into those of single layers.

  Args:
    params: a network's nested parameters; `params[name]` has the axis of
      layers.
    name: the name of the scanned layers.
    layers: L.

  Returns:
    The parameters with `layers_0` to `layers_<L - 1>` in place of `name`.
  """
  rest = {key: value for key, value in params.items() if key != name}
  return rest | {
    f'layers_{i}': jax.tree.map(
      lambda x, i=i: jnp.take(x, i, axis=LAYERS_AXIS), params[name]
    )
    for i in range(layers)
  }


def run(
  network: nn.Module,
  x: jax.Array,
  call: Any,
  *,
  make: Callable[..., nn.Module],
  layers: int,
  name: str,
  scan: bool,
) -> jax.Array:
  """Runs x through the layers.

  Args:
    network: the module that has the layers, inside its compact call. Its config
      says whether parameters are stacked, and what the backward pass saves.
    x: [B, N, M].
    call: the second argument of each layer.
    make: makes layer i from (i, parent=, name=).
    layers: L.
    name: the name of the scanned layers; single ones are `layers_<i>`.
    scan: whether to scan the layers. This needs stacked parameters, layers that
      all do the same (i is 0 for all), and no KV cache.

  Returns:
    [B, N, M].
  """
  config = network.config

  def apply(layer, x):
    if config.remat_policy == 'none':
      return layer(x, call)
    remat_layer = partitioning.remat(
      lambda layer, x: layer(x, call),
      prevent_cse=not scan,
      policy=REMAT_POLICIES[config.remat_policy],
    )
    return remat_layer(layer, x)

  def loop(parent, x):
    for i in range(layers):
      x = apply(make(i, parent=parent, name=f'layers_{i}'), x)
    return x

  if scan:
    axis: Any = LAYERS_AXIS
    if not network.is_mutable_collection('params'):
      axis = flax.core.lift.In(axis)
    scan_layers = partitioning.scan_with_axes(
      lambda layer, x: (apply(layer, x), None),
      variable_axes={'params': axis, 'intermediates': 0},
      split_rngs={'params': True, 'dropout': True},
      in_axes=(),
      length=layers,
      axis_name='layers',
    )
    x, _ = scan_layers(make(0, parent=network, name=name), x)
    return x
  if not config.scan_layers:
    return loop(network, x)

  def unstack(variables):
    params = variables['params']
    # Shared modules from outside the network are mapped too, each by itself.
    return {
      'params': unstacked(params, name, layers) if name in params else params
    }

  return nn.map_variables(loop, 'params', trans_in_fn=unstack)(network, x)
