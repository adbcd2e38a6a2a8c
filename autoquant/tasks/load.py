"""Where do the texts and labels come from? GLUE (local files or the hub), any two files, or the embedded movie reviews."""

from __future__ import annotations

import dataclasses
import math
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from autoquant.assets import default_data
from autoquant.core.errors import DataError
from autoquant.tasks.data import TaskData, TextData
from autoquant.tasks.read import READERS, Table, read_table
from autoquant.tasks.task import ACCURACY, CORRELATIONS, GLUE_HUB, MOVIES, TASKS, Task

Text = str | tuple[str, str]
Row = tuple[Text, str | int | float]  # (text, label) or ((text, text), label)

SMALLEST_TRAIN = 20  # rows; below this there is nothing to learn or hold out
HUB_SECONDS = 5.0  # how long to wait for a sign of life
EVALUATION_SHARE, VALIDATION_SHARE = 0.15, 0.2  # of the movie reviews, and of what remains of them
WHOLE = re.compile(r"([+-]?\d+)\.0*")  # a whole number written with a point
NEUTRAL = 0.5  # movie reviews whose mean score is closer to 0 than this belong to neither class


def load_glue(name: str, data_dir: Path | None = None) -> TaskData:
    """A GLUE task with its training and validation rows (matched, for MNLI).

    From `data_dir` or the environment variable AUTOQUANT_GLUE: a folder that has the task's folder (`SST-2`, `sst2`), or is
    it, with `train.*` and `dev.*` or `validation.*` (tsv, csv, json, jsonl, parquet); labels are class indices or GLUE's
    names. Otherwise from the hub through `datasets`. Raises DataError.
    """
    if name not in TASKS:
        raise DataError(f"Unknown task '{name}': choose from {', '.join(TASKS)}, or give --train-file and --eval-file.")
    task = TASKS[name]
    folder = data_dir or os.environ.get("AUTOQUANT_GLUE")
    train, evaluation = _local_tables(task, Path(folder)) if folder else _hub_tables(task)
    if task.classes is None:
        return _regression(task, train, evaluation)
    by_name = {label: index for index, label in enumerate(task.label_names)}
    by_number = {str(index): index for index in range(task.classes)}
    return _classification(task, train, evaluation, by_name | by_number)


def load_files(train_file: Path, eval_file: Path, text_columns: tuple[str, ...], label_column: str) -> TaskData:
    """Any text classification or regression: one or two text columns and a label column in two files.

    Labels that are numbers, not all whole, make it a regression (Pearson, Spearman); otherwise the classes are the different
    labels of the training file, sorted, and the metric is accuracy. Raises DataError.
    """
    if len(text_columns) not in (1, 2):
        raise DataError(f"{len(text_columns)} text columns given: name one, or two for pairs of texts.")
    if len({*text_columns, label_column}) <= len(text_columns):
        raise DataError(f"A column is given twice ({', '.join((*text_columns, label_column))}): texts and label need their own.")
    return _infer_task(read_table(train_file), read_table(eval_file), text_columns, label_column)


def with_texts(data: TaskData, texts: str | Path | Iterable[Text]) -> TaskData:
    """The same with further, unlabelled texts: of a file, in the task's columns, or in memory. Raises DataError."""
    table = read_table(Path(texts)) if isinstance(texts, str | Path) else _text_table(list(texts), data.task)
    return dataclasses.replace(data, unlabelled=_with_texts(data.task, table, np.zeros(len(table), dtype=np.int64)))


def _text_table(texts: Sequence[Text], task: Task) -> Table:
    names, wanted = task.text_columns, "texts" if len(task.text_columns) == 1 else "pairs of texts"
    rows = [(text,) if isinstance(text, str) else tuple(text) for text in texts]
    if not rows or any(len(row) != len(names) for row in rows):
        raise DataError(f"more_texts takes a non-empty list of {wanted}, as the task has them.")
    return Table("more_texts", dict(zip(names, zip(*rows, strict=True), strict=True)))


def from_rows(train: Iterable[Row], evaluation: Iterable[Row]) -> TaskData:
    """The same for rows in memory: (text, label) or ((text, text), label). Raises DataError."""
    tables = [_row_table(list(rows), source) for rows, source in ((train, "train"), (evaluation, "evaluation"))]
    names = tuple(name for name in tables[0].columns if name != "label")
    if tables[1].columns.keys() != tables[0].columns.keys():
        raise DataError("One of train and evaluation has pairs of texts, the other single ones: give both alike.")
    return _infer_task(tables[0], tables[1], names, "label")


def _row_table(rows: Sequence[Row], source: str) -> Table:
    if not rows:
        raise DataError(f"{source} is empty: give rows (text, label) or ((text, text), label).")
    try:
        texts = [(text,) if isinstance(text, str) else tuple(text) for text, _ in rows]
        columns = dict(zip(("text", "text_pair")[: len(texts[0])], zip(*texts, strict=True), strict=True))
    except (TypeError, ValueError) as error:
        raise DataError(f"{source} must be rows (text, label) or ((text, text), label).") from error
    return Table(source, {**columns, "label": [label for _, label in rows]})


def _infer_task(train: Table, evaluation: Table, text_columns: tuple[str, ...], label_column: str) -> TaskData:
    names = _class_names(train, label_column)
    if names is None:
        return _regression(Task("files", text_columns, label_column, None, "pearson", CORRELATIONS), train, evaluation)
    if 2 * len(names) > len(train) >= SMALLEST_TRAIN:
        raise DataError(f"{train.source}: '{label_column}' has {len(names)} values in {len(train)} rows: is it the label?")
    task = Task("files", text_columns, label_column, len(names), "accuracy", ACCURACY, names)
    return _classification(task, train, evaluation, {name: index for index, name in enumerate(names)})


def load_default() -> TaskData:
    """The embedded movie reviews as a task: train and validation of `load_movies` together are its training rows,
    since whoever trains holds out a part of them again (`TextData.split`, which gives the same two parts)."""
    training, evaluation = _movies()
    return TaskData(MOVIES, training, evaluation, MOVIES.label_names)


def load_movies() -> tuple[TextData, TextData, TextData]:
    """The embedded movie reviews: train (68 %), validation (17 %) and evaluation (15 %) rows, by hash of the text.

    Classes are negative and positive: a mean human score of at most -0.5, or at least 0.5. Raises AssetError.
    """
    training, evaluation = _movies()
    return *training.split(VALIDATION_SHARE), evaluation


def _movies() -> tuple[TextData, TextData]:
    """The file has lines of id, mean score from -4 to 4, and text, separated by tabs."""
    lines = default_data().read_text("utf-8").splitlines()
    rows = [(float(score), text.strip()) for _, score, text in (line.split("\t") for line in lines)]
    clear = [(score, text) for score, text in rows if abs(score) >= NEUTRAL]
    labels = np.array([score > 0 for score, _ in clear], dtype=np.int64)
    return TextData(tuple(text for _, text in clear), None, labels).split(EVALUATION_SHARE, salt="evaluation")


def _local_tables(task: Task, data_dir: Path) -> tuple[Table, Table]:
    if not data_dir.is_dir():
        raise DataError(f"No folder {data_dir}: give --data-dir (or AUTOQUANT_GLUE) a folder with {task.name}'s files.")
    inside = [path for path in sorted(data_dir.iterdir()) if path.is_dir() and _plain(path) == task.name]
    if not inside and _plain(data_dir.resolve()) in set(TASKS) - {task.name}:
        raise DataError(
            f"{data_dir} is the folder of {_plain(data_dir.resolve())}, not {task.name}: check --data-dir and --task."
        )
    folder = (inside or [data_dir])[0]
    local_name = task.evaluation.replace("validation", "dev")
    return _read_first(folder, ("train",)), _read_first(folder, (local_name, task.evaluation))


def _plain(folder: Path) -> str:
    """The name of a task's folder as the table spells it: SST-2 -> sst2."""
    return folder.name.lower().replace("-", "").replace("_", "")


def _read_first(folder: Path, stems: tuple[str, ...]) -> Table:
    paths = [folder / f"{stem}{suffix}" for stem in stems for suffix in READERS]
    for path in paths:
        if path.is_file():
            return read_table(path)
    raise DataError(f"No {' or '.join(stems)} file in {folder}: add one ending in {', '.join(READERS)}.")


def _hub_tables(task: Task) -> tuple[Table, Table]:
    """Both splits through `datasets`. Asks the hub for a sign of life first, since `datasets` retries for half a minute."""
    import datasets
    import huggingface_hub

    remedy = f"give --data-dir a folder with {task.name}'s files, or HF_HUB_OFFLINE=1 to use what datasets has cached"
    try:
        if not datasets.config.HF_HUB_OFFLINE:
            huggingface_hub.HfApi().dataset_info(GLUE_HUB, timeout=HUB_SECONDS)
        parts = datasets.load_dataset(GLUE_HUB, task.hub_config, split=["train", task.evaluation])
    except Exception as error:  # whatever the network, the hub or the cache raises, the remedy is the same
        reason = " ".join(str(error).split())[:160] or type(error).__name__
        raise DataError(f"Cannot load {GLUE_HUB} {task.hub_config} from the hub ({reason}): {remedy}.") from error
    train, evaluation = (Table(f"{GLUE_HUB} {task.hub_config} {part.split}", part.to_dict()) for part in parts)
    return train, evaluation


def _classification(task: Task, train: Table, evaluation: Table, index: Mapping[str, int]) -> TaskData:
    """`index` maps a label as written to its class."""
    parts = [_with_texts(task, table, _class_labels(table, task.label_column, index)) for table in (train, evaluation)]
    check_training(parts[0].labels, train.source)
    return TaskData(task, parts[0], parts[1], task.label_names)


def _regression(task: Task, train: Table, evaluation: Table) -> TaskData:
    parts = [_with_texts(task, table, _numeric_labels(table, _label_column(task, table))) for table in (train, evaluation)]
    check_training(parts[0].labels, train.source)
    return TaskData(task, parts[0], parts[1], ())


def check_training(labels: np.ndarray, source: str) -> None:
    """Raise DataError unless there is something to learn from the rows with these labels: enough of them, and not all alike."""
    if len(labels) < SMALLEST_TRAIN:
        raise DataError(f"{source} has {len(labels)} rows: training takes at least {SMALLEST_TRAIN}.")
    if len(np.unique(labels)) < 2:
        raise DataError(f"{source}: all {len(labels)} rows have the same label: training takes at least two different ones.")


def _label_column(task: Task, table: Table) -> str:
    """STS-B's own files call `score` what the hub calls `label`."""
    return "score" if task.name == "stsb" and task.label_column not in table.columns else task.label_column


def _with_texts(task: Task, table: Table, labels: np.ndarray) -> TextData:
    """The texts, stripped, beside `labels`. One text of a pair may be blank (QQP has such rows), not both."""
    columns = [_texts(table, name) for name in task.text_columns]
    blank = [row for row, texts in enumerate(zip(*columns, strict=True), 1) if not any(texts)]
    if blank:
        raise DataError(f"{table.source}: {len(blank)} of {len(table)} rows have no text, first row {blank[0]}: drop them.")
    return TextData(columns[0], columns[1] if len(columns) > 1 else None, labels)


def _texts(table: Table, name: str) -> tuple[str, ...]:
    texts = []
    for row, value in enumerate(table.column(name), 1):
        if not isinstance(value, str):
            found = "missing" if _missing(value) else f"a {type(value).__name__}, not text"
            raise DataError(f"{table.source} row {row}: '{name}' is {found}: drop the row or write its text.")
        texts.append(value.strip())
    try:
        "".join(texts).encode()
    except UnicodeEncodeError as error:  # half a surrogate pair, which JSON escapes allow
        raise DataError(f"{table.source}: '{name}' has a character that is not Unicode ({error.reason}).") from error
    return tuple(texts)


def _missing(value: object) -> bool:
    """None, nan, and what pandas has in their place."""
    return value is None or (isinstance(value, float) and math.isnan(value)) or value is pd.NA or value is pd.NaT


def _labels(table: Table, name: str) -> Sequence[object]:
    """The label column without a gap. Raises DataError with the number of rows at fault."""
    values = table.column(name)
    gaps = [row for row, value in enumerate(values, 1) if _missing(value) or str(value).strip().lower() in ("", "nan")]
    if gaps:
        raise DataError(f"{table.source}: {len(gaps)} of {len(values)} rows have no '{name}', first row {gaps[0]}: drop them.")
    return values


def _number(value: object) -> float | None:
    """The finite number a label spells, if it does."""
    try:
        number = float(str(value))
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _class_name(value: object) -> str:
    """How a class is called, so that 1, 1.0 and "1" are one class; all else is called as it is written.

    >>> _class_name(1.0), _class_name(" good "), _class_name("007")
    ('1', 'good', '007')
    """
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    text = str(value).strip()
    whole = WHOLE.fullmatch(text)
    return whole[1] if whole else text


def _class_names(table: Table, name: str) -> tuple[str, ...] | None:
    """The sorted classes of a label column, or None if the labels are numbers that are not all whole."""
    values = _labels(table, name)
    numbers = [_number(value) for value in values]
    known = [number for number in numbers if number is not None]
    if len(known) < len(values):
        return tuple(sorted({_class_name(value) for value in values}))
    if all(number.is_integer() for number in known):
        return tuple(sorted({_class_name(value) for value in values}, key=lambda name: (float(name), name)))
    return None


def _class_labels(table: Table, name: str, index: Mapping[str, int]) -> np.ndarray:
    names = [_class_name(value) for value in _labels(table, name)]
    for row, label in enumerate(names, 1):
        if label not in index:
            known = ", ".join(list(index)[:10]) + (", ..." if len(index) > 10 else "")
            raise DataError(f"{table.source} row {row}: '{name}' is '{label}', not one of the classes {known}.")
    return np.array([index[label] for label in names], dtype=np.int64)


def _numeric_labels(table: Table, name: str) -> np.ndarray:
    numbers = []
    for row, value in enumerate(_labels(table, name), 1):
        number = _number(value)
        if number is None:
            raise DataError(f"{table.source} row {row}: '{name}' is '{value}', but a regression needs finite numbers.")
        numbers.append(number)
    return np.array(numbers, dtype=np.float64)
