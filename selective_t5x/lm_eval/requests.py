"""Tokens of lm-evaluation-harness's requests.

The conventions are the harness's, as its models of Hugging Face follow them.
"""

import dataclasses
from collections.abc import Callable, Sequence

Tokens = tuple[int, ...]
Encode = Callable[[str], Sequence[int]]


@dataclasses.dataclass(frozen=True, order=True)
class Row:
  """What a model scores at once.

  Attributes:
    inputs: of an encoder, with their end; () for a decoder alone.
    context: the decoder's tokens before those that are scored, without the
      start token.
    scored: the tokens whose likelihood is wanted.
  """

  inputs: Tokens
  context: Tokens
  scored: Tokens


def split_pair(
  encode: Encode, context: str, continuation: str, *, together: bool
) -> tuple[Tokens, Tokens]:
  """Returns the tokens of a context and of its continuation.

  Spaces at the end of the context count to the continuation, since most
  vocabularies join a space with the word after it.

  Args:
    encode: text -> ids, without a start or an end.
    context: may be ''.
    continuation: the text after it.
    together: whether one sequence holds both (a decoder alone), so that a token
      may end the context and begin the continuation; it then counts to the
      context, as in the harness.
  """
  stripped = context.rstrip()
  continuation = context[len(stripped) :] + continuation
  before = tuple(encode(stripped)) if stripped else ()
  if not together:
    return before, tuple(encode(continuation)) if continuation else ()
  whole = tuple(encode(stripped + continuation))
  return whole[: len(before)], whole[len(before) :]


def windows(tokens: Sequence[int], length: int) -> list[tuple[Tokens, Tokens]]:
  """Cuts a document into (context, scored) pairs of at most `length` tokens.

  Each token is scored once. The first window has no context, the others begin
  with one token of the window before, and the last one is filled with context.

  Args:
    tokens: of the document.
    length: 2 or more.
  """
  tokens = tuple(tokens)
  pairs = []
  done = 0
  while done < len(tokens):
    end = min(len(tokens), length if not done else done + length - 1)
    start = max(0, end - length)
    pairs.append((tokens[start:done], tokens[done:end]))
    done = end
  return pairs


def cut_at(text: str, stops: Sequence[str]) -> str:
  """Returns a text up to the first of the stop texts in it."""
  ends = [text.find(stop) for stop in stops if stop]
  return text[: min((end for end in ends if end >= 0), default=len(text))]
