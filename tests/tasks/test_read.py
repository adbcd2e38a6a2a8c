"""The same rows from every format, and one line of complaint for every broken file."""

import json
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from autoquant.core.errors import DataError
from autoquant.tasks.read import read_table

ROWS = [{"sentence": 'a "quoted" one', "label": 1}, {"sentence": "naïve, with commas", "label": 0}]

WRITERS: dict[str, Callable[[Path], object]] = {
    "d.tsv": lambda path: path.write_text(
        "sentence\tlabel\n" + "".join(f"{r['sentence']}\t{r['label']}\n" for r in ROWS), "utf-8"
    ),
    "d.csv": lambda path: pd.DataFrame(ROWS).to_csv(path, index=False),
    "d.json": lambda path: path.write_text(json.dumps(ROWS), "utf-8"),
    "d.jsonl": lambda path: path.write_text("\n".join(map(json.dumps, ROWS)), "utf-8"),
    "d.parquet": lambda path: pd.DataFrame(ROWS).to_parquet(path),
}


@pytest.mark.parametrize("name", WRITERS)
def test_every_format_gives_the_same_columns(tmp_path: Path, name: str) -> None:
    WRITERS[name](tmp_path / name)
    table = read_table(tmp_path / name)
    assert list(table.column("sentence")) == [row["sentence"] for row in ROWS]
    assert [str(label) for label in table.column("label")] == ["1", "0"]
    assert len(table) == 2


@pytest.mark.parametrize("name", ["d.tsv", "d.csv", "d.json", "d.jsonl"])
def test_bom_and_crlf_are_tolerated(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    WRITERS[name](path)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n") + b"\r\n")
    table = read_table(path)
    assert list(table.columns) == ["sentence", "label"]
    assert [str(label) for label in table.column("label")] == ["1", "0"]


def test_tsv_quotes_are_text_and_csv_quotes_are_syntax(tmp_path: Path) -> None:
    (tmp_path / "d.tsv").write_text('text\tlabel\n" unbalanced\t1\n', "utf-8")
    (tmp_path / "d.csv").write_text('text,label\n"two\nlines",1\n', "utf-8")
    assert read_table(tmp_path / "d.tsv").column("text") == ['" unbalanced']
    assert read_table(tmp_path / "d.csv").column("text") == ["two\nlines"]


def test_a_csv_text_may_be_as_long_as_a_book(tmp_path: Path) -> None:
    long = "word " * 40_000
    (tmp_path / "d.csv").write_text(f"text,label\n{long},1\n", "utf-8")
    assert read_table(tmp_path / "d.csv").column("text") == [long]


def test_json_lines_under_the_name_json(tmp_path: Path) -> None:
    (tmp_path / "d.json").write_text('{"a": 1}\n{"b": 2}\n', "utf-8")
    assert read_table(tmp_path / "d.json").columns == {"a": [1, None], "b": [None, 2]}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("d.tsv", b"", "is empty: no row of data in 0 bytes"),
        ("d.tsv", b"text\tlabel\n", "is empty"),
        ("d.csv", b"text,label\r\n", "is empty"),
        ("d.json", b"[]", "is empty"),
        ("d.json", b"", "is empty"),
        ("d.jsonl", b"\n\n", "is empty"),
        ("d.tsv", b"text\tlabel\na\t1\nb\n", "line 3 has 1 columns, not the header's 2"),
        ("d.csv", b"text,label\na,b,1\n", "line 2 has 3 columns, not the header's 2"),
        ("d.csv", b'text,label\n"open,1\n', "malformed CSV"),
        ("d.csv", b"text,text\na,b\n", "the column 'text' twice"),
        ("d.tsv", b"text\tlabel\n\xff\xfe\t1\n", "not UTF-8 .byte 0xff at 11."),
        ("d.json", b'[{"a": 1},', "malformed JSON"),
        ("d.json", b'["a"]', "record 1 is not an object"),
        ("d.jsonl", b'{"a": 1}\n{"a": \n', "line 2 is malformed JSON"),
        ("deep.json", b"[" * 100_000, "malformed JSON"),
        ("deep.jsonl", b'{"a": ' * 100_000, "line 1 is malformed JSON"),
        ("d.jsonl", b'{"a": 1}\n\n3\n', "record 3 is not an object"),
        ("d.parquet", b"PAR1 no, it is not", "not a Parquet file"),
        ("d.parquet", b"", "not a Parquet file"),
        ("d.xlsx", b"PK", r"none of \.tsv, \.csv"),
    ],
)
def test_broken_files(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        read_table(tmp_path / name)
    assert "\n" not in str(caught.value)


def test_a_missing_file_and_a_folder(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="No such file"):
        read_table(tmp_path / "absent.csv")
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(DataError, match="Is a directory"):
        read_table(tmp_path / "folder.csv")


def test_an_unknown_column_lists_what_is_there(tmp_path: Path) -> None:
    WRITERS["d.csv"](tmp_path / "d.csv")
    with pytest.raises(DataError, match="no column 'txt'; its columns are sentence, label"):
        read_table(tmp_path / "d.csv").column("txt")
