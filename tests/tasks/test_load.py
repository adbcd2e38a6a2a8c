"""GLUE from folders and the hub, any two files, and every error a person can cause."""

import json
from collections.abc import Sequence
from pathlib import Path

import datasets
import huggingface_hub
import numpy as np
import pandas as pd
import pytest

from autoquant import assets
from autoquant.core.errors import DataError
from autoquant.tasks.load import from_rows, load_default, load_files, load_glue, load_movies, with_texts
from autoquant.tasks.task import TASKS

ROWS = 24


def write_glue(folder: Path, task: str, evaluation: str = "dev", suffix: str = ".tsv", **changes: list[object]) -> Path:
    """Train and evaluation files of a task with labels 0, 1, 0, ... (0.5, 1.5, ... in a regression)."""
    folder.mkdir(parents=True, exist_ok=True)
    row = TASKS[task]
    columns: dict[str, list[object]] = {name: [f"{name} {i}" for i in range(ROWS)] for name in row.text_columns}
    columns["label"] = [i % 2 if row.classes else i % 2 + 0.5 for i in range(ROWS)]
    table = pd.DataFrame(columns | changes)
    for stem in ("train", evaluation):
        if suffix == ".tsv":
            table.to_csv(folder / f"{stem}.tsv", sep="\t", index=False, quoting=3)
        else:
            table.to_parquet(folder / f"{stem}.parquet")
    return folder


def write_csv(path: Path, texts: list[str], labels: Sequence[object], **more: Sequence[object]) -> Path:
    pd.DataFrame({"text": texts, "label": labels} | more).to_csv(path, index=False)
    return path


def texts(count: int = ROWS) -> list[str]:
    return [f"text {i}" for i in range(count)]


@pytest.mark.parametrize("task", TASKS)
def test_every_glue_task_from_a_folder(tmp_path: Path, task: str) -> None:
    write_glue(tmp_path / task, task, TASKS[task].evaluation)
    data = load_glue(task, tmp_path)
    assert data.task is TASKS[task]
    assert (len(data.train), len(data.evaluation)) == (ROWS, ROWS)
    assert (data.train.second is None) == (len(TASKS[task].text_columns) == 1)
    assert data.train.labels.dtype == (np.float64 if task == "stsb" else np.int64)
    assert data.train.first[3] == f"{TASKS[task].text_columns[0]} 3"


@pytest.mark.parametrize("folder", ["SST-2", "sst2", "."])
@pytest.mark.parametrize("evaluation", ["dev", "validation"])
@pytest.mark.parametrize("suffix", [".tsv", ".parquet"])
def test_folder_names_and_files(tmp_path: Path, folder: str, evaluation: str, suffix: str) -> None:
    write_glue(tmp_path / folder, "sst2", evaluation, suffix)
    assert load_glue("sst2", tmp_path).label_names == ("negative", "positive")


def test_the_environment_names_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_glue(tmp_path / "CoLA", "cola")
    monkeypatch.setenv("AUTOQUANT_GLUE", str(tmp_path))
    assert len(load_glue("cola").train) == ROWS


def test_stsb_calls_its_label_score(tmp_path: Path) -> None:
    folder = write_glue(tmp_path / "STS-B", "stsb")
    for path in folder.iterdir():
        path.write_text(path.read_text("utf-8").replace("\tlabel", "\tscore"), "utf-8")
    assert load_glue("stsb", tmp_path).train.labels[:3].tolist() == [0.5, 1.5, 0.5]


def test_label_names_mean_their_index(tmp_path: Path) -> None:
    write_glue(tmp_path / "rte", "rte", label=["not_entailment", "entailment"] * (ROWS // 2))
    assert load_glue("rte", tmp_path).train.labels[:2].tolist() == [1, 0]


def test_quotes_in_tsv_stay_and_texts_are_stripped(tmp_path: Path) -> None:
    write_glue(tmp_path / "sst2", "sst2", sentence=['" open ', *texts(ROWS - 1)])
    assert load_glue("sst2", tmp_path).train.first[0] == '" open'


def test_one_text_of_a_pair_may_be_blank(tmp_path: Path) -> None:
    write_glue(tmp_path / "qqp", "qqp", question2=["", *texts(ROWS - 1)])
    assert load_glue("qqp", tmp_path).train.second[0] == ""  # type: ignore[index]


def test_glue_errors(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="Unknown task 'sst3': choose from sst2, cola"):
        load_glue("sst3", tmp_path)
    with pytest.raises(DataError, match="No folder"):
        load_glue("sst2", tmp_path / "absent")
    with pytest.raises(DataError, match="No train file"):
        load_glue("sst2", tmp_path)
    folder = write_glue(tmp_path / "SST-2", "sst2")
    with pytest.raises(DataError, match="is the folder of sst2, not cola"):
        load_glue("cola", folder)
    (folder / "dev.tsv").unlink()
    with pytest.raises(DataError, match="No dev or validation file"):
        load_glue("sst2", tmp_path)
    write_glue(folder, "sst2", label=[0, 1, -1] * (ROWS // 3))
    with pytest.raises(DataError, match="row 3: 'label' is '-1', not one of the classes negative, positive, 0, 1"):
        load_glue("sst2", tmp_path)


class TestHub:
    def reachable(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("AUTOQUANT_GLUE", raising=False)
        monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", lambda *_, **__: None)

    def test_splits_become_rows(self, monkeypatch: pytest.MonkeyPatch) -> None:
        asked = []

        def load(*names: str, split: list[str]) -> list[datasets.Dataset]:
            asked.append((*names, *split))
            columns = {"premise": texts(30), "hypothesis": texts(30), "label": [0, 1, 2] * 10, "idx": list(range(30))}
            return [datasets.Dataset.from_dict(columns, split=datasets.NamedSplit(name)) for name in split]

        self.reachable(monkeypatch)
        monkeypatch.setattr(datasets, "load_dataset", load)
        data = load_glue("mnli")
        assert asked == [("nyu-mll/glue", "mnli", "train", "validation_matched")]
        assert data.evaluation.labels[:3].tolist() == [0, 1, 2]

    def test_unreachable_is_one_line_and_no_download(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def fail(*_: object, timeout: float, **__: object) -> None:
            assert timeout <= 10
            raise OSError("no route\nto host")

        self.reachable(monkeypatch)
        monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", fail)
        monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: pytest.fail("asked for a download"))
        with pytest.raises(DataError, match=r"\(no route to host\): give --data-dir") as caught:
            load_glue("rte")
        assert "\n" not in str(caught.value)

    def test_offline_mode_asks_the_cache_only(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        self.reachable(monkeypatch)
        monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
        monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
        monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", lambda *_, **__: pytest.fail("asked the hub"))
        with pytest.raises(DataError, match="give --data-dir"):
            load_glue("rte")


def test_files_with_names_for_classes(tmp_path: Path) -> None:
    train = write_csv(tmp_path / "train.csv", texts(), ["pos", "neg", "mid"] * 8)
    evaluation = write_csv(tmp_path / "eval.csv", texts(2), ["pos", "mid"])
    data = load_files(train, evaluation, ("text",), "label")
    assert data.label_names == data.task.label_names == ("mid", "neg", "pos")
    assert (data.task.classes, data.task.metric) == (3, "accuracy")
    assert data.evaluation.labels.tolist() == [2, 0]


def test_whole_numbers_are_classes_in_numeric_order(tmp_path: Path) -> None:
    train = write_csv(tmp_path / "train.csv", texts(), [10, 9, 2] * 8)
    evaluation = write_csv(tmp_path / "eval.csv", texts(2), [10.0, 2.0])
    data = load_files(train, evaluation, ("text",), "label")
    assert data.label_names == ("2", "9", "10")
    assert data.evaluation.labels.tolist() == [2, 0]


@pytest.mark.parametrize(
    ("labels", "names"),
    [
        ([10**17 + 1, 10**17 + 2, 5], ("5", str(10**17 + 1), str(10**17 + 2))),  # floats do not tell the first two apart
        (["007", "7.0", "+7"], ("+7", "007", "7")),
        (["1e5", "12E4", "3"], ("3", "1e5", "12E4")),
    ],
)
def test_classes_are_called_as_they_are_written(tmp_path: Path, labels: list[object], names: tuple[str, ...]) -> None:
    train = write_csv(tmp_path / "train.csv", texts(), labels * 8)
    assert load_files(train, train, ("text",), "label").label_names == names


def test_fractions_are_a_regression(tmp_path: Path) -> None:
    train = write_csv(tmp_path / "train.csv", texts(), [1, 2.5, -3] * 8, other=texts())
    data = load_files(train, train, ("text", "other"), "label")
    assert (data.task.classes, data.task.metrics, data.label_names) == (None, ("pearson", "spearmanr"), ())
    assert data.train.labels[:3].tolist() == [1.0, 2.5, -3.0]
    assert data.train.second == data.train.first


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([1] * ROWS, "all 24 rows have the same label"),
        ([0.5] * ROWS, "all 24 rows have the same label"),
        ([*[0, 1] * 11, None, ""], r"2 of 24 rows have no 'label', first row 23"),
        ([*[0, 1] * 11, 0, "nan"], r"1 of 24 rows have no 'label', first row 24"),
        (list(range(ROWS)), "'label' has 24 values in 24 rows"),
    ],
)
def test_labels_nobody_can_learn(tmp_path: Path, labels: list[object], message: str) -> None:
    train = tmp_path / "train.jsonl"
    train.write_text("".join(json.dumps({"text": f"t{i}", "label": label}) + "\n" for i, label in enumerate(labels)), "utf-8")
    with pytest.raises(DataError, match=message):
        load_files(train, train, ("text",), "label")


@pytest.mark.parametrize("gap", [None, float("nan"), pd.NA, pd.NaT])
def test_a_gap_in_memory_is_no_class(gap: object) -> None:
    rows = [(f"t{i}", label) for i, label in enumerate([*["a", "b"] * 11, gap])]
    with pytest.raises(DataError, match=r"1 of 23 rows have no 'label', first row 23"):
        from_rows(rows, rows)  # type: ignore[arg-type]


def test_a_label_unseen_in_training(tmp_path: Path) -> None:
    train = write_csv(tmp_path / "train.csv", texts(), ["a", "b"] * 12)
    evaluation = write_csv(tmp_path / "eval.csv", texts(2), ["a", "c"])
    with pytest.raises(DataError, match=r"eval.csv row 2: 'label' is 'c', not one of the classes a, b"):
        load_files(train, evaluation, ("text",), "label")


def test_a_word_among_the_numbers_to_evaluate(tmp_path: Path) -> None:
    train = write_csv(tmp_path / "train.csv", texts(), [0.5, 1.5] * 12)
    evaluation = write_csv(tmp_path / "eval.csv", texts(2), [0.5, "inf"])
    with pytest.raises(DataError, match="row 2: 'label' is 'inf', but a regression needs finite numbers"):
        load_files(train, evaluation, ("text",), "label")


@pytest.mark.parametrize("labels", [[0, 1], [0.5, 1.5]])
def test_too_few_rows(tmp_path: Path, labels: list[object]) -> None:
    train = write_csv(tmp_path / "train.csv", texts(10), labels * 5)
    with pytest.raises(DataError, match="has 10 rows: training takes at least 20"):
        load_files(train, train, ("text",), "label")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("  ", "1 of 24 rows have no text, first row 24"),
        (None, "row 24: 'text' is missing"),
        (["a", "b"], "row 24: 'text' is a list, not text"),
        ("\ud800", "a character that is not Unicode"),
    ],
)
def test_texts_that_are_not_there(tmp_path: Path, text: object, message: str) -> None:
    rows = [{"text": f"t{i}", "label": i % 2} for i in range(ROWS - 1)] + [{"text": text, "label": 1}]
    train = tmp_path / "train.json"
    train.write_text(json.dumps(rows), "utf-8")
    with pytest.raises(DataError, match=message):
        load_files(train, train, ("text",), "label")


def test_columns_that_are_not_there(tmp_path: Path) -> None:
    train = write_csv(tmp_path / "train.csv", texts(), [0, 1] * 12)
    with pytest.raises(DataError, match="no column 'body'; its columns are text, label"):
        load_files(train, train, ("body",), "label")
    with pytest.raises(DataError, match="no column 'gold'"):
        load_files(train, train, ("text",), "gold")
    with pytest.raises(DataError, match="3 text columns given"):
        load_files(train, train, ("text", "text", "text"), "label")


def test_further_texts_need_no_labels(tmp_path: Path) -> None:
    train = write_csv(tmp_path / "train.csv", texts(), [0, 1] * 12)
    (tmp_path / "more.jsonl").write_text('{"text": " one more "}\n{"text": "two"}\n', "utf-8")
    data = load_files(train, train, ("text",), "label")
    more = with_texts(data, tmp_path / "more.jsonl")
    assert more.unlabelled is not None
    assert more.unlabelled.first == ("one more", "two")
    assert more.hashes() == {**data.hashes(), "unlabelled": more.unlabelled.sha256()}
    assert with_texts(data, str(tmp_path / "more.jsonl")).hashes() == more.hashes()
    in_memory = with_texts(data, ["one more", "two"]).unlabelled
    assert in_memory is not None
    assert in_memory.sha256() == more.unlabelled.sha256()
    for wrong in ([], [("a", "pair")]):
        with pytest.raises(DataError, match="more_texts takes a non-empty list of texts"):
            with_texts(data, wrong)
    (tmp_path / "more.csv").write_text("body\nx\n", "utf-8")
    with pytest.raises(DataError, match=r"more\.csv has no column 'text'; its columns are body"):
        with_texts(data, tmp_path / "more.csv")


def test_columns_that_stand_for_two_things(tmp_path: Path) -> None:
    train = write_csv(tmp_path / "train.csv", texts(), ["a", "b"] * 12)
    for columns, label in ((("label",), "label"), (("text", "text"), "label")):
        with pytest.raises(DataError, match="A column is given twice"):
            load_files(train, train, columns, label)


def test_pairs_in_one_part_alone() -> None:
    single, pairs = [(text, index % 2) for index, text in enumerate(texts())], [((text, "b"), 0) for text in texts()]
    for train, evaluation in ((single, pairs), (pairs, single)):
        with pytest.raises(DataError, match="One of train and evaluation has pairs of texts"):
            from_rows(train, evaluation)


def test_more_than_two_texts_in_a_row() -> None:
    rows = [((text, "b", "c"), index % 2) for index, text in enumerate(texts())]
    with pytest.raises(DataError, match=r"train must be rows \(text, label\) or"):
        from_rows(rows, rows)  # type: ignore[arg-type]


@pytest.fixture
def reviews(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in for the embedded data: 300 reviews, 100 of them neutral, and one text twice."""
    lines = [f"{i}\t{(i % 3 - 1) * 2.5}\treview {i} \r\n" for i in range(300)] + ["300\t-3\treview 0\r\n"]
    (tmp_path / "reviews.txt").write_bytes("".join(lines).encode())
    monkeypatch.setattr("autoquant.tasks.load.default_data", lambda: tmp_path / "reviews.txt")


@pytest.mark.usefixtures("reviews")
def test_movies_are_cut_by_text() -> None:
    train, validation, evaluation = load_movies()
    everything = [*train.first, *validation.first, *evaluation.first]
    assert len(everything) == 201
    assert len(set(everything)) == 200
    assert not set(train.first) & set(validation.first)
    assert not set(evaluation.first) & {*train.first, *validation.first}
    assert len(evaluation) == pytest.approx(0.15 * 201, abs=2)
    assert all((int(text.split()[1]) % 3 == 2) == label for text, label in zip(train.first, train.labels, strict=True))


@pytest.mark.usefixtures("reviews")
def test_the_default_holds_out_the_same_validation_part() -> None:
    data, (train, validation, evaluation) = load_default(), load_movies()
    again = data.train.split(0.2)
    assert [part.sha256() for part in (*again, data.evaluation)] == [part.sha256() for part in (train, validation, evaluation)]
    assert (data.task.name, data.label_names) == ("movies", ("negative", "positive"))


def test_the_real_movies() -> None:
    if not assets.is_cached(assets.MOVIE_REVIEWS):
        pytest.skip("the default data is not in the cache yet; the main job puts it there")
    assert [len(part) for part in load_movies()] == [6849, 1712, 1511]
    assert sum(len(part) for part in load_movies()) == 10072
