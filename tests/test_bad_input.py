"""What cannot work is refused in one line that says what to do, before any training, and leaves nothing half-written."""

import json
import resource
import shutil
from collections import namedtuple
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from autoquant import cli
from autoquant.cli.options import DataOptions
from autoquant.core.errors import DataError
from autoquant.strategies import dnas
from runs import MACHINE, log_of, refusal, search_arguments, stages_of

Usage = namedtuple("Usage", "total used free")


def assert_nothing_trained(run_dir: Path) -> None:
    assert not (run_dir / "teacher").exists()
    assert not (run_dir / "model").exists()
    assert log_of(run_dir) == []


# Settings: (options, what the line must say); `run_dir` must not even be made

SETTINGS = {
    "unknown column": (["--train-file", "{train}", "--eval-file", "{train}", "--text-column", "review"], "sentence, label"),
    "unknown label": (["--train-file", "{train}", "--eval-file", "{train}", "--label-column", "stars"], "sentence, label"),
    "one file": (["--train-file", "{train}"], "--eval-file"),
    "no data folder": (["--task", "sst2", "--data-dir", "nowhere"], "No folder nowhere"),
    "data folder without task": (["--data-dir", "{data}"], "--task"),
    "another task's folder": (["--task", "rte", "--data-dir", "{data}/SST-2"], "folder of sst2"),
    "task and file": (["--task", "sst2", "--train-file", "{train}", "--eval-file", "{train}"], "not both"),
    "unknown space": (["--space", "nonsense"], "rows, structured"),
    "heads that may go": (["--space", "structured", "--recovery.training", "ternarybert"], "ternarybert needs every head"),
    "blocks that may go": (
        ["--space", "structured", "--recovery.reconstruction", "layer-wise", "--recovery.mrem-steps", "1"],
        "layer-wise needs every head and FFN block",
    ),
    "texts without labels": (
        ["--more-texts", "{train}", "--distillation.cross-entropy", "1"],
        "--more-texts have no labels, and this recipe's recovery learns from labels",
    ),
    "unknown preset": (["--preset", "nonsense"], "default"),
    "unknown strategy": (["--search.strategy", "nonsense"], "dnas, uniform, random, reversed, fisher"),
    "unknown control": (["--controls", "uniform", "nonsense"], "dnas, uniform, random, reversed, fisher"),
    "unknown quantizer": (["--quantizer", "nonsense"], "midrise"),
    "no such device": (["--device", "nonsense"], "give auto or cpu"),
    "device that does not compute": (["--device", "meta"], "give auto or cpu"),
    "negative threads": (["--threads", "-1"], "--threads"),
    "negative pace": (["--checkpoint-seconds", "-1"], "--checkpoint-seconds"),
    "negative seed": (["--seed", "-1"], "--seed -1"),
    "large seed": (["--seed", "4294967296"], "must lie between 0 and 4294967295"),
    "negative search steps": (["--search.steps", "-1"], "at least 1"),
    "no trials": (["--search.trials", "0"], "at least 1"),
    "no slices": (["--search.hessian-slices", "0"], "at least 1"),
    "negative recovery steps": (["--recovery.steps", "-1"], "negative"),
    "no epochs": (["--teacher.epochs", "0"], "at least 1"),
    "all of it held out": (["--search.held-out", "1"], "held-out 1.0"),
    "no loss": (["--distillation.logits", "0", "--distillation.hidden", "0"], "one must be above 0"),
    "no training rows": (["--train-rows", "0"], "--train-rows 0"),
    "too few training rows": (["--train-rows", "3"], "at least 20"),
    "longer than the positions": (["--max-length", "65"], "64 positions"),
    "no room for text": (["--max-length", "0"], "--max-length 0"),
    "no budget": (["--budget-ratio", "None"], "one of --budget-mib and --budget-ratio"),
    "two budgets": (["--budget-mib", "1"], "one of --budget-mib and --budget-ratio"),
    "budget of zero": (["--budget-ratio", "None", "--budget-mib", "0"], "0 bytes"),
    "negative budget": (["--budget-ratio", "None", "--budget-mib", "-1"], "-1048576 bytes"),
    "budget that is no number": (["--budget-ratio", "None", "--budget-mib", "nan"], "finite"),
    "endless budget": (["--budget-ratio", "inf"], "finite"),
    "ratio of zero": (["--budget-ratio", "0"], "above 1"),
    "above full precision": (["--budget-ratio", "None", "--budget-mib", "1"], "1.00 MiB is not below full precision, 0.11 MiB"),
}


def test_the_rows_that_are_chosen_must_differ_in_label(tmp_path: Path) -> None:
    """One of 400 is positive, and not among the 20."""
    rows = [f"text {row},{int(row == 200)}" for row in range(400)]
    (tmp_path / "a.csv").write_text("\n".join(["text,label", *rows]) + "\n", "utf-8")
    options = DataOptions(train_file=tmp_path / "a.csv", eval_file=tmp_path / "a.csv", train_rows=20)
    with pytest.raises(DataError, match="--train-rows 20: all 20 rows have the same label"):
        options.load()


@pytest.mark.parametrize(("options", "expected"), SETTINGS.values(), ids=SETTINGS)
def test_settings(
    options: list[str],
    expected: str,
    tiny_model_dir: Path,
    tiny_data: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run_dir = tmp_path / "run"
    names = {"train": tiny_data / "SST-2" / "train.tsv", "data": tiny_data}
    given = [option.format(**names) for option in options]
    arguments = search_arguments(tiny_model_dir, tiny_data, run_dir, *given)
    chooses_data = {"--train-file", "--data-dir"} & set(options)
    if chooses_data:  # without the data that `search_arguments` gives
        start = arguments.index("--task")
        arguments = [*arguments[:start], *arguments[start + 4 :]]
    assert expected in refusal(arguments, capsys)
    assert not run_dir.exists()


def test_a_budget_below_the_smallest_says_what_fills_it(
    tiny_model_dir: Path, tiny_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    message = refusal(search_arguments(tiny_model_dir, tiny_data, tmp_path / "run", "--budget-ratio", 11), capsys)
    assert "is below the smallest allocation, 0.01 MiB (header 0.01, rest 0.00, word_embedding 0.00" in message
    assert "raise the budget" in message
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("option", [["--task", "nonsense"], ["--count", "nonsense"], ["--activation-bits", "5"], ["--nonsense"]])
def test_usage_is_explained(option: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        cli.main(["search", *option, "--run-dir", str(tmp_path / "run")])
    assert exit_.value.code == 2
    assert "Traceback" not in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


# Data

ROWS = [f"a film number {i}\t{i % 2}" for i in range(40)]
FILES = {
    "empty": ("", "is empty"),
    "only a header": ("sentence\tlabel\n", "is empty"),
    "a ragged row": ("\n".join(["sentence\tlabel", *ROWS, "no label"]), "line 42 has 1 columns, not the header's 2"),
    "a column missing": ("\n".join(["text\tlabel", *ROWS]), "no column 'sentence'; its columns are text, label"),
    "one class": ("\n".join(["sentence\tlabel", *(row[:-1] + "1" for row in ROWS)]), "all 40 rows have the same label"),
    "a label of no class": ("\n".join(["sentence\tlabel", *ROWS, "fine\t7"]), "'label' is '7'"),
    "no label": ("\n".join(["sentence\tlabel", *ROWS, "fine\t"]), "1 of 41 rows have no 'label'"),
    "no text": ("\n".join(["sentence\tlabel", *ROWS, " \t1"]), "1 of 41 rows have no text"),
    "too few rows": ("\n".join(["sentence\tlabel", *ROWS[:5]]), "at least 20"),
}


def search_rows(folder: Path, content: bytes, model: Path, name: str = "train.tsv") -> list[str]:
    """The arguments of a search whose training file has this content."""
    (folder / name).write_bytes(content)
    (folder / "dev.tsv").write_text("\n".join(["sentence\tlabel", *ROWS]), "utf-8")
    return search_arguments(model, folder, folder / "run")


@pytest.mark.parametrize(("content", "expected"), FILES.values(), ids=FILES)
def test_malformed_tables(
    content: str, expected: str, tiny_model_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert expected in refusal(search_rows(tmp_path, content.encode(), tiny_model_dir), capsys)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("train.tsv", b"sentence\tlabel\n\xff\xfe\t1\n", "is not UTF-8"),
        ("train.csv", b'sentence,label\n"open,1\n', "malformed CSV"),
        ("train.json", b'[{"sentence": ', "malformed JSON"),
        ("train.jsonl", b'{"sentence": "a", "label": 1}\n{', "malformed JSON"),
        ("train.parquet", b"PAR1 and no more", "is not a Parquet file"),
    ],
)
def test_broken_files(
    name: str, content: bytes, expected: str, tiny_model_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert expected in refusal(search_rows(tmp_path, content, tiny_model_dir, name), capsys)
    assert not (tmp_path / "run").exists()


def test_labels_that_do_not_fit_a_trained_head(
    tiny_classifier_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, labels in (("three classes", "abc"), ("numbers", ("0.5", "1.25", "2.0"))):
        path = tmp_path / f"{name}.tsv"
        path.write_text("\n".join(["text\tlabel", *(f"a film number {i}\t{labels[i % 3]}" for i in range(40))]), "utf-8")
        options = ["--train-file", str(path), "--eval-file", str(path), "--budget-ratio", "6", "--max-length", "32"]
        arguments = ["search", "--model", str(tiny_classifier_dir), *options, *MACHINE, "--run-dir", str(tmp_path / "run")]
        outputs = 3 if name == "three classes" else 1
        assert f"has a head of 2 outputs, the data has {outputs}" in refusal(arguments, capsys)
        assert not (tmp_path / "run").exists()


# Models


def damage_config(folder: Path, **values: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | values), "utf-8")


def drop_a_layer(folder: Path) -> None:
    import safetensors.torch

    path = folder / "model.safetensors"
    state = safetensors.torch.load_file(path)
    safetensors.torch.save_file({n: t for n, t in state.items() if "layer.1." not in n}, path, metadata={"format": "pt"})


def drop_the_tokenizer(folder: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json", "vocab.txt"):
        (folder / name).unlink()


MODELS: dict[str, tuple[Callable[[Path], object], str]] = {
    "another type": (lambda folder: damage_config(folder, model_type="gpt2"), "supported are bert"),
    "a type nobody knows": (lambda folder: damage_config(folder, model_type="nonsense"), "damaged or incomplete"),
    "config missing": (lambda folder: (folder / "config.json").unlink(), "config.json is missing"),
    "config damaged": (lambda folder: (folder / "config.json").write_text("{"), "damaged or incomplete"),
    "tokenizer damaged": (lambda folder: (folder / "tokenizer.json").write_text("{"), "damaged or incomplete"),
    "tokenizer missing": (drop_the_tokenizer, "has no vocabulary: bring its tokenizer.json"),
    "weights missing": (lambda folder: (folder / "model.safetensors").unlink(), "damaged or incomplete"),
    "weights cut": (lambda folder: (folder / "model.safetensors").write_bytes(b"\x10"), "damaged or incomplete"),
    "weights of another width": (lambda folder: damage_config(folder, hidden_size=64), "damaged or incomplete"),
    "a layer missing": (drop_a_layer, "lacks 16 tensors of its encoder"),
}


@pytest.mark.parametrize(("harm", "expected"), MODELS.values(), ids=MODELS)
def test_models(
    harm: Callable[[Path], object],
    expected: str,
    tiny_model_dir: Path,
    tiny_data: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    model = tmp_path / "model"
    shutil.copytree(tiny_model_dir, model)
    harm(model)
    assert expected in refusal(search_arguments(model, tiny_data, tmp_path / "run"), capsys)
    assert_nothing_trained(tmp_path / "run")


@pytest.mark.parametrize("name", ["nowhere/at-all", "/no/such/folder", "bert-base-nonsense"])
def test_a_model_that_is_nowhere(name: str, tiny_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    message = refusal(search_arguments(Path(name), tiny_data, tmp_path / "run"), capsys)
    assert f"Model {name} is no directory here and could not be fetched" in message
    assert not (tmp_path / "run").exists()


def test_without_a_network_a_hub_model_fails_soon(
    tiny_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """transformers alone would retry for half a minute, a line each time."""
    import huggingface_hub

    asked: list[float] = []

    def unreachable(_: object, name: str, timeout: float) -> None:
        asked.append(timeout)
        raise ConnectionError("no route")

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", unreachable)
    refusal(search_arguments(Path("nobody/asked-before"), tiny_data, tmp_path / "run"), capsys)
    assert len(asked) == 1
    assert asked[0] <= 10


def test_finetune_refuses_a_trained_head(
    tiny_classifier_dir: Path, tiny_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = ["--task", "sst2", "--data-dir", str(tiny_data), "--max-length", "32"]
    arguments = ["finetune", "--model", str(tiny_classifier_dir), *files, *MACHINE, "--output", str(tmp_path / "run")]
    assert "already has a trained head" in refusal(arguments, capsys)
    assert not (tmp_path / "run").exists()


# Disks and folders


def test_a_file_where_the_run_should_go(
    tiny_model_dir: Path, tiny_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    message = refusal(search_arguments(tiny_model_dir, tiny_data, tmp_path / "file" / "run"), capsys)
    assert "choose another folder" in message


def test_an_unwritable_folder(
    tiny_model_dir: Path, tiny_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path, *_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "mkdir", refuse)  # the permissions of a folder do not stop root, who runs many a container
    assert "is not writable" in refusal(search_arguments(tiny_model_dir, tiny_data, tmp_path / "run"), capsys)
    assert not (tmp_path / "run").exists()


def test_a_full_disk_is_seen_beforehand(
    tiny_model_dir: Path, tiny_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(2**30, 2**30 - 1000, 1000))
    assert "needs about 1 MiB" in refusal(search_arguments(tiny_model_dir, tiny_data, tmp_path / "run"), capsys)
    assert not (tmp_path / "run").exists()


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """Writing beyond it fails as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_disk_that_fills_up_later_leaves_a_resumable_run(
    tiny_classifier_dir: Path, tiny_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = search_arguments(tiny_classifier_dir, tiny_data, tmp_path / "run")
    for size, place in ((8_000, "teacher"), (80_000, "teacher"), (120_000, "checkpoint/search-dnas.pt")):
        with largest_file(size):
            message = refusal(arguments, capsys)
        assert f"No space left to write {tmp_path / 'run' / place} " in message
        assert "goes on with --resume" in message
        arguments = [*search_arguments(tiny_classifier_dir, tiny_data, tmp_path / "run"), "--resume"]
    cli.main(arguments)
    assert (tmp_path / "run" / "metrics.json").exists()


# Training


def test_a_teacher_that_diverges(
    tiny_model_dir: Path, tiny_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = search_arguments(tiny_model_dir, tiny_data, tmp_path / "run", "--teacher.learning-rate", "1e6")
    message = refusal(arguments, capsys)
    assert "Teacher: the loss is nan at step" in message
    assert "Lower the learning rate" in message
    assert not (tmp_path / "run" / "teacher").exists()
    assert refusal([*arguments, "--resume"], capsys) == message


def test_a_search_that_diverges_can_go_on(
    tiny_classifier_dir: Path,
    tiny_data: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    arguments = search_arguments(tiny_classifier_dir, tiny_data, tmp_path / "run", "--search.steps", 8, "--search.warmup", 1)
    loss, calls = dnas.distillation_loss, iter(range(100))
    with monkeypatch.context() as patch:
        patch.setattr(dnas, "distillation_loss", lambda *a: loss(*a) * (float("nan") if next(calls) == 3 else 1.0))
        message = refusal([*arguments, "--checkpoint-seconds", "0"], capsys)
    assert len(log_of(tmp_path / "run")) == 3
    assert "Search: the loss is nan at step 3 of 8" in message
    assert "Lower the learning rate" in message
    cli.main([*arguments, "--resume"])
    assert stages_of(tmp_path / "run") == ["search-dnas", "retrain-dnas"]
    assert (tmp_path / "run" / "metrics.json").exists()


# Packed folders


def test_evaluate_refuses_what_is_not_packed(
    tiny_model_dir: Path, tiny_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = ["--task", "sst2", "--data-dir", str(tiny_data)]
    assert "is no packed model" in refusal(["evaluate", str(tmp_path), *files], capsys)
    assert "is not that of a packed model" in refusal(["evaluate", str(tiny_model_dir), *files], capsys)


def test_apply_refuses_what_is_no_allocation(
    tiny_classifier_dir: Path, tiny_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = ["--model", str(tiny_classifier_dir), "--task", "sst2", "--data-dir", str(tiny_data)]
    run_dir = ["--run-dir", str(tmp_path / "run"), *MACHINE]
    (tmp_path / "a.json").write_text("{}")
    (tmp_path / "b.json").write_text("{")
    assert "is no allocation" in refusal(["apply", str(tmp_path / "a.json"), *files, *run_dir], capsys)
    assert "is not JSON" in refusal(["apply", str(tmp_path / "b.json"), *files, *run_dir], capsys)
    assert "Cannot read" in refusal(["apply", str(tmp_path / "c.json"), *files, *run_dir], capsys)
    assert not (tmp_path / "run").exists()


def test_a_broken_architecture_loss_is_one_line_and_resumable(
    tiny_classifier_dir: Path, tiny_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_dir = tmp_path / "run"
    arguments = search_arguments(tiny_classifier_dir, tiny_data, run_dir, "--search.steps", 8)
    loss, calls = dnas.distillation_loss, iter(range(100))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dnas, "distillation_loss", lambda *a: loss(*a) * (float("nan") if next(calls) >= 4 else 1.0))
        assert "is nan at step" in refusal([*arguments, "--checkpoint-seconds", "0"], capsys)
    cli.main([*arguments, "--resume"])
    assert (run_dir / "metrics.json").exists()
