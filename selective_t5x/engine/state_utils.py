"""Nested dicts of a train state: names, parts, and assignment to other models.

A name is the path to an array joined by '/', for instance
'target/decoder/…/kernel'. The arrays can have any type here.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from flax import traverse_util

from selective_t5x.errors import UserError, did_you_mean

# (expression for names in the model, name in the checkpoint or None).
AssignmentMap = Sequence[tuple[str | re.Pattern, str | None]]


def tensorstore_leaf(_: Any, value: Mapping) -> bool:
  """Tells whether a dict represents an array in TensorStore."""
  return {'driver', 'kvstore', 'metadata'} <= set(value)


def flatten_state_dict(
  state_dict: Mapping[str, Any], keep_empty_nodes: bool = False
) -> dict[str, Any]:
  """Returns {name: array}; the dict of a TensorStore array is one array."""
  return traverse_util.flatten_dict(
    state_dict,
    keep_empty_nodes=keep_empty_nodes,
    is_leaf=tensorstore_leaf,
    sep='/',
  )


def unflatten_state_dict(flat: Mapping[str, Any]) -> dict[str, Any]:
  """Returns the nested dict of {name: array}."""
  return traverse_util.unflatten_dict(flat, sep='/')


def get_name_tree(
  state_dict: Mapping[str, Any], keep_empty_nodes: bool = False
) -> dict[str, Any]:
  """Returns the nested dict with each array's name in its place."""
  paths = traverse_util.flatten_dict(
    state_dict, keep_empty_nodes=keep_empty_nodes
  )
  return traverse_util.unflatten_dict({path: '/'.join(path) for path in paths})


def intersect_state(
  state_dict: Mapping[str, Any], intersect_state_dict: Mapping[str, Any]
) -> dict[str, Any]:
  """Returns the arrays of state_dict that intersect_state_dict has too."""
  keep = flatten_state_dict(intersect_state_dict)
  return unflatten_state_dict(
    {k: v for k, v in flatten_state_dict(state_dict).items() if k in keep}
  )


def merge_state(
  state_dict: Mapping[str, Any],
  from_scratch_state: Mapping[str, Any],
  overwrite: bool = False,
) -> dict[str, Any]:
  """Returns state_dict with the arrays that only from_scratch_state has.

  Args:
    state_dict: a nested dict.
    from_scratch_state: a nested dict.
    overwrite: whether from_scratch_state wins for common names.
  """
  old, new = map(flatten_state_dict, (state_dict, from_scratch_state))
  return unflatten_state_dict(old | new if overwrite else new | old)


def apply_assignment_map(
  ckpt_optimizer_state: Mapping[str, Any],
  optimizer_state: Mapping[str, Any],
  assignment_map: AssignmentMap,
  require_all_rules_match: bool = True,
  *,
  is_resuming: bool = False,
) -> Mapping[str, Any]:
  r"""Renames the arrays of a checkpoint to a model's names.

  For each name of the model, the first rule whose expression matches the whole
  name gives the source of the array: a name in the checkpoint (with \1 for a
  group), or None for no source. Without a rule the source has the same name.
  Arrays that are the source of no rule keep their names.

  Example, a new embedding and another optimiser:
    utils.RestoreCheckpointConfig:
      assignment_map = [
          ('target/decoder/(.*)', 'target/\\1'),
          ('target/token_embedder/.*', None),
          ('state/param_states/.*', None)]
      fallback_to_scratch = True

  Args:
    ckpt_optimizer_state: nested dict of the checkpoint.
    optimizer_state: nested dict of the model's train state.
    assignment_map: the rules.
    require_all_rules_match: whether a rule that matches no name is an error.
    is_resuming: whether a run is resumed; then nothing is renamed.

  Returns:
    a nested dict of the checkpoint's arrays.

  Raises:
    UserError: a rule matches nothing, or its source is not in the checkpoint.
  """
  if is_resuming:
    return ckpt_optimizer_state
  saved = flatten_state_dict(ckpt_optimizer_state)
  model_arrays = flatten_state_dict(optimizer_state)
  sources, used = {}, set()
  for name in model_arrays:
    for pattern, replacement in assignment_map:
      match = re.fullmatch(pattern, name)
      if not match:
        continue
      used.add(pattern)
      sources[name] = None if replacement is None else match.expand(replacement)
      if sources[name] is not None and sources[name] not in saved:
        raise UserError(
          f"assignment_map: Parameter '{sources[name]}' does not exist in "
          f"restore checkpoint, wanted for '{name}'"
          f'{did_you_mean(sources[name], saved)}'
        )
      break
  unused = [
    getattr(pattern, 'pattern', pattern)
    for pattern, _ in assignment_map
    if pattern not in used
  ]
  if unused and require_all_rules_match:
    raise UserError(
      f'Unused patterns in `assignment_map`: {", ".join(map(repr, unused))}: '
      'the whole of a name in the model must match'
      f'{did_you_mean(unused[0], model_arrays)}'
    )
  source_names = set(sources.values())
  result = {
    name: array
    for name, array in saved.items()
    if name not in sources
    and (name not in source_names or name in model_arrays)
  }
  result |= {name: saved[source] for name, source in sources.items() if source}
  return unflatten_state_dict(result)
