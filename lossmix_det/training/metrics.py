"""Numbers of a run by step, as files."""

from __future__ import annotations

import csv
import io
import json
import logging
import math
from pathlib import Path

from lossmix_det.errors import first_line
from lossmix_det.files import set_aside, write_atomically

log = logging.getLogger(__name__)


class MetricsFile:
    """Rows of numbers by step: a CSV that grows with the run, and a JSON at every checkpoint.

    Args:
        path: of the CSV.
        resume_at: rows after this step are dropped, because those steps will run again.
    """

    def __init__(self, path: Path, resume_at: int = 0) -> None:
        self.path = path
        self.rows = [row for row in _read_rows(path) if row["step"] <= resume_at] if resume_at else []
        self.columns = list(dict.fromkeys(name for row in self.rows for name in row))
        write_atomically(path, self._text(self.rows, header=True) if self.rows else "")

    def add(self, row: dict[str, float]) -> None:
        """Append one row; a new name becomes a new column, and a second row of the same step is merged into the first.

        Args:
            row: numbers by name, ``step`` among them.
        """
        again = bool(self.rows) and self.rows[-1]["step"] == row["step"]
        row = {**self.rows[-1], **row} if again else row
        self.rows = [*self.rows[:-1], row] if again else [*self.rows, row]
        if set(row) <= set(self.columns) and not again:
            with open(self.path, "a", encoding="utf-8") as file:
                file.write(self._text([row]))
        else:
            self.columns += [name for name in row if name not in self.columns]
            write_atomically(self.path, self._text(self.rows, header=True))

    def write_json(self) -> None:
        """Write all rows as JSON beside the CSV, what is no finite number as null."""
        rows = [{k: value if math.isfinite(value) else None for k, value in row.items()} for row in self.rows]
        write_atomically(self.path.with_suffix(".json"), json.dumps(rows, indent=1) + "\n")

    def _text(self, rows: list[dict[str, float]], header: bool = False) -> str:
        text = io.StringIO()
        writer = csv.DictWriter(text, self.columns, lineterminator="\n")
        if header:
            writer.writeheader()
        writer.writerows(rows)
        return text.getvalue()


def _read_rows(path: Path) -> list[dict[str, float]]:
    if not path.is_file():
        return []
    try:
        with open(path, encoding="utf-8") as file:
            # A truncated line has fewer cells, or a cell that is no number; its step will run again.
            rows = [_numbers(row) for row in csv.DictReader(file)]
    except (UnicodeDecodeError, csv.Error) as error:
        log.warning("%s cannot be read (%s); it is kept as %s", path, first_line(error), set_aside(path).name)
        return []
    return [row for row in rows if row]


def _numbers(row: dict[str, str | None]) -> dict[str, float]:
    try:
        cells = {name: float(cell) for name, cell in row.items() if cell}
        return {**cells, "step": int(cells["step"])}
    except (ValueError, KeyError, TypeError, OverflowError):  # the last two: more cells than columns; an endless step
        return {}
