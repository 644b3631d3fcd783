"""The model `selective_t5x` of lm-evaluation-harness."""

import atexit
import contextlib
from collections.abc import Mapping, Sequence
from typing import Any

from lm_eval.api import model as harness
from lm_eval.api.instance import Instance
from lm_eval.api.registry import register_model
from tqdm import tqdm

from selective_t5x.errors import UserError, did_you_mean
from selective_t5x.lm_eval import text_model


@register_model('selective_t5x')
class SelectiveT5X(harness.LM):
  """A checkpoint of the suite: decoders and T5s, pruned caches included."""

  def __init__(
    self,
    checkpoint: str | None = None,
    gin_file: str | Sequence[str] = (),
    gin: str | Sequence[str] = (),
    rows: int = 8,
    max_gen_toks: int = 64,
    batch_size: int | str | None = None,
    device: str | None = None,
    max_batch_size: int | None = None,
    **unknown: Any,
  ):
    """Restores the checkpoint.

    Args:
      checkpoint: a checkpoint_N, or a run's folder for its latest checkpoint.
      gin_file: files after the run's configuration, a list or with ; between.
      gin: KEY=VALUE bindings, applied last, a list or with ; between.
      rows: number of rows that are computed at once.
      max_gen_toks: the most tokens of a continuation, where a task names no
        number.
      batch_size: not needed: all requests of a kind are computed `rows` at a
        time, in an order of the model's own.
      device: not read: JAX chooses it, and the harness's command always gives
        one.
      max_batch_size: not needed either.
      **unknown: refused.

    Raises:
      UserError: a setting is wrong, or there is no such checkpoint.
    """
    super().__init__()
    del max_batch_size, batch_size, device
    known = ('checkpoint', 'gin_file', 'gin', 'rows', 'max_gen_toks')
    for name in unknown:
      raise UserError(
        f'model_args: no setting {name!r}: expected one of {", ".join(known)}'
        f'{did_you_mean(name, known)}'
      )
    if checkpoint is None:
      raise UserError(
        'model_args: checkpoint is missing: checkpoint=results/d2'
      )
    self._most = max_gen_toks
    self._stack = contextlib.ExitStack()
    self.model = self._stack.enter_context(
      text_model.restored(
        str(checkpoint),
        gin_files=_listed(gin_file),
        gin_bindings=_listed(gin),
        rows=rows,
      )
    )
    atexit.register(self.close)

  def close(self) -> None:
    """Empties gin's configuration; the model cannot be used any more."""
    self._stack.close()

  def loglikelihood(
    self, requests: list[Instance], disable_tqdm: bool = False
  ) -> list[tuple[float, bool]]:
    """Returns (log-likelihood, is_greedy) of (context, continuation) pairs."""
    return self._answers(
      'loglikelihood', self.model.log_likelihoods, requests, disable_tqdm
    )

  def loglikelihood_rolling(
    self, requests: list[Instance], disable_tqdm: bool = False
  ) -> list[float]:
    """Returns the log-likelihoods of whole texts."""

    def scores(arguments, progress):
      return self.model.rolling_log_likelihoods(
        [text for (text,) in arguments], progress
      )

    return self._answers(
      'loglikelihood_rolling', scores, requests, disable_tqdm
    )

  def generate_until(
    self, requests: list[Instance], disable_tqdm: bool = False
  ) -> list[str]:
    """Returns greedy continuations of (context, settings) pairs."""

    def texts(arguments, progress):
      prompts = [
        (context, *_settings(settings, self._most))
        for context, settings in arguments
      ]
      return self.model.continuations(prompts, progress)

    return self._answers('generate_until', texts, requests, disable_tqdm)

  def _answers(self, kind, answer, requests, disable_tqdm):
    """Answers requests, and gives the answers to the harness's cache."""
    with tqdm(desc=f'{kind}, rows', disable=disable_tqdm) as bar:
      answers = answer([request.args for request in requests], bar.update)
    for request, result in zip(requests, answers, strict=True):
      self.cache_hook.add_partial(kind, request.args, result)
    return answers


def _listed(value: str | Sequence[str]) -> list[str]:
  """Returns a list of texts, from one with ; between them or from a list."""
  parts = value.split(';') if isinstance(value, str) else map(str, value)
  return [part.strip() for part in parts if part.strip()]


def _settings(settings: Mapping[str, Any], most: int) -> tuple[list[str], int]:
  """Returns (stop texts, the most tokens) of a request's settings.

  Raises:
    UserError: they ask for something other than greedy decoding.
  """
  settings = dict(settings)
  until = settings.pop('until', None) or []
  most = settings.pop('max_gen_toks', most)
  do_sample = settings.pop('do_sample', None)
  temperature = settings.pop('temperature', None)
  for name in ('top_k', 'top_p', 'min_p'):  # Only sampling reads them.
    settings.pop(name, None)
  sampled = temperature if do_sample is None else do_sample
  if sampled and temperature != 0:
    raise UserError(
      'the task samples (do_sample, temperature): expected greedy decoding, '
      'for instance --gen_kwargs do_sample=false,temperature=0'
    )
  for name, value in settings.items():
    if value not in (None, 1, 1.0, False):
      raise UserError(
        f'gen_kwargs: {name} = {value!r} is not available: expected until, '
        'max_gen_toks, and greedy decoding'
      )
  return [until] if isinstance(until, str) else list(until), most
