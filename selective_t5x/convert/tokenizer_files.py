"""Writes the tokenizer of a Hugging Face folder from a run's vocabulary.

transformers' T5Tokenizer builds T5's own pipeline around the pieces: it splits
at white space and knows no bytes. A model that was trained otherwise, as those
of the suite are, gets a tokenizer.json that says how. Either is compared with
SentencePiece itself before it is written for good.
"""

import json
import os
import pathlib
import shutil
from typing import Any

from selective_t5x.convert import vocabulary
from selective_t5x.errors import UserError
from selective_t5x.runs.files import write_json

_FAST = 'PreTrainedTokenizerFast'
_SPECIAL = {'pad_token': '<pad>', 'eos_token': '</s>', 'unk_token': '<unk>'}
# Spaces, lines, accents, other scripts, an emoji of two code points.
_TEXTS = (
  'The quick brown fox jumps over the lazy dog, 1234567890 times.',
  'translate English to German: That is good.',
  '  two  spaces, a\ttab\nand lines\n\nin between ',
  'Émile naïvely asked: « où est l’été? »',
  'Привет, мир. 你好，世界。 こんにちは 안녕 مرحبا',
  'x = {"a": [1, 2.5e-3]}; # 😀👍🏽',
  '',
)


def write(
  folder: pathlib.Path, pieces: vocabulary.Pieces, begin: int | None = None
) -> str:
  """Writes the tokenizer files; returns the class of the tokenizer.

  Args:
    folder: an existing folder.
    pieces: the vocabulary.
    begin: the id that a decoder's texts begin with, and then have no end; None:
      a T5's texts, which end with the end of a sequence.

  Raises:
    UserError: transformers gives a text other ids than SentencePiece does.
  """
  if pieces.is_tokenizer:
    return _write_tokenizer(folder, pieces, begin)
  shutil.copyfile(pieces.path, folder / vocabulary.PIECES_FILE)
  if begin is None:
    config = {
      **_SPECIAL,
      'extra_ids': pieces.extra_ids,
      'tokenizer_class': 'T5Tokenizer',
    }
    write_json(folder / vocabulary.TOKENIZER_CONFIG_FILE, config)
    if _first_difference(folder, pieces, begin) is None:
      return 'T5Tokenizer'
  config = {**_SPECIAL, 'tokenizer_class': _FAST}
  write_json(folder / vocabulary.TOKENIZER_CONFIG_FILE, config)
  tokenizer = _tokenizer(pieces, begin)
  (folder / vocabulary.TOKENIZER_FILE).write_text(
    tokenizer.to_str(pretty=True), encoding='utf-8'
  )
  differs = _first_difference(folder, pieces, begin)
  if differs is not None:
    text, ours, theirs = differs
    raise UserError(
      f'{pieces.path}: transformers would read {json.dumps(text)} as {theirs}, '
      f'and SentencePiece as {ours}: give --vocabulary={vocabulary.NONE} to '
      'export without a tokenizer'
    )
  return _FAST


def _write_tokenizer(folder, pieces, begin) -> str:
  """Writes the tokenizer.json of a run, with the sentinels that it got."""
  run_vocabulary = pieces.vocabulary()
  tokenizer = run_vocabulary.tokenizer
  if begin is not None:
    text = json.loads(tokenizer.to_str())
    tokenizer = type(tokenizer).from_str(json.dumps(text))  # Not the run's.
    tokenizer.post_processor = _beginning(tokenizer.id_to_token(begin), begin)
  tokenizer.save(str(folder / vocabulary.TOKENIZER_FILE))
  ids = {'pad_token': 0, 'eos_token': pieces.eos_id}
  if run_vocabulary.unk_id is not None:
    ids['unk_token'] = run_vocabulary.unk_id
  config = {name: tokenizer.id_to_token(i) for name, i in ids.items()}
  config['tokenizer_class'] = _FAST
  write_json(folder / vocabulary.TOKENIZER_CONFIG_FILE, config)
  return _FAST


def _first_difference(
  folder, pieces, begin
) -> tuple[str, list[int], list[int]] | None:
  """Returns a text and the ids of SentencePiece and of transformers."""
  # Where PyTorch is missing, as in most installations here, it says so.
  os.environ.setdefault('TRANSFORMERS_VERBOSITY', 'error')
  import transformers

  processor = vocabulary.load(pieces.path)
  tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
  for text in _TEXTS:
    ours = processor.encode(text)
    ours = [*ours, pieces.eos_id] if begin is None else [begin, *ours]
    theirs = tokenizer(text).input_ids
    if ours != theirs:
      return text, ours, theirs
  for number in range(pieces.extra_ids):
    ours = pieces.size - 1 - number
    theirs = tokenizer.convert_tokens_to_ids(f'<extra_id_{number}>')
    if ours != theirs:
      return f'<extra_id_{number}>', [ours], [theirs]
  return None


def _beginning(name: str, begin: int) -> Any:
  """Returns a processor that puts a token before every text."""
  from tokenizers import processors

  return processors.TemplateProcessing(
    single=f'{name} $A',
    pair=f'{name} $A $B',
    special_tokens=[(name, begin)],
  )


def _tokenizer(pieces: vocabulary.Pieces, begin: int | None) -> Any:
  """Returns a `tokenizers.Tokenizer` that does what SentencePiece does."""
  import tokenizers
  from sentencepiece import sentencepiece_model_pb2
  from tokenizers import decoders, models, normalizers, processors

  proto = sentencepiece_model_pb2.ModelProto.FromString(
    pieces.path.read_bytes()
  )
  unigram = proto.trainer_spec.UNIGRAM
  if proto.trainer_spec.model_type != unigram:
    raise UserError(
      f'{pieces.path} is no unigram model, which alone tokenizers has: '
      f'give --vocabulary={vocabulary.NONE} to export without a tokenizer'
    )
  sentinels = [f'<extra_id_{i}>' for i in reversed(range(pieces.extra_ids))]
  scores = [(piece.piece, piece.score) for piece in proto.pieces]
  scores += [(sentinel, 0.0) for sentinel in sentinels]
  normal = proto.normalizer_spec
  steps = []
  if normal.precompiled_charsmap:
    steps.append(normalizers.Precompiled(normal.precompiled_charsmap))
  if normal.remove_extra_whitespaces:
    steps += [
      normalizers.Strip(),
      normalizers.Replace(tokenizers.Regex(' {2,}'), ' '),
    ]
  if normal.add_dummy_prefix:
    steps.append(normalizers.Prepend(' '))
  steps.append(normalizers.Replace(' ', '▁'))
  tokenizer = tokenizers.Tokenizer(
    models.Unigram(
      scores,
      unk_id=proto.trainer_spec.unk_id,
      byte_fallback=proto.trainer_spec.byte_fallback,
    )
  )
  tokenizer.normalizer = normalizers.Sequence(steps)
  tokenizer.decoder = decoders.Sequence(
    [
      decoders.Replace('▁', ' '),
      decoders.ByteFallback(),
      decoders.Fuse(),
      *([decoders.Strip(' ', 1, 0)] if normal.add_dummy_prefix else []),
    ]
  )
  names = [proto.pieces[i].piece for i in (0, pieces.eos_id)]
  tokenizer.add_special_tokens([*names, *sentinels])
  if begin is not None:
    tokenizer.post_processor = _beginning(proto.pieces[begin].piece, begin)
    return tokenizer
  tokenizer.post_processor = processors.TemplateProcessing(
    single=f'$A {names[1]}',
    pair=f'$A {names[1]} $B {names[1]}',
    special_tokens=[(names[1], pieces.eos_id)],
  )
  return tokenizer
