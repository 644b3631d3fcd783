"""What a user's file uses of T5X."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Use:
  """One use of a name.

  Attributes:
    name: the full name, for instance 't5x.utils.DatasetConfig'.
    file: the path of the file.
    line: the line, from 1.
    keywords: names of the arguments that the use passes or binds.
    positions: how many arguments it passes by position; None if it is no call,
      or passes *args or **kwargs.
    overrides: whether a user's class defines a method of this name.
  """

  name: str
  file: str
  line: int
  keywords: tuple[str, ...] = ()
  positions: int | None = None
  overrides: bool = False
