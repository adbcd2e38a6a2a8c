"""What is shared is made once, and names of cells say what they are."""

import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, BertForSequenceClassification

from autoquant.blueprint import Blueprint
from autoquant.core.cost import SizeBudget
from autoquant.core.progress import SilentProgress
from autoquant.core.run import RunDirectory
from autoquant.core.settings import Recipe, RecoverySettings, SearchSettings, StudentSettings, TeacherSettings
from autoquant.machine import Machine
from autoquant.shared import SharedParts, _upstream, cell_name, drop_copies, pivot_budget, weights_sha256
from autoquant.supernet.mixing import KERNELS
from autoquant.tasks.load import load_glue
from autoquant.workspace import Workspace
from conftest import save_tokenizer

RECIPE = Recipe(search=SearchSettings(steps=2, calibration_samples=32), teacher=TeacherSettings(epochs=1))


@pytest.fixture
def parts(tiny_model_dir: Path, tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SharedParts:
    monkeypatch.setattr(KERNELS, "compile", False)
    machine = Machine("cpu", 1, compile=False)
    data, pivot = load_glue("sst2", tiny_data), SizeBudget(20_000)
    return SharedParts(tmp_path / "shared", str(tiny_model_dir), data, RECIPE, 0, pivot, 32, False, machine, SilentProgress())


def with_strategy(name: str) -> Recipe:
    return dataclasses.replace(RECIPE, search=dataclasses.replace(RECIPE.search, strategy=name))


def searched(folder: Path) -> int:
    return sum(line["stage"] == "search-dnas" for line in RunDirectory(folder).read_log())


def test_one_teacher_and_one_search_for_all(parts: SharedParts) -> None:
    assert parts.teacher == str(parts.folder / "teacher" / "teacher")
    parts.for_run(with_strategy("uniform"), SizeBudget(18_000), 0)
    (folder,) = parts.folder.glob("seed0-*")
    assert searched(folder) == 0
    for size in (18_000, 24_000):
        for name in ("race", "dnas", "reversed", "fisher"):  # a race begins with the search
            parts.for_run(with_strategy(name), SizeBudget(size), 0)
    parts.for_run(dataclasses.replace(RECIPE, recovery=RecoverySettings(steps=7)), SizeBudget(18_000), 0)
    assert searched(folder) == RECIPE.search.steps
    assert list(parts.folder.glob("seed0-*")) == [folder]
    assert set(parts.prepared(RECIPE, SizeBudget(18_000), 0).results) == {"dnas", "reversed"}
    assert parts.prepared(RECIPE, SizeBudget(18_000), 0).peaks_mib["search-dnas"] > 1


def test_what_decides_a_calibration_names_its_folder(parts: SharedParts) -> None:
    others = [{"trim_positions": True}, {"max_length": 16}, {"data": parts.data.for_tuning()}]
    others.append({"pivot": SizeBudget(20_000, "encoder")})
    keys = {dataclasses.replace(parts, **change)._key(RECIPE, 0) for change in ({}, *others)}
    assert len(keys) == 1 + len(others)


def test_a_space_that_was_edited_has_a_folder_of_its_own(parts: SharedParts, tmp_path: Path) -> None:
    file, keys = tmp_path / "mine.toml", set()
    for bits in ("[2, 4]", "[2, 8]"):
        file.write_text(f'name = "mine"\n[default]\nbits = {bits}\ngroups = 1\n', "utf-8")
        keys.add(parts._key(dataclasses.replace(RECIPE, space=str(file)), 0))
    assert len(keys) == 2


def test_what_is_shared_is_made_with_seed_and_positions_of_its_runs(parts: SharedParts, tiny_classifier_dir: Path) -> None:
    trimmed = dataclasses.replace(parts, model=str(tiny_classifier_dir), trim_positions=True)
    with trimmed._workspace(RECIPE, "seed3", 3) as workspace:
        assert workspace.seed == workspace.context.seed == 3
        assert workspace.blueprint.trim_positions
        assert workspace.blueprint.max_length == 32


@pytest.mark.parametrize("start", ["teacher", "search"])
def test_searched_weights_are_taken_over_where_recovery_goes_on_from_them(
    start: Any, parts: SharedParts, tiny_classifier_dir: Path
) -> None:
    headed, adopted = dataclasses.replace(parts, model=str(tiny_classifier_dir)), dict[str, Any]()
    shared = headed.for_run(dataclasses.replace(RECIPE, recovery=RecoverySettings(start=start)), SizeBudget(18_000), 0)
    shared.adopt(SimpleNamespace(adopt=lambda _, results: adopted.update(results)))  # type: ignore[arg-type]
    assert (adopted["dnas"].searched is not None) == (start == "search")


@pytest.mark.parametrize("steps", [7, 400, 1200])
def test_folders_are_found_whatever_recovery_is_the_default(steps: int) -> None:
    """It had 400 steps when folders of sweeps and comparisons that people may have were named."""
    assert RecoverySettings().steps != 400
    recipe = dataclasses.replace(RECIPE, recovery=RecoverySettings(steps=steps))
    assert _upstream(recipe) == dataclasses.replace(RECIPE, recovery=RecoverySettings(steps=400))


def test_a_model_with_a_head_in_several_files_is_kept_in_one(
    parts: SharedParts, tiny_classifier: BertForSequenceClassification, tmp_path: Path
) -> None:
    tiny_classifier.save_pretrained(tmp_path / "sharded", max_shard_size="40KB")
    save_tokenizer(tmp_path / "sharded")
    assert not (tmp_path / "sharded" / "model.safetensors").exists()
    headed = dataclasses.replace(parts, model=str(tmp_path / "sharded"))
    assert len(weights_sha256(headed.teacher)) == 64
    kept = load_file(Path(headed.teacher) / "model.safetensors")
    assert torch.equal(kept["classifier.weight"], tiny_classifier.classifier.weight)
    assert RunDirectory(parts.folder / "teacher").read_log() == []  # not trained


def test_the_shared_teacher_has_all_layers_where_every_run_keeps_some(parts: SharedParts) -> None:
    shallow = dataclasses.replace(RECIPE, student=StudentSettings(keep_every=2, steps=1))
    teacher = dataclasses.replace(parts, recipe=shallow).teacher
    assert AutoConfig.from_pretrained(teacher).num_hidden_layers == 2


def test_most_probable_choices_cannot_be_shared(parts: SharedParts) -> None:
    argmax = dataclasses.replace(RECIPE, search=dataclasses.replace(RECIPE.search, derive="argmax"))
    assert "search" not in parts.for_run(argmax, SizeBudget(18_000), 0).origin
    assert "search" in parts.for_run(RECIPE, SizeBudget(18_000), 0).origin


def test_a_budget_that_counts_otherwise_has_a_search_of_its_own(parts: SharedParts) -> None:
    assert "search" not in parts.for_run(RECIPE, SizeBudget(18_000, "encoder"), 0).origin


def test_what_starts_over_starts_from_the_model_that_was_given(parts: SharedParts, tmp_path: Path) -> None:
    """Not from the teacher that all runs share."""
    shared = parts.for_run(RECIPE, SizeBudget(18_000), 0)
    blueprint = Blueprint.draw(parts.teacher, parts.data, RECIPE, 32, trim_positions=False)
    with RunDirectory.open(tmp_path / "run", {}) as run:
        workspace = Workspace(blueprint, run, SilentProgress(), parts.machine, 0)
        shared.adopt(workspace)
        name = "bert.encoder.layer.0.output.dense.weight"
        given, _ = Blueprint.draw(parts.model, parts.data, RECIPE, 32, trim_positions=False).source.load(0)
        started, teacher = workspace.pretrained().weights[name], workspace.teacher.get_parameter(name)
        assert torch.equal(started, given.get_parameter(name))
        assert not torch.equal(started, teacher)


def test_cells_are_named_after_what_they_are() -> None:
    assert cell_name("dnas", 6 * 2**20, 0) == "dnas-6MiB-seed0"
    assert cell_name("gobo-3-4-32", 3_634_718, 2) == "gobo-3-4-32-3.466MiB-seed2"


def test_the_search_is_at_the_middle_budget() -> None:
    assert pivot_budget([1, 2, 4]) == 2
    assert pivot_budget([3, 100, 5]) == 5


def test_copies_go_and_the_result_stays(tmp_path: Path) -> None:
    for name in ("teacher", "checkpoint", "model"):
        (tmp_path / name).mkdir()
    drop_copies(tmp_path)
    drop_copies(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
