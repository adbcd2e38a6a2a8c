"""How is a file read? TSV (no quoting, as GLUE's), CSV (standard quoting), JSON, JSON Lines and Parquet, all into columns."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from autoquant.core.errors import DataError

CSV_FIELD_CHARACTERS = 2**31 - 1  # of a text; csv's own limit is 128 KiB


@dataclass(frozen=True, eq=False)
class Table:
    """Named columns of equal length; `source` says in error messages where they come from."""

    source: str
    columns: Mapping[str, Sequence[object]]

    def __len__(self) -> int:
        return max((len(column) for column in self.columns.values()), default=0)

    def column(self, name: str) -> Sequence[object]:
        """The values of one column. Raises DataError with the columns there are."""
        if name not in self.columns:
            raise DataError(f"{self.source} has no column '{name}'; its columns are {', '.join(self.columns)}.")
        return self.columns[name]


def read_table(path: Path) -> Table:
    """Read one file by its suffix (a key of `READERS`); a byte-order mark and CRLF are fine, blank lines are skipped.

    Raises DataError if it is missing, empty, not UTF-8, ragged, or not of that format.
    """
    if path.suffix.lower() not in READERS:
        raise DataError(f"{path} is none of {', '.join(READERS)}: convert it to one of them.")
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"Cannot read {path}: {error.strerror}.") from error
    table = Table(str(path), READERS[path.suffix.lower()](content, str(path)))
    if not len(table):
        raise DataError(f"{path} is empty: no row of data in {len(content)} bytes.")
    return table


def _decode(content: bytes, source: str) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        byte = content[error.start]
        raise DataError(f"{source} is not UTF-8 (byte 0x{byte:02x} at {error.start}): save it as UTF-8.") from error


def _tsv(content: bytes, source: str) -> dict[str, list[object]]:
    lines = (line.removesuffix("\r") for line in _decode(content, source).split("\n"))
    return _columns(((number, line.split("\t")) for number, line in enumerate(lines, 1) if line), source)


def _csv(content: bytes, source: str) -> dict[str, list[object]]:
    csv.field_size_limit(CSV_FIELD_CHARACTERS)
    reader = csv.reader(io.StringIO(_decode(content, source), newline=""), strict=True)
    try:
        return _columns(((reader.line_num, cells) for cells in reader if cells), source)
    except csv.Error as error:
        raise DataError(f"{source} line {reader.line_num} is malformed CSV ({error}): check the quotes.") from error


def _columns(rows: Iterator[tuple[int, list[str]]], source: str) -> dict[str, list[object]]:
    """Rows of (line number, cells), the header first, into columns."""
    _, header = next(rows, (0, []))
    repeated = sorted({name for name in header if header.count(name) > 1})
    if repeated:
        raise DataError(f"{source} has the column '{repeated[0]}' twice: rename one.")
    columns: list[list[object]] = [[] for _ in header]
    for number, cells in rows:
        if len(cells) != len(header):
            raise DataError(
                f"{source} line {number} has {len(cells)} columns, not the header's {len(header)}: check the separators."
            )
        for column, cell in zip(columns, cells, strict=True):
            column.append(cell)
    return dict(zip(header, columns, strict=True))


def _json(content: bytes, source: str) -> dict[str, list[object]]:
    """A list of objects; JSON Lines under the suffix .json, as many tools write it, is read as such."""
    text = _decode(content, source)
    if not text.lstrip().startswith("["):
        return _json_lines(content, source)
    try:
        return _records(enumerate(json.loads(text), 1), source)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{source} is malformed JSON: {error}.") from error


def _json_lines(content: bytes, source: str) -> dict[str, list[object]]:
    records = []
    for number, line in enumerate(_decode(content, source).split("\n"), 1):
        if line.strip():
            try:
                records.append((number, json.loads(line)))
            except (ValueError, RecursionError) as error:
                raise DataError(f"{source} line {number} is malformed JSON: {error}.") from error
    return _records(records, source)


def _records(numbered: Iterable[tuple[int, object]], source: str) -> dict[str, list[object]]:
    """Objects into columns; a key that an object lacks is None there."""
    records = []
    for number, record in numbered:
        if not isinstance(record, dict):
            raise DataError(f'{source} record {number} is not an object: write {{"column": value, ...}} for every row.')
        records.append(record)
    names = dict.fromkeys(name for record in records for name in record)
    return {name: [record.get(name) for record in records] for name in names}


def _parquet(content: bytes, source: str) -> dict[str, list[object]]:
    import pyarrow
    import pyarrow.parquet

    try:
        return pyarrow.parquet.read_table(pyarrow.BufferReader(content)).to_pydict()
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{source} is not a Parquet file: {' '.join(str(error).split())}.") from error


READERS: dict[str, Callable[[bytes, str], Mapping[str, Sequence[object]]]] = {
    ".tsv": _tsv,
    ".csv": _csv,
    ".json": _json,
    ".jsonl": _json_lines,
    ".parquet": _parquet,
}
