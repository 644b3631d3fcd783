"""Reads a checkpoint into a train state, also of a changed model."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from jax.sharding import NamedSharding, PartitionSpec

from selective_t5x.errors import UserError, did_you_mean
from t5x import checkpoint_items, opening, state_utils
from t5x.checkpoint_readers import SavedArray
from t5x.lazy_arrays import materialized


def get_local_data(x: Any) -> Any:
  """Returns this process's shard of a jax.Array; other values unchanged."""
  if isinstance(x, jax.Array) and not isinstance(x, jax.core.Tracer):
    return x.addressable_data(0)
  return x


def step_of(train_state) -> int:
  """Returns the step of a train state, whose arrays may be lazy."""
  return int(get_local_data(materialized(train_state.step)))


def restore_with_data(path: str, iterator, *, train_state, partitioner, **args):
  """Returns the train state of a checkpoint, and moves a train iterator.

  Args:
    path: the checkpoint.
    iterator: moved to its saved position; None: there is none.
    train_state: see `restore`.
    partitioner: see `restore`.
    **args: the others of `restore`.
  """
  state = restore(path, train_state, partitioner, **args)
  if iterator is not None:
    with opening.reading(path):
      checkpoint_items.restore_iterator(
        path, partitioner, iterator, step_of(state)
      )
  return state


def restore(
  path: str,
  train_state,
  partitioner,
  dtype: Any = None,
  transformations: opening.Transformations = (),
  fallback_state: Mapping[str, Any] | None = None,
  lazy_parameters: bool = False,
):
  """Returns the train state of a checkpoint.

  Args:
    path: the checkpoint.
    train_state: has the names and shapes; its arrays can be ShapeDtypeStruct.
    partitioner: defines where the arrays are placed.
    dtype: of the parameters; None: as saved.
    transformations: rename the checkpoint's arrays, in order; their leaves are
      `SavedArray`s, or arrays, which a function can also return.
    fallback_state: nested dict of the arrays that the checkpoint lacks.
    lazy_parameters: whether arrays are read later, by their `get`.

  Raises:
    UserError: it belongs to another model.
    UnreadableCheckpointError: it is broken.
  """
  logging.info('Restoring %s', path)
  reader = opening.open_checkpoint(path)
  state_dict = train_state.state_dict()
  specs = _specs(state_dict)
  with opening.reading(path):
    tree = state_utils.unflatten_state_dict(reader.arrays())
  for transform in transformations:
    tree = transform(tree, state_dict)
  saved = state_utils.flatten_state_dict(tree)
  check(path, specs, saved, fallback=fallback_state is not None)

  def dtype_of(name):
    return dtype if name.startswith('target/') else None

  sources = {name: saved[name] for name in specs if name in saved}
  if lazy_parameters:
    arrays = {n: opening.lazy(leaf, dtype_of(n)) for n, leaf in sources.items()}
  else:
    shardings = _shardings(train_state, partitioner)
    with opening.reading(path):
      arrays = _placed(reader, sources, shardings, dtype_of)
  missing = sorted(set(specs) - set(arrays))
  if missing:
    logging.info('From scratch: %d arrays, %s', len(missing), some(missing))
    scratch = state_utils.flatten_state_dict(dict(fallback_state))
    for name in missing:
      array = scratch[name]
      arrays[name] = array.astype(dtype_of(name) or array.dtype)
  complete = state_utils.flatten_state_dict(state_dict) | arrays
  return train_state.restore_state(state_utils.unflatten_state_dict(complete))


def restore_tensorflow(path, train_state, partitioner, dtype=None, **args):
  """Returns the train state of a TensorFlow checkpoint of T5.

  Args:
    path: the checkpoint.
    train_state: see `restore`.
    partitioner: see `restore`.
    dtype: see `restore`.
    **args: of `checkpoint_importer.restore_from_t5_checkpoint`.
  """
  from t5x import checkpoint_importer  # beside the engine

  state_dict = checkpoint_importer.restore_from_t5_checkpoint(
    train_state.state_dict(), path, **args
  )
  arrays = _placed(
    None,
    state_utils.flatten_state_dict(state_dict),
    _shardings(train_state, partitioner),
    lambda name: dtype if name.startswith('target/') else None,
  )
  return train_state.restore_state(state_utils.unflatten_state_dict(arrays))


def _specs(state_dict: Mapping[str, Any]) -> dict[str, Any]:
  """Returns {name: array} of the arrays that a train state must have."""
  flat = state_utils.flatten_state_dict(state_dict)
  return {name: array for name, array in flat.items() if array is not None}


def _placed(
  reader,
  sources: Mapping[str, Any],
  shardings: Mapping[str, NamedSharding],
  dtype_of: Callable[[str], Any],
) -> dict[str, jax.Array]:
  """Returns {name: array on the devices}.

  Args:
    reader: reads the arrays that are `SavedArray`s.
    sources: {name in the model: array of the checkpoint, or values}.
    shardings: {name in the model: sharding}.
    dtype_of: returns the dtype for a name in the model, None: as saved.
  """
  requests = {
    leaf.name: (shardings[name], dtype_of(name))
    for name, leaf in sources.items()
    if isinstance(leaf, SavedArray)
  }
  read = reader.read(requests) if requests else {}
  arrays, used = {}, set()
  for name, leaf in sources.items():
    if not isinstance(leaf, SavedArray):
      values = np.asarray(leaf)
      if dtype_of(name):
        values = values.astype(jnp.dtype(dtype_of(name)))
      arrays[name] = jax.make_array_from_callback(
        values.shape,
        shardings[name],
        lambda index, values=values: values[index],
      )
      continue
    # One array of the checkpoint can become several of the model. They must
    # not share memory, since the train step changes them in place.
    array = read[leaf.name]
    arrays[name] = (
      jax.device_put(array, shardings[name], may_alias=False)
      if leaf.name in used
      else array
    )
    used.add(leaf.name)
  return arrays


def check(
  path: str,
  specs: Mapping[str, Any],
  saved: Mapping[str, Any],
  *,
  fallback: bool,
  strict: bool = False,
) -> None:
  """Raises UserError if names or shapes of the arrays differ from `specs`.

  Args:
    path: the checkpoint.
    specs: {name: array} of the model.
    saved: {name: array} of the checkpoint, with the model's names.
    fallback: whether arrays may be missing.
    strict: whether parameters that only the checkpoint has are an error.
  """
  # Parameters come first: the optimiser's copies of them repeat the problem.
  missing = sorted(set(specs) - set(saved), key=lambda n: (n[0] != 't', n))
  extra = sorted(
    name for name in set(saved) - set(specs) if name.startswith('target/')
  )
  shapes = [
    f'{name} is {np.shape(saved[name])}, expected {tuple(x.shape)}'
    for name, x in sorted(specs.items(), key=lambda i: (i[0][0] != 't', i[0]))
    if name in saved and np.shape(saved[name]) != tuple(x.shape)
  ]
  problems = []
  if missing and not fallback:
    if missing[0].startswith('state/'):
      raise UserError(
        f'{path} has the state of another optimiser, without {some(missing)}: '
        'to reset the state, RestoreCheckpointConfig.assignment_map = '
        "[('state/param_states/.*', None)] and fallback_to_scratch = True"
      )
    problems.append(f'without {some(missing)}{did_you_mean(missing[0], extra)}')
  if extra and strict:
    problems.append(f'with {some(extra)}, unknown to the model')
  if shapes:
    problems.append(some(shapes))
  if problems:
    raise UserError(
      f'{path} is a checkpoint of another model: {"; ".join(problems)} '
      '(RestoreCheckpointConfig.assignment_map renames or leaves out)'
    )


def nothing_else(path: str, fallback: bool) -> Callable[..., Mapping[str, Any]]:
  """Returns a transformation that refuses what the model does not have.

  RestoreCheckpointConfig.strict puts it after the other ones.

  Args:
    path: the checkpoint, for the message.
    fallback: whether arrays may be missing.
  """

  def transform(state_dict, target_state_dict):
    saved = state_utils.flatten_state_dict(state_dict)
    check(
      path, _specs(target_state_dict), saved, fallback=fallback, strict=True
    )
    return state_dict

  return transform


def some(names: Sequence[str]) -> str:
  """Returns the first names, as a text."""
  return ', '.join(names[:3]) + (' …' if len(names) > 3 else '')


def flat_axes(train_state, partitioner) -> dict[str, PartitionSpec | None]:
  """Returns {name: partitioning or None} of a train state's arrays."""

  # An entry of the axes can cover a subtree.
  def spread(spec, part):
    return jax.tree.map(lambda _: spec, part)

  axes = partitioner.get_mesh_axes(train_state).state_dict()
  return state_utils.flatten_state_dict(
    jax.tree.map(
      spread, axes, train_state.state_dict(), is_leaf=lambda x: x is None
    )
  )


def _shardings(train_state, partitioner) -> dict[str, NamedSharding]:
  """Returns {name: sharding} of a train state's arrays."""
  return {
    name: NamedSharding(partitioner.mesh, spec or PartitionSpec())
    for name, spec in flat_axes(train_state, partitioner).items()
  }
