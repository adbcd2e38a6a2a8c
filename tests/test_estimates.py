"""Every stage has a time before it runs."""

from pathlib import Path

from autoquant.blueprint import Blueprint
from autoquant.core.settings import Recipe
from autoquant.estimates import estimate_stages
from autoquant.tasks.load import load_glue


def test_every_stage_is_estimated(tiny_classifier_dir: Path, tiny_data: Path) -> None:
    blueprint = Blueprint.draw(str(tiny_classifier_dir), load_glue("sst2", tiny_data), Recipe(), 32, trim_positions=False)
    stages = estimate_stages(blueprint, "dnas", ["uniform"])
    assert [name for name, _ in stages][-4:] == ["Recover dnas", "Reconstruct", "Recover uniform", "Reconstruct"]
    assert all(seconds > 0 for _, seconds in stages)
