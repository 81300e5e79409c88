"""What every analysis returns: frozen arrays with their units, as plain data, JSON or CSV."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import fields
from os import PathLike
from typing import Any, ClassVar, get_type_hints

import numpy as np
from ase.data import chemical_symbols

from kqeq.io.atomic_write import atomic_path

_AXES = ("x", "y", "z")


class Result:
    """Base of the results: dataclasses whose fields carry units.

    A unit is an annotation, ``energy: Annotated[float, "eV"]``; pure numbers have none.  Subclasses name in ``rows``
    the field whose entries are the rows of a CSV table; every field of that length becomes a column, or several.
    """

    rows: ClassVar[str] = ""

    @classmethod
    def units(cls) -> dict[str, str]:
        """Unit of every field."""
        hints = get_type_hints(cls, include_extras=True)
        return {f.name: "".join(getattr(hints[f.name], "__metadata__", ())) for f in fields(cls)}  # type: ignore[arg-type]

    def to_dict(self) -> dict[str, Any]:
        """Plain data: lists, numbers and strings by field name, and ``units``."""
        data = {f.name: plain(getattr(self, f.name)) for f in fields(self)}  # type: ignore[arg-type]
        return {**data, "units": {name: unit for name, unit in self.units().items() if unit}}

    def to_json(self, path: str | PathLike[str]) -> None:
        """Write :meth:`to_dict` as JSON, atomically.

        Raises
        ------
        InputError
            If the path cannot be written.
        """
        text = json.dumps(self.to_dict(), indent=1, ensure_ascii=False, allow_nan=False)
        with atomic_path(path) as temporary:
            temporary.write_text(text + "\n", encoding="utf-8")

    def to_csv(self, path: str | PathLike[str]) -> None:
        """Write the table as CSV, atomically; what does not fit into it stands in lines that begin with ``#``.

        Raises
        ------
        InputError
            If the path cannot be written.
        """
        units = self.units()
        length = len(getattr(self, self.rows))
        columns: dict[str, Any] = {}
        notes = []
        for f in fields(self):  # type: ignore[arg-type]
            value, unit = getattr(self, f.name), units[f.name]
            if value is None:
                continue
            array = np.asarray(value)
            if array.ndim == 0 or len(array) != length or array.dtype == object:
                shown = json.dumps(plain(value), ensure_ascii=False)
                notes.append(f"# {f.name} = {shown}{' ' + unit if unit else ''}")
                continue
            for index in np.ndindex(array.shape[1:]):
                column = array[(slice(None), *index)]
                columns[_heading(f.name, array.shape[1:], index, unit)] = column
        if "numbers" in columns:
            numbers = columns.pop("numbers")
            columns = {"element": [chemical_symbols[z] for z in numbers], **columns}
        table = io.StringIO()
        writer = csv.writer(table, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(zip(*(plain(column) for column in columns.values()), strict=True))
        with atomic_path(path) as temporary:
            temporary.write_text("".join(f"{note}\n" for note in notes) + table.getvalue(), encoding="utf-8")


def _heading(name: str, shape: tuple[int, ...], index: tuple[int, ...], unit: str) -> str:
    """For example ``forces_0_x (eV/Å)``: the last axes of length three are Cartesian, the others are counted."""
    parts = [_AXES[i] if size == 3 else str(i) for size, i in zip(shape, index, strict=True)]
    heading = "_".join([name, *parts])
    return f"{heading} ({unit})" if unit else heading


def plain(value: Any) -> Any:
    """Arrays as lists, NumPy numbers as Python's, results as dictionaries."""
    if isinstance(value, Result):
        return value.to_dict()
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    return value


__all__ = ["Result", "plain"]
