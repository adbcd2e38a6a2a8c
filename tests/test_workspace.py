"""What all methods share is made once, kept in the run directory, and the same when read again."""

import dataclasses
import inspect
import json
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from autoquant import workspace as module
from autoquant.blueprint import Blueprint
from autoquant.core.cost import SizeBudget
from autoquant.core.progress import SilentProgress
from autoquant.core.run import RunDirectory
from autoquant.core.settings import Recipe, RecoverySettings, SearchSettings, TeacherSettings
from autoquant.machine import Machine
from autoquant.refine import REFINERS
from autoquant.strategies import STRATEGIES, Start
from autoquant.supernet.mixing import KERNELS
from autoquant.tasks.data import TaskData
from autoquant.tasks.load import load_glue
from autoquant.workspace import Workspace

MACHINE = Machine("cpu", compile=False)
RECIPE = Recipe(
    activation_bits=32,
    teacher=TeacherSettings(epochs=1),
    search=SearchSettings(steps=2, batch_size=8, calibration_samples=32),
)
Opener = Callable[..., AbstractContextManager[Workspace]]


@pytest.fixture(autouse=True)
def compile_as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """A workspace sets the switch for the whole process."""
    monkeypatch.setattr(KERNELS, "compile", KERNELS.compile)


@pytest.fixture(scope="module")
def data(tiny_data: Path) -> TaskData:
    return load_glue("sst2", tiny_data)


@pytest.fixture
def open_workspace(tiny_classifier_dir: Path, data: TaskData, tmp_path: Path) -> Opener:
    """`with open_workspace(model, recipe) as workspace`; the second time it goes on with the same run."""

    @contextmanager
    def open_(model: Path = tiny_classifier_dir, recipe: Recipe = RECIPE) -> Iterator[Workspace]:
        blueprint = Blueprint.draw(str(model), data, recipe, 32, trim_positions=False)
        with RunDirectory.open(tmp_path / "run", {}, resume=True) as run:
            yield Workspace(blueprint, run, SilentProgress(), MACHINE, seed=0)

    return open_


def refuse(*_: object, **__: object) -> Any:
    pytest.fail("done again")


def test_a_trained_head_is_the_teacher(open_workspace: Opener, tiny_classifier: torch.nn.Module) -> None:
    with open_workspace() as workspace:
        assert workspace.teacher_result() == {"fine_tuned": False}
        state, folder = workspace.teacher.state_dict(), workspace.run.teacher_dir
    assert all(torch.equal(state[name], tensor) for name, tensor in tiny_classifier.state_dict().items())
    modes = {file.stat().st_mode for file in folder.iterdir()}
    assert len(modes) == 1, "Whoever may read its config may read its weights."


def test_a_teacher_that_knows_other_classes_is_said_before_anything_is_learned(
    open_workspace: Opener, tiny_classifier_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr(SilentProgress, "say", lambda _, text: said.append(text))
    other = Path(shutil.copytree(tiny_classifier_dir, tmp_path / "other"))
    config = json.loads((other / "config.json").read_text())
    names = {"id2label": {0: "food", 1: "sport"}, "label2id": {"food": 0, "sport": 1}}
    (other / "config.json").write_text(json.dumps({**config, **names}))
    for _ in range(2):  # made, then read
        with open_workspace(other) as workspace:
            workspace.teacher_result()
    assert said == [f"Note: {other} knows the classes food, sport; they are taken for negative, positive, in this order."]


def test_a_bare_encoder_is_fine_tuned_once(open_workspace: Opener, tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with open_workspace(tiny_model_dir) as workspace:
        result, state, digest = workspace.teacher_result(), workspace.teacher.state_dict(), workspace.teacher_hash
        assert result["fine_tuned"]
        assert result["steps"] == len([line for line in workspace.run.read_log() if line["stage"] == "teacher"]) > 0
    monkeypatch.setattr(module, "finetune", refuse)
    with open_workspace(tiny_model_dir) as workspace:
        assert workspace.teacher_result() == result
        assert workspace.teacher_hash == digest
        assert not workspace.teacher.training
        assert all(torch.equal(tensor, state[name]) for name, tensor in workspace.teacher.state_dict().items())


def test_a_teacher_is_stopped_by_texts_that_it_does_not_learn_from(
    open_workspace: Opener, tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(module, "finetune", lambda _, train, held_out, *__: asked.append((train, held_out)) or {})
    with open_workspace(tiny_model_dir) as workspace:
        workspace.teacher_result()
        assert asked == [(workspace.train, workspace.held_out)]


def test_calibration_reads_texts_of_the_training_part(open_workspace: Opener) -> None:
    with open_workspace() as workspace:
        parts = workspace.calibration_texts, workspace.train, workspace.held_out
    chosen, train, held_out = ({ids.tobytes() for ids in part.ids} for part in parts)
    assert len(parts[0]) == 32
    assert chosen <= train
    assert chosen.isdisjoint(held_out)


def test_sensitivities_are_measured_as_the_settings_say(open_workspace: Opener, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, Any]] = []

    def watched(name: str) -> None:
        real = getattr(module, name)

        def scores(*arguments: Any) -> Any:
            asked.append(inspect.signature(real).bind(*arguments).arguments)
            return real(*arguments)

        monkeypatch.setattr(module, name, scores)

    for name in ("fisher_scores", "measured_scores"):
        watched(name)
    how: dict[str, Any] = {"sensitivity": "coherent", "sensitivity_temperature": 3.0, "measured_samples": 5}
    recipe = dataclasses.replace(RECIPE, search=dataclasses.replace(RECIPE.search, **how))
    with open_workspace(recipe=recipe) as workspace:
        problem = workspace.problem(SizeBudget(20_000), "search")
        problem.measured(problem)
        fisher, measured = asked
        assert (fisher["coherent"], fisher["temperature"], fisher["seed"]) == (True, 3.0, 0)
        assert fisher["data"] is workspace.calibration_texts
        assert [ids.tolist() for ids in measured["data"].ids] == [ids.tolist() for ids in fisher["data"].ids[:5]]


def test_calibration_is_kept(open_workspace: Opener, monkeypatch: pytest.MonkeyPatch) -> None:
    with open_workspace() as workspace:
        made = workspace.calibration
        table = workspace.blueprint.table(SizeBudget(20_000))
    assert made.sensitivity.choices.shape == table.bytes.shape
    monkeypatch.setattr(module, "fisher_scores", refuse)
    with open_workspace() as workspace:
        read = workspace.calibration
    np.testing.assert_array_equal(read.sensitivity.choices, made.sensitivity.choices)
    assert read.scales.keys() == made.scales.keys() == table.slices().keys()
    assert all(torch.equal(read.scales[name], scale) for name, scale in made.scales.items())


@pytest.mark.parametrize("measured", [False, True])
def test_strategies_see_what_stays_after_recovery(measured: bool, open_workspace: Opener) -> None:
    with open_workspace() as workspace:
        table = workspace.blueprint.table(SizeBudget(20_000))
    lasting = dataclasses.replace(RECIPE, search=dataclasses.replace(RECIPE.search, lasting_0=2.0, lasting_1=3.0))
    found = []
    for recipe in (RECIPE, lasting):
        with open_workspace(recipe=recipe) as workspace:
            problem = workspace.problem(SizeBudget(20_000), f"search-{len(found)}")
            found.append(problem.measured(problem) if measured else problem.sensitivity)
    wanted = found[0].choices * [{0: 2.0, 1: 3.0}.get(width, 1.0) for width in table.widths]
    np.testing.assert_allclose(found[1].choices, wanted)


def test_train_and_held_out_are_the_file(open_workspace: Opener, data: TaskData) -> None:
    with open_workspace() as workspace:
        assert len(workspace.train) + len(workspace.held_out) == len(workspace.train_all) == len(data.train)
        assert len(workspace.held_out) == pytest.approx(0.2 * len(data.train), abs=1)
        problem = workspace.problem(SizeBudget(20_000), "search")
        for part, texts in ((problem.train(), workspace.train), (problem.held_out(), workspace.held_out)):
            assert [ids.tolist() for ids in part.data.ids] == [ids.tolist() for ids in texts.ids]
            assert part.data.labels.tolist() == texts.labels.tolist()


def test_a_finished_search_is_read_and_not_done_again(open_workspace: Opener, monkeypatch: pytest.MonkeyPatch) -> None:
    budget = SizeBudget(20_000)
    with open_workspace() as workspace:
        made = {name: workspace.search(name, budget) for name in ("dnas", "fisher", "uniform", "reversed")}
    for name in made:
        monkeypatch.setitem(STRATEGIES, name, type("Refusing", (), {"search": staticmethod(refuse)})())
    with open_workspace() as workspace:
        for name, result in made.items():
            read = workspace.search(name, budget)
            assert read.allocation == result.allocation
            for ours, theirs in ((read.values, result.values), (read.probability, result.probability)):
                assert (ours is None) == (theirs is None)
                assert ours is None or np.array_equal(ours, theirs)
            assert (read.searched is None) == (result.searched is None)
            if read.searched is not None and result.searched is not None:
                assert all(torch.equal(read.searched.weights[k], v) for k, v in result.searched.weights.items())
                assert all(torch.equal(read.searched.scales[k], v) for k, v in result.searched.scales.items())
        assert set(workspace.run.seconds()) >= {f"search-{name}" for name in made}


def test_a_stage_does_not_count_the_seconds_of_one_within_it(open_workspace: Opener) -> None:
    with open_workspace() as workspace:
        with workspace.timed("outer"):
            time.sleep(0.05)
            with workspace.timed("inner"):
                time.sleep(0.3)
        with workspace.timed("next"):
            pass
        seconds = workspace.run.seconds()
        assert 0.05 <= seconds["outer"] < 0.25
        assert seconds["inner"] >= 0.3
        assert seconds["next"] < 0.25
        assert set(workspace.run.peaks_mib()) == {"outer", "inner", "next"}


def test_a_race_that_is_killed_before_its_result_is_written_is_not_run_again(
    open_workspace: Opener, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it measured goes only when the result is there."""
    recipe, budget = dataclasses.replace(RECIPE, search=dataclasses.replace(RECIPE.search, race_steps=1)), SizeBudget(20_000)
    with open_workspace(recipe=recipe) as workspace, monkeypatch.context() as patch:
        save = workspace.run.save_state

        def killed(stage: str, state: Any) -> None:
            if stage == "search-race-result":
                raise KeyboardInterrupt
            save(stage, state)

        patch.setattr(workspace.run, "save_state", killed)
        with pytest.raises(KeyboardInterrupt):
            workspace.search("race", budget)
    monkeypatch.setitem(REFINERS, recipe.recovery.training, type("Refusing", (), {"refine": staticmethod(refuse)})())
    with open_workspace(recipe=recipe) as workspace:
        workspace.search("race", budget)
        assert not list((workspace.run.path / "checkpoint").glob("race-*"))


def test_a_race_recovers_for_no_longer_than_the_recipe(open_workspace: Opener, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    monkeypatch.setattr(Workspace, "loss_after", lambda _, steps, *__: asked.append(steps) or 0.0)
    with open_workspace(recipe=dataclasses.replace(RECIPE, recovery=RecoverySettings(steps=3))) as workspace:
        problem = workspace.problem(SizeBudget(20_000), "search")
        for steps in (2, 5):
            search = dataclasses.replace(problem.search, race_steps=steps)
            problem.recovered(dataclasses.replace(problem, search=search), workspace.search("uniform", problem.budget), "race")
    assert asked == [2, 3]


def test_recovery_goes_on_from_searched_weights_and_scales_where_it_should(open_workspace: Opener) -> None:
    name = "bert.encoder.layer.0.output.dense"
    with open_workspace(recipe=dataclasses.replace(RECIPE, recovery=RecoverySettings(start="search"))) as workspace:
        weights = {key: tensor + 1 for key, tensor in workspace.teacher.state_dict().items()}
        scales = {key: 2 * scale for key, scale in workspace.starting_point.scales.items()}
        found = dataclasses.replace(workspace.search("uniform", SizeBudget(20_000)), searched=Start(weights, scales))
        mixed = workspace.to_recover(found).model.get_submodule(name).mixed
        assert torch.equal(mixed.weight, weights[f"{name}.weight"])  # type: ignore[union-attr]
        torch.testing.assert_close(mixed.log_scale.exp(), scales[f"{name}.weight"])  # type: ignore[union-attr,operator]


def test_what_a_run_has_already_stays_when_it_adopts(open_workspace: Opener) -> None:
    with open_workspace() as workspace:
        workspace.run.save_state("calibration", {"whose": "mine"})
        workspace.adopt({name: {"whose": "theirs"} for name in ("starting-point", "calibration")}, {})
        assert workspace.run.load_state("calibration") == {"whose": "mine"}
        assert workspace.run.load_state("starting-point") == {"whose": "theirs"}


def test_the_reversed_control_reuses_the_search(open_workspace: Opener) -> None:
    with open_workspace() as workspace:
        workspace.search("reversed", SizeBudget(20_000))
        logged = [line for line in workspace.run.read_log() if line["stage"] == "search-dnas"]
        assert len(logged) == 2
        workspace.search("dnas", SizeBudget(20_000))
        assert [line for line in workspace.run.read_log() if line["stage"] == "search-dnas"] == logged


def test_supernets_are_fresh_and_start_from_the_teacher(open_workspace: Opener) -> None:
    with open_workspace() as workspace:
        first, second = (workspace.make_supernet(SizeBudget(20_000)) for _ in range(2))
        name = "bert.encoder.layer.0.output.dense"
        weight = workspace.teacher.get_parameter(f"{name}.weight")
        assert torch.equal(first.model.get_submodule(name).mixed.weight, weight)  # type: ignore[union-attr]
        with torch.no_grad():
            first.model.get_submodule(name).mixed.weight.zero_()  # type: ignore[union-attr]
        assert torch.equal(second.model.get_submodule(name).mixed.weight, weight)  # type: ignore[union-attr]
        scale = second.model.get_submodule(name).mixed.log_scale.exp()  # type: ignore[union-attr,operator]
        torch.testing.assert_close(scale, workspace.calibration.scales[f"{name}.weight"])
