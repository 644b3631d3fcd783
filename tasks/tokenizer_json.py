"""A Hugging Face tokenizer.json as a seqio vocabulary.

    vocabularies.Choice.path = 'folder/tokenizer.json'

Its ids are those that the tokenizers library gives without special tokens, so
a model from Hugging Face reads text as it did there. Id 0 must be a special
token: seqio and T5X pad with it. The end of a sequence is the eos_token of a
tokenizer_config.json in the same folder, else what the tokenizer itself puts
after a text, else a token of a usual name.
"""

import dataclasses
import functools
import hashlib
import json
import pathlib
import re

import gin
import numpy as np
import seqio
import tensorflow as tf
import tokenizers

from selective_t5x.errors import UserError

FILE = 'tokenizer.json'
CONFIG_FILE = 'tokenizer_config.json'
_ENDS = ('</s>', '<eos>', '<|endoftext|>', '<|end_of_text|>', '[SEP]')
_SENTINEL = re.compile(r'▁?<extra_id_(\d+)>')


@dataclasses.dataclass(frozen=True)
class _Loaded:
  """What a file comes to.

  Attributes:
    tokenizer: with the sentinels, without padding and truncation.
    size: number of ids, sentinels included.
    eos_id: the end of a sequence.
    unk_id: unknown text; None if there is none.
    digest: of all that the ids depend on.
  """

  tokenizer: tokenizers.Tokenizer
  size: int
  eos_id: int
  unk_id: int | None
  digest: str


@gin.configurable(module='selective_t5x.tasks.tokenizer_json')
class TokenizerVocabulary(seqio.Vocabulary):
  """The vocabulary of a tokenizer.json; the file is read at first use.

  Two of them are equal if their ids are.
  """

  def __init__(self, path: str, extra_ids: int = 0):
    """Stores the arguments; reads nothing.

    Args:
      path: of the tokenizer.json.
      extra_ids: sentinels for span corruption, the last ids. They are added if
        the tokenizer has none.
    """
    self.path = str(pathlib.Path(path).expanduser().absolute())
    super().__init__(extra_ids)

  @property
  def _loaded(self) -> _Loaded:
    return _load(self.path, self.extra_ids)

  @property
  def tokenizer(self) -> tokenizers.Tokenizer:
    """The tokenizer, with the sentinels.

    Raises:
      UserError: it cannot be a vocabulary of seqio's.
    """
    return self._loaded.tokenizer

  @property
  def digest(self) -> str:
    """A text that differs between vocabularies with different ids."""
    return self._loaded.digest

  @property
  def vocab_size(self) -> int:
    """Number of ids, sentinels included."""
    return self._loaded.size

  @property
  def _base_vocab_size(self) -> int:
    return self.vocab_size

  @property
  def bos_id(self):
    """There is none: T5X's models start with id 0."""
    return None

  @property
  def eos_id(self) -> int:
    """Id of the end of a sequence."""
    return self._loaded.eos_id

  @property
  def unk_id(self) -> int | None:
    """Id of unknown text; None if every text has ids."""
    return self._loaded.unk_id

  def _encode(self, s: str) -> list[int]:
    return self.tokenizer.encode(s, add_special_tokens=False).ids

  def _decode(self, ids) -> str:
    unwritten = (self.pad_id, self.eos_id)
    return self.tokenizer.decode(
      [int(i) for i in ids if i not in unwritten], skip_special_tokens=False
    )

  def _encode_tf(self, s: tf.Tensor) -> tf.Tensor:
    def encode(text: bytes) -> np.ndarray:
      return np.asarray(self._encode(text.decode('utf-8', 'replace')), np.int32)

    ids = tf.numpy_function(encode, [s], tf.int32)
    ids.set_shape([None])
    return ids

  def _decode_tf(self, ids: tf.Tensor) -> tf.Tensor:
    def decode(rows: np.ndarray) -> np.ndarray:
      flat = rows.reshape(-1, rows.shape[-1])
      texts = [self._decode(row).encode() for row in flat]
      return np.array(texts, object).reshape(rows.shape[:-1])

    texts = tf.numpy_function(decode, [ids], tf.string)
    texts.set_shape(ids.shape[:-1])
    return texts

  def __eq__(self, other) -> bool:
    """Compares the ids that both give."""
    return (
      isinstance(other, TokenizerVocabulary)
      and self.extra_ids == other.extra_ids
      and self.digest == other.digest
    )

  def __str__(self) -> str:
    """Names the file."""
    return f'TokenizerVocabulary({self.path}, extra_ids={self.extra_ids})'


@functools.cache
def _load(path: str, extra_ids: int) -> _Loaded:
  """Reads a file.

  Raises:
    UserError: it is missing or no tokenizer, or cannot be a vocabulary of
      seqio's.
  """
  file = pathlib.Path(path)
  if not file.is_file():
    raise UserError(f'there is no file {path}')
  try:
    tokenizer = tokenizers.Tokenizer.from_file(path)
  except Exception as error:  # The library raises Exception itself.
    raise UserError(f'{path} is no tokenizer.json: {error}') from error
  tokenizer.no_padding()
  tokenizer.no_truncation()
  first = tokenizer.get_added_tokens_decoder().get(0)
  if first is None or not first.special:
    raise UserError(
      f'{path}: id 0 is {tokenizer.id_to_token(0)!r}, an ordinary token; '
      'expected a special one, such as <pad>: seqio and T5X pad with id 0'
    )
  eos_id = _eos_id(tokenizer, file)
  _add_sentinels(tokenizer, extra_ids, path)
  text = tokenizer.to_str()
  model = json.loads(text)['model']
  unk_id = model.get('unk_id')
  if unk_id is None and model.get('unk_token') is not None:
    unk_id = tokenizer.token_to_id(model['unk_token'])
  return _Loaded(
    tokenizer,
    _size(tokenizer),
    eos_id,
    unk_id,
    hashlib.sha256(f'{text} {eos_id}'.encode()).hexdigest()[:16],
  )


def sentinel_count(tokenizer: tokenizers.Tokenizer) -> int:
  """Returns how many of the last ids are sentinels, in T5's order."""
  size = _size(tokenizer)
  for number in range(size):
    match = _SENTINEL.fullmatch(tokenizer.id_to_token(size - 1 - number) or '')
    if match is None or int(match[1]) != number:
      return number
  return size


def _size(tokenizer: tokenizers.Tokenizer) -> int:
  """Returns the last id plus 1."""
  return max(tokenizer.get_vocab(with_added_tokens=True).values()) + 1


def _eos_id(tokenizer: tokenizers.Tokenizer, file: pathlib.Path) -> int:
  """Returns the id of the end of a sequence.

  Raises:
    UserError: there is none, or it is padding.
  """
  config = file.with_name(CONFIG_FILE)
  name = None
  if config.is_file():
    try:
      name = json.loads(config.read_bytes()).get('eos_token')
    except (ValueError, AttributeError) as error:
      raise UserError(f'{config}: not a JSON object') from error
  if isinstance(name, dict):
    name = name.get('content')
  if name is None:
    encoding = tokenizer.encode('a')
    if encoding.special_tokens_mask and encoding.special_tokens_mask[-1]:
      name = encoding.tokens[-1]
  names = (name,) if name is not None else _ENDS
  ids = [tokenizer.token_to_id(name) for name in names]
  ids = [i for i in ids if i is not None]
  if not ids or ids[0] == 0:
    raise UserError(
      f'{file}: no end of a sequence among its tokens (looked for '
      f'{", ".join(names)}); expected "eos_token" in {config}'
    )
  return ids[0]


def _add_sentinels(
  tokenizer: tokenizers.Tokenizer, extra_ids: int, path: str
) -> None:
  """Makes <extra_id_0> the last id, <extra_id_1> the one before, and so on.

  Raises:
    UserError: the tokenizer has sentinels elsewhere, or too few.
  """
  if not extra_ids:
    return
  if not any(map(_SENTINEL.fullmatch, tokenizer.get_vocab())):
    tokenizer.add_special_tokens(
      [f'<extra_id_{i}>' for i in reversed(range(extra_ids))]
    )
    return
  last = _size(tokenizer) - 1
  if sentinel_count(tokenizer) < extra_ids:
    raise UserError(
      f'{path}: expected its sentinels <extra_id_0> to <extra_id_'
      f'{extra_ids - 1}> to be the ids {last} down to {last - extra_ids + 1}'
    )
