"""A row that knows where it stands, so that what is wrong with it can be said."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from experiments.errors import UsageError
from experiments.tasks.lines import as_text


@dataclass(frozen=True)
class Row:
    """Named fields, from a line of a file or from a table of the hub.

    Attributes:
        fields: the values by their names.
        where: the row's place, as messages begin with it.
    """

    fields: Mapping[str, Any]
    where: str

    def __contains__(self, name: str) -> bool:
        return name in self.fields

    def value(self, name: str) -> Any:
        """A field's value.

        Args:
            name: the field's.

        Returns:
            The value, of any type.

        Raises:
            UsageError: there is no such field.
        """
        if name not in self.fields:
            found = ", ".join(map(repr, self.fields)) or "none"
            raise UsageError(f"{self.where}: there is no field {name!r}, but {found}; give {name!r}.")
        return self.fields[name]

    def text(self, name: str) -> str:
        """A field's value, which must be text."""
        return as_text(self.value(name), name, self.where)

    def inside(self, name: str) -> Row:
        """The object that a field holds."""
        return self._row(self.value(name), name)

    def each(self, name: str) -> list[Row]:
        """The objects that a field lists."""
        return [self._row(value, f"{name}[{index}]") for index, value in enumerate(self.items(name))]

    def items(self, name: str) -> list[Any]:
        """A field's value, which must be a list."""
        value = self.value(name)
        if not isinstance(value, list):
            raise UsageError(f"{self.where}: {name!r} is of type {type(value).__name__}; give a list.")
        return value

    def label(self, name: str, known: Sequence[Any]) -> int:
        """Which of the known labels a field holds.

        Args:
            name: the field's.
            known: the labels as the official files write them, in the order of the hub's numbers.

        Returns:
            The label's number; a field may also hold the number itself, as the hub's rows do.

        Raises:
            UsageError: it is none of them.
        """
        value = self.value(name)
        forms = [*known, *range(len(known))]
        for index, form in enumerate(forms):
            # By type too: true is no number of a class, though Python has True == 1.
            if type(value) is type(form) and value == form:
                return index % len(known)
        labels = ", ".join(dict.fromkeys(map(json.dumps, forms)))
        raise UsageError(f"{self.where}: {name!r} is {shown(value)}, which is no label; known are {labels}.")

    def _row(self, value: object, name: str) -> Row:
        if not isinstance(value, Mapping):
            raise UsageError(f"{self.where}: {name!r} is of type {type(value).__name__}; give an object.")
        return Row(value, f"{self.where}, in {name!r}")


def shown(value: object) -> str:
    """A value on one short line."""
    text = json.dumps(value, default=str)
    return text if len(text) <= 60 else text[:57] + "..."
