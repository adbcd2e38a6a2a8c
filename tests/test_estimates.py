"""Every stage has a time before it runs."""

from pathlib import Path

from autoquant.blueprint import Blueprint
from autoquant.core.settings import Recipe, RecoverySettings
from autoquant.estimates import estimate_stages
from autoquant.tasks.load import load_glue


def test_every_stage_is_estimated(tiny_classifier_dir: Path, tiny_data: Path) -> None:
    blueprint = Blueprint.draw(str(tiny_classifier_dir), load_glue("sst2", tiny_data), Recipe(), 32, trim_positions=False)
    stages = estimate_stages(blueprint, "dnas", ["uniform"])
    assert [name for name, _ in stages][-4:] == ["Recover dnas", "Reconstruct", "Recover uniform", "Reconstruct"]
    assert all(seconds > 0 for _, seconds in stages)
    assert "Teacher" not in dict(stages)  # it is a classifier already


def test_a_race_begins_with_one_search_and_recovers_every_candidate(tiny_classifier_dir: Path, tiny_data: Path) -> None:
    data = load_glue("sst2", tiny_data)
    seconds = []
    for exchange, controls in ((0.0, ["dnas"]), (0.3, [])):
        recipe = Recipe(recovery=RecoverySettings(steps=60, exchange=exchange))
        blueprint = Blueprint.draw(str(tiny_classifier_dir), data, recipe, 32, trim_positions=False)
        stages = estimate_stages(blueprint, "race", controls)
        names = [name for name, _ in stages]
        assert names.count("Search") == 1
        assert [n for n in names if "race-" in n] == [f"Recover race-{name}" for name in ("dnas", "fisher", "lifted", "uniform")]
        assert dict(stages)["Recover race-fisher"] == dict(stages)["Recover race"]  # 100 steps, never more than the recovery's
        seconds.append(dict(stages)["Recover race"])
    assert seconds[1] > seconds[0]  # the teacher reads what was exchanged
