"""Gin: parsing of flags, the saved configuration, functions for gin files."""

import os
from collections.abc import Sequence

import gin
import jax
from absl import app, logging
from clu import metric_writers
from etils import epath


def get_gin_config_str(show_provenance: bool = False) -> str:
  """Returns the configuration as a gin file, for `gin.parse_config`.

  Args:
    show_provenance: whether comments say where each binding comes from; gin
      0.5.0 cannot.
  """
  # Only gin's newer versions know the argument.
  options = {'show_provenance': True} if show_provenance else {}
  return gin.config_str(**options)


def parse_gin_flags(
  gin_search_paths: Sequence[str],
  gin_files: Sequence[str],
  gin_bindings: Sequence[str],
  skip_unknown: bool | Sequence[str] = False,
  finalize_config: bool = True,
) -> None:
  """Parses gin files, then bindings; later ones win.

  Args:
    gin_search_paths: folders in which relative files are looked up, in order.
    gin_files: files to parse, in order.
    gin_bindings: statements such as 'TRAIN_STEPS = 10'.
    skip_unknown: whether, or for which names, unknown bindings are ignored.
    finalize_config: whether the configuration is locked afterwards.
  """
  for path in gin_search_paths:
    gin.add_config_file_search_path(path)
  gin.parse_config_files_and_bindings(
    gin_files,
    gin_bindings,
    skip_unknown=skip_unknown,
    finalize_config=finalize_config,
  )
  logging.debug('Gin configuration:\n%s', get_gin_config_str())


def rewrite_gin_args(args: Sequence[str]) -> Sequence[str]:
  """Turns `--gin.NAME=VALUE` into `--gin_bindings=NAME = VALUE`.

  Raises:
    ValueError: such an argument has no '='.
  """

  def rewrite(arg):
    if not arg.startswith('--gin.'):
      return arg
    name, equals, value = arg.removeprefix('--gin.').partition('=')
    if not equals:
      raise ValueError(
        "Gin bindings must be of the form '--gin.<param>=<value>', got: " + arg
      )
    return f'--gin_bindings={name} = {value}'

  return [rewrite(arg) for arg in args]


@gin.register
def summarize_gin_config(
  model_dir: str,
  summary_writer: metric_writers.MetricWriter | None,
  step: int,
) -> None:
  """Writes the configuration to model_dir/config.gin and to TensorBoard."""
  if jax.process_index() != 0:
    return
  config = get_gin_config_str()
  folder = epath.Path(model_dir)
  folder.mkdir(parents=True, exist_ok=True)
  # The file is renamed into place: a kill leaves the old file or the new one.
  temporary = folder / 'config.gin.tmp'
  temporary.write_text(config)
  os.replace(temporary, folder / 'config.gin')
  if summary_writer is not None:
    summary_writer.write_texts(step, {'config': gin.markdown(config)})
    summary_writer.flush()


def run(main) -> None:
  """Runs `main(argv)` with absl's flags, including --gin.NAME=VALUE."""
  app.run(
    main,
    flags_parser=lambda args: app.parse_flags_with_usage(
      list(rewrite_gin_args(args))
    ),
  )


# Functions for gin files, which have no operators of their own.


@gin.configurable
def sum_fn(var1=gin.REQUIRED, var2=gin.REQUIRED):
  """Returns var1 + var2."""
  return var1 + var2


@gin.configurable
def bool_fn(var1=gin.REQUIRED):
  """Returns bool(var1)."""
  return bool(var1)


@gin.configurable
def string_split_fn(
  text=gin.REQUIRED, separator=gin.REQUIRED, maxsplit=-1, index=None
):
  """Returns text.split(separator, maxsplit), or one element of it."""
  parts = text.split(separator, maxsplit)
  return parts if index is None else parts[index]
