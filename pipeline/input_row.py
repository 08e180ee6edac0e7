"""What an output row holds of its input, wherever the job has put it."""

from collections.abc import Mapping
from typing import Any


class InputRow:
    """The input's part of an output row."""

    def __init__(self, row: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
        """Args: the output row by columns, and the job's settings."""
        self._row = row
        self._roles: Mapping[str, str] = settings.get("columns") or {}
        self._rename: Mapping[str, str] = settings.get("rename") or {}

    @property
    def custom_id(self) -> str | None:
        """The user's own id."""
        found = self.value("custom_id")
        return None if found is None else str(found)

    def value(self, role: str) -> Any:
        """The value of the column that plays a role; None if none does."""
        name = self._roles.get(role, role)
        return self.column(name) if name else None

    def has(self, name: str) -> bool:
        """Whether the input has a column of this name."""
        name = self._rename.get(name, name)
        return name in self._row or f"param_{name}" in self._row

    def column(self, name: str) -> Any:
        """The value of a column, by its name in the input."""
        name = self._rename.get(name, name)
        return self._row.get(name, self._row.get(f"param_{name}"))
