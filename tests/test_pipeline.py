"""The main job from a bare encoder to a packed file inside the budget, and the same bytes whenever it is done again."""

import csv
import hashlib
import json
import random
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import autoquant
from autoquant import cli, pipeline
from autoquant.core.cost import MIB
from autoquant.core.errors import CheckpointError
from autoquant.core.files import file_sha256
from autoquant.core.settings import Recipe, RecoverySettings, SearchSettings, TeacherSettings
from autoquant.export.manifest import manifest_allocation, read_manifest
from autoquant.machine import Machine
from autoquant.pack.checkpoint import read_packed
from autoquant.tasks.data import TaskData, TextData
from autoquant.tasks.load import load_glue
from autoquant.tasks.task import MOVIES
from autoquant.training.batches import encode
from autoquant.training.evaluate import predict_logits
from runs import (
    CONTROLS,
    FEWEST,
    MACHINE,
    Reference,
    log_of,
    metrics_of,
    reference,
    refusal,
    rows_of,
    search,
    search_arguments,
    stages_of,
)

__all__ = ["reference"]

HERE = Machine(device="cpu", threads=1, compile=False)
FEW_STEPS = Recipe(teacher=TeacherSettings(epochs=1), search=SearchSettings(steps=2), recovery=RecoverySettings(steps=2))


# What a run leaves


def test_a_run_leaves_every_file(reference: Reference) -> None:
    for name in ("run.json", "metrics.jsonl", "metrics.json", "teacher/config.json", "teacher/model.safetensors"):
        assert (reference.run_dir / name).is_file()
    shipped = {path.name for path in reference.model_dir.iterdir()}
    tokenizer = {"tokenizer.json", "tokenizer_config.json"}
    assert shipped == {"README.md", "allocation.json", "config.json", "model.safetensors"} | tokenizer
    for control in CONTROLS:
        assert (reference.run_dir / "controls" / control / "model.safetensors").is_file()


def test_metrics_have_what_was_promised(reference: Reference) -> None:
    metrics = reference.metrics
    assert metrics["metric"]["name"] == "accuracy"
    assert {"value", "full_precision", "uniform"} <= set(metrics["metric"])
    assert metrics["metric"]["full_precision"] > 0.8  # the tiny task can be learnt
    assert set(metrics["all_metrics"]) == {"full_precision", "dnas", *CONTROLS}
    assert set(metrics["share_of_subgroups_different_from"]) == {"fisher", "uniform"}
    parts, methods = ("search", "recover", "pack", "evaluate"), ("dnas", *CONTROLS)
    assert set(metrics["seconds"]) == {"teacher", "calibrate", *(f"{part}-{method}" for part in parts for method in methods)}
    assert all(seconds >= 0 for seconds in metrics["seconds"].values())


def test_file_is_within_the_budget_and_uses_it(reference: Reference) -> None:
    size = reference.metrics["bytes"]
    assert (reference.model_dir / "model.safetensors").stat().st_size == size["file"] == sum(size["breakdown"].values())
    assert size["directory"] == sum(path.stat().st_size for path in reference.model_dir.iterdir())
    teacher = (reference.run_dir / "teacher" / "model.safetensors").stat().st_size
    assert size["full_precision"] == pytest.approx(teacher, abs=64)  # transformers writes other words in its header
    assert size["budget"] == size["full_precision"] // 6
    for control, written in size["controls"].items():
        assert (reference.run_dir / "controls" / control / "model.safetensors").stat().st_size == written
    assert all(0.99 * size["budget"] <= written <= size["budget"] for written in (size["file"], *size["controls"].values()))


def test_methods_differ(reference: Reference) -> None:
    folders = [reference.model_dir, *(reference.run_dir / "controls" / control for control in CONTROLS)]
    bits = [
        tuple(matrix.layout.bits for _, matrix in sorted(read_packed(folder / "model.safetensors").matrices.items()))
        for folder in folders
    ]
    assert len(set(bits)) >= 4  # so short a search may leave the sensitivities' allocation as it is


def test_allocation_is_what_the_file_holds(reference: Reference) -> None:
    manifest = read_manifest(reference.model_dir / "allocation.json")
    packed = read_packed(reference.model_dir / "model.safetensors")
    assert manifest_allocation(manifest).bits == {name: matrix.layout.bits for name, matrix in packed.matrices.items()}
    for matrix in manifest["matrices"]:
        assert matrix["shape"] == [packed.matrices[matrix["name"]].rows, packed.matrices[matrix["name"]].columns]
        assert 0 < min(matrix["probability"]) <= max(matrix["probability"]) <= 1
        assert min(matrix["sensitivity"]) >= 0


def test_allocation_says_what_it_came_to(reference: Reference) -> None:
    manifest, metrics = read_manifest(reference.model_dir / "allocation.json"), reference.metrics
    assert manifest["budget"] == {"bytes": metrics["bytes"]["budget"], "count": "file"}
    assert manifest["reached"]["file"] == metrics["bytes"]["file"]
    assert manifest["reached"]["breakdown"] == metrics["bytes"]["breakdown"]
    assert manifest["metrics"] == metrics["metric"]
    assert manifest["seed"] == 0
    assert manifest["hashes"]["file"] == file_sha256(reference.model_dir / "model.safetensors")
    assert manifest["hashes"]["teacher"] == file_sha256(reference.run_dir / "teacher" / "model.safetensors")
    data = load_glue("sst2", reference.data)
    assert manifest["hashes"]["train"] == data.train.sha256()
    assert manifest["hashes"]["evaluation"] == data.evaluation.sha256()


def test_every_stage_logs_every_step(reference: Reference) -> None:
    recoveries = [f"{refiner}-{method}" for method in ("dnas", *CONTROLS) for refiner in ("retrain", "mrem-s")]
    assert stages_of(reference.run_dir) == ["teacher", "search-dnas", *recoveries]
    lines = [json.loads(line) for line in log_of(reference.run_dir)]
    for stage in stages_of(reference.run_dir):
        steps = [line["step"] for line in lines if line["stage"] == stage]
        assert steps == list(range(len(steps)))


def test_a_fresh_process_gives_the_simulated_logits(reference: Reference, tmp_path: Path) -> None:
    script = (
        "import sys, numpy, torch, autoquant\n"
        "torch.set_num_threads(1)\n"
        "from pathlib import Path\n"
        "from autoquant.tasks.load import load_glue\n"
        "from autoquant.training.batches import encode\n"
        "from autoquant.training.evaluate import predict_logits\n"
        "predictor = autoquant.load(sys.argv[1])\n"
        "data = encode(predictor.tokenizer, load_glue('sst2', Path(sys.argv[2])).evaluation, predictor.max_length)\n"
        "numpy.save(sys.argv[3], predict_logits(predictor.model, data))\n"
    )
    arguments = [str(reference.model_dir), str(reference.data), str(tmp_path / "logits.npy")]
    subprocess.run([sys.executable, "-c", script, *arguments], check=True)
    reloaded = np.load(tmp_path / "logits.npy")
    assert reloaded.shape == (80, 2)
    assert np.ptp(reloaded) > 0.01
    assert np.abs(reloaded - reference.simulated).max() <= 1e-5
    assert reference.metrics["reload_difference"] <= 1e-5


# The same again


def test_the_same_seed_gives_the_same_bytes(tiny_model_dir: Path, tiny_data: Path, tmp_path: Path) -> None:
    for name, seed in (("first", 3), ("second", 3), ("other", 4)):
        search(tiny_model_dir, tiny_data, tmp_path / name, "--seed", seed, "--recovery.mrem-steps", 1)
    for file in ("model/model.safetensors", "model/allocation.json", "teacher/model.safetensors", "metrics.jsonl"):
        assert (tmp_path / "first" / file).read_bytes() == (tmp_path / "second" / file).read_bytes()
        assert (tmp_path / "first" / file).read_bytes() != (tmp_path / "other" / file).read_bytes()


def apply(reference: Reference, run_dir: Path, *more: str, data: Path | None = None) -> None:
    files = ["--task", "sst2", "--data-dir", str(data or reference.data)]
    allocation, teacher = str(reference.model_dir / "allocation.json"), str(reference.run_dir / "teacher")
    cli.main(["apply", allocation, "--model", teacher, *files, *MACHINE, "--run-dir", str(run_dir), *more])


def test_apply_repeats_the_recorded_recovery(reference: Reference, tmp_path: Path) -> None:
    apply(reference, tmp_path / "run")
    assert (tmp_path / "run" / "model" / "model.safetensors").read_bytes() == reference.bytes("model.safetensors")
    assert metrics_of(tmp_path / "run")["metric"]["value"] == reference.metrics["metric"]["value"]
    assert stages_of(tmp_path / "run") == ["retrain-dnas", "mrem-s-dnas"]


def test_apply_without_recovery_only_quantises(reference: Reference, tmp_path: Path) -> None:
    apply(reference, tmp_path / "run", "--no-recovery")
    assert stages_of(tmp_path / "run") == []
    before, after = (read_packed(path / "model" / "model.safetensors") for path in (reference.run_dir, tmp_path / "run"))
    assert {n: m.layout.bits for n, m in before.matrices.items()} == {n: m.layout.bits for n, m in after.matrices.items()}
    assert metrics_of(tmp_path / "run")["bytes"]["file"] == reference.metrics["bytes"]["file"]
    assert read_manifest(tmp_path / "run" / "model" / "allocation.json")["recovery"]["recovery"]["steps"] == 0


def test_apply_refuses_other_training_text(reference: Reference, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "SST-2"
    folder.mkdir()
    text = (reference.data / "SST-2" / "train.tsv").read_text("utf-8")
    (folder / "train.tsv").write_text(text.replace("very", "zzzz"), "utf-8")
    (folder / "dev.tsv").write_text((reference.data / "SST-2" / "dev.tsv").read_text("utf-8"), "utf-8")
    with pytest.raises(SystemExit) as exit_:
        apply(reference, tmp_path / "run", data=tmp_path)
    assert exit_.value.code == 2
    assert "give the data it was made with" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_apply_repeats_a_run_of_another_seed_whose_rows_were_split_differently_and_positions_trimmed(
    tiny_classifier_dir: Path, tiny_data: Path, tmp_path: Path
) -> None:
    search(tiny_classifier_dir, tiny_data, tmp_path / "run", "--search.held-out", 0.4, "--seed", 3, "--trim-positions")
    made = Reference(tmp_path / "run", tiny_classifier_dir, tiny_data, np.empty(0))
    apply(made, tmp_path / "again", "--model", str(tiny_classifier_dir))  # which has all its positions
    assert (tmp_path / "again" / "model" / "model.safetensors").read_bytes() == made.bytes("model.safetensors")


def test_apply_says_that_searched_weights_are_gone(
    tiny_model_dir: Path, tiny_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    search(tiny_model_dir, tiny_data, tmp_path / "run", "--recovery.start", "search")
    made = Reference(tmp_path / "run", tiny_model_dir, tiny_data, np.empty(0))
    capsys.readouterr()
    apply(made, tmp_path / "again")
    assert "searched weights" in capsys.readouterr().out
    assert read_manifest(tmp_path / "again" / "model" / "allocation.json")["recovery"]["recovery"]["start"] == "teacher"


def test_apply_refuses_an_allocation_without_its_recovery(reference: Reference, tmp_path: Path) -> None:
    manifest = json.loads(reference.bytes("allocation.json"))
    del manifest["recovery"]["calibration"]
    (tmp_path / "allocation.json").write_text(json.dumps(manifest), "utf-8")
    with pytest.raises(CheckpointError, match="records no calibration settings"):
        autoquant.apply(tmp_path / "allocation.json", reference.run_dir / "teacher", load_glue("sst2", reference.data))


# Other inputs


def test_a_trained_head_is_used_as_it_is(tiny_classifier_dir: Path, tiny_data: Path, tmp_path: Path) -> None:
    search(tiny_classifier_dir, tiny_data, tmp_path / "run")
    given = file_sha256(tiny_classifier_dir / "model.safetensors")
    assert file_sha256(tmp_path / "run" / "teacher" / "model.safetensors") == given
    assert json.loads((tmp_path / "run" / "run.json").read_text("utf-8"))["hashes"]["teacher"] == given
    assert "teacher" not in stages_of(tmp_path / "run")


def write_csv(path: Path, header: list[str], rows: list[tuple[object, ...]]) -> Path:
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([header, *rows])
    return path


def own_files(folder: Path, header: list[str], rows: list[tuple[object, ...]]) -> list[str]:
    """A training file of four fifths of the rows, and an evaluation file, as options."""
    cut = len(rows) * 4 // 5
    train, evaluation = write_csv(folder / "a.csv", header, rows[:cut]), write_csv(folder / "b.csv", header, rows[cut:])
    return ["--train-file", str(train), "--eval-file", str(evaluation), "--label-column", header[-1]]


def search_own(model: Path, files: list[str], run_dir: Path, *more: str) -> dict[str, object]:
    cli.main(["search", "--model", str(model), *files, *MACHINE, *FEWEST, "--controls", "--run-dir", str(run_dir), *more])
    return metrics_of(run_dir)


def test_own_classes_keep_their_names(tiny_model_dir: Path, tiny_data: Path, tmp_path: Path) -> None:
    rows = [(text, ("poor", "good")[label]) for text, label in rows_of(tiny_data, 100)]
    files = own_files(tmp_path, ["review", "verdict"], rows)
    more = ["--text-column", "review", "--max-length", "24", "--budget-mib", "0.02", *("--teacher.epochs", "2")]
    metrics = search_own(tiny_model_dir, files, tmp_path / "run", *more)
    assert metrics["metric"]["name"] == "accuracy"
    assert metrics["metric"]["uniform"] is None
    assert metrics["bytes"]["budget"] == int(0.02 * MIB)
    predicted = autoquant.load(tmp_path / "run" / "model").predict([text for text, _ in rows])
    assert set(predicted) <= {"poor", "good"}


def test_regression_on_pairs_with_full_activations_and_trimmed_positions(
    tiny_model_dir: Path, tiny_data: Path, tmp_path: Path
) -> None:
    texts, draw = [text for text, _ in rows_of(tiny_data, 100)], random.Random(0)
    rows = [(text, draw.choice(texts), round(draw.uniform(0, 5), 2)) for text in texts]
    files = [*own_files(tmp_path, ["left", "right", "likeness"], rows), "--text-column", "left", "right"]
    more = ["--max-length", "40", "--budget-ratio", "5", "--activation-bits", "32"]
    whole = search_own(tiny_model_dir, files, tmp_path / "whole", *more)
    trimmed = search_own(tiny_model_dir, files, tmp_path / "trimmed", *more, "--trim-positions")
    assert trimmed["metric"]["name"] == "pearson"
    assert set(trimmed["all_metrics"]["dnas"]) == {"pearson", "spearmanr"}
    # 24 of 64 positions are not needed, 4 bytes for each of 32 columns
    assert whole["bytes"]["full_precision"] - trimmed["bytes"]["full_precision"] == pytest.approx(24 * 32 * 4, abs=64)
    config = json.loads((tmp_path / "trimmed" / "model" / "config.json").read_text("utf-8"))
    assert config["max_position_embeddings"] == 40
    assert config["quantization_config"]["activation_bits"] == 32
    predictor = autoquant.load(tmp_path / "trimmed" / "model")
    values = predictor.predict([(left, right) for left, right, _ in rows[:40]])
    assert all(isinstance(value, float) for value in values)
    assert predictor.logits([(left, right) for left, right, _ in rows[:3]]).shape == (3, 1)
    # without dynamic activations a text's value does not depend on its neighbours
    assert predictor.predict([(rows[5][0], rows[5][1])])[0] == pytest.approx(values[5], abs=1e-5)


def test_an_encoder_budget_counts_the_encoder(tiny_classifier_dir: Path, tiny_data: Path, tmp_path: Path) -> None:
    metrics = search(tiny_classifier_dir, tiny_data, tmp_path / "run", "--count", "encoder", "--budget-ratio", 12)
    size = metrics["bytes"]
    assert size["full_precision_counted"] == 2 * 4 * (4 * 32 * 32 + 2 * 32 * 64)  # two layers of float32 matrices
    assert 0.99 * size["budget"] <= size["counted"] <= size["budget"] < size["file"]
    kinds = ("query", "key", "value", "attention_output", "ffn_in", "ffn_out")
    assert sum(size["breakdown"][kind] for kind in kinds) == size["counted"]


# From Python


def test_search_from_python(tiny_classifier_dir: Path, tiny_data: Path, tmp_path: Path) -> None:
    data = load_glue("sst2", tiny_data)
    budget = autoquant.SizeBudget(18_000)
    options = {"recipe": FEW_STEPS, "controls": (), "max_length": 32, "machine": HERE}
    result = autoquant.search(tiny_classifier_dir, data, budget=budget, run_dir=tmp_path / "run", **options)
    assert result.metrics == metrics_of(tmp_path / "run")
    assert 0.99 * 18_000 <= (result.model_dir / "model.safetensors").stat().st_size <= 18_000
    assert result.allocation.bits == manifest_allocation(read_manifest(result.model_dir / "allocation.json")).bits
    predictor = result.load()
    encoded = encode(predictor.tokenizer, data.evaluation, predictor.max_length)
    right = (predict_logits(predictor.model, encoded).argmax(axis=1) == data.evaluation.labels).mean()
    assert right == pytest.approx(result.metrics["metric"]["value"])


def test_search_on_rows_in_memory_is_silent(
    tiny_model_dir: Path, tiny_data: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    rows = [(text, ("poor", "good")[label]) for text, label in rows_of(tiny_data, 100)]
    options = {"recipe": FEW_STEPS, "controls": (), "max_length": 32, "machine": HERE, "run_dir": tmp_path / "run"}
    autoquant.search(tiny_model_dir, rows[:80], rows[80:], budget=lambda file, _: autoquant.SizeBudget(file // 6), **options)
    assert capfd.readouterr() == ("", "")


def test_recovery_learns_from_further_texts(
    tiny_classifier_dir: Path, tiny_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The search is the same, the weights are not; evaluation texts among them are said, and a resumed run needs them again."""
    known = [line.split("\t")[0] for line in (tiny_data / "SST-2" / "dev.tsv").read_text("utf-8").splitlines()[1:4]]
    lines = ["sentence", *known, *(f"the film {i} was quite long" for i in range(60))]
    (tmp_path / "more.tsv").write_text("\n".join(lines) + "\n", "utf-8")
    for name, options in (("plain", ()), ("more", ("--more-texts", tmp_path / "more.tsv"))):
        search(tiny_classifier_dir, tiny_data, tmp_path / name, *options)
    assert "3 of 80 evaluation texts are in --more-texts too" in capsys.readouterr().out
    plain, more = (read_manifest(tmp_path / name / "model" / "allocation.json") for name in ("plain", "more"))
    assert manifest_allocation(plain).bits == manifest_allocation(more).bits
    assert plain["hashes"]["file"] != more["hashes"]["file"]
    assert set(more["hashes"]) - set(plain["hashes"]) == {"unlabelled"}
    assert f"--more-texts {tmp_path / 'more.tsv'}" in (tmp_path / "more" / "report.html").read_text("utf-8")
    assert "data.unlabelled" in refusal(search_arguments(tiny_classifier_dir, tiny_data, tmp_path / "more", "--resume"), capsys)


def test_evaluation_texts_among_those_trained_on_are_said() -> None:
    def rows(*texts: str) -> TextData:
        return TextData(texts, None, np.zeros(len(texts), dtype=np.int64))

    said: list[str] = []
    data = TaskData(MOVIES, rows("a", "b", "c"), rows("c", "d"), (), unlabelled=rows("d", "e", "c"))
    workspace: Any = SimpleNamespace(blueprint=SimpleNamespace(data=data), progress=SimpleNamespace(say=said.append))
    pipeline._warn_of_overlap(workspace)
    assert said == [
        "Note: 1 of 2 evaluation texts are in the training file too.",
        "Note: 2 of 2 evaluation texts are in --more-texts too.",
    ]


def test_a_subsample_is_the_rows_with_the_smallest_hash(tiny_classifier_dir: Path, tiny_data: Path, tmp_path: Path) -> None:
    search(tiny_classifier_dir, tiny_data, tmp_path / "run", "--train-rows", 100)
    rows = [line.split("\t") for line in (tiny_data / "SST-2" / "train.tsv").read_text("utf-8").splitlines()[1:]]
    smallest = sorted(rows, key=lambda row: hashlib.sha256(row[0].encode()).hexdigest())[:100]
    digest = hashlib.sha256("".join(f"{text}\x1f{int(label)!r}\x1e" for text, label in smallest).encode()).hexdigest()
    assert json.loads((tmp_path / "run" / "run.json").read_text("utf-8"))["settings"]["data"]["train"] == digest


def test_a_finished_run_is_read_not_done_again(tiny_classifier_dir: Path, tiny_data: Path, tmp_path: Path) -> None:
    search(tiny_classifier_dir, tiny_data, tmp_path / "run")
    before = {path: path.read_bytes() for path in (tmp_path / "run" / "model").iterdir()}
    written = (tmp_path / "run" / "model" / "model.safetensors").stat().st_mtime_ns
    cli.main(search_arguments(tiny_classifier_dir, tiny_data, tmp_path / "run", "--resume"))
    assert {path: path.read_bytes() for path in (tmp_path / "run" / "model").iterdir()} == before
    assert (tmp_path / "run" / "model" / "model.safetensors").stat().st_mtime_ns == written
