"""What every reader of a list returns: the user's columns, under the user's names."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pyarrow as pa

from ajepa.audio.class_table import ClassTable


@dataclass(frozen=True)
class UserList:
    """A list whose columns are not read yet, so that those nobody needs never are."""

    names: list[str]  # of its columns, as they stand there
    read: Callable[[Sequence[str]], pa.Table]  # these columns of all rows
    label_separator: str = ";"  # between the labels in one text
    decimal_comma: bool = False  # numbers may be texts as "1,5"
    classes: ClassTable | None = None  # labels are ids of these, and become their names
    remarks: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()  # what it lists and nothing here can read
