"""AQ-BERT's presets from a bare encoder to a packed file."""

import json
from pathlib import Path

import pytest

from autoquant.core.settings import load_preset
from autoquant.core.space import load_space
from runs import metrics_of, search

PRESETS = {"aqbert": "encoder", "aqbert-loss": "file"}


@pytest.mark.parametrize(("preset", "count"), PRESETS.items())
def test_fills_its_budget_and_says_how_far_the_search_was_off(
    preset: str, count: str, tiny_model_dir: Path, tiny_data: Path, tmp_path: Path
) -> None:
    options = ["--preset", preset, "--count", count, "--budget-ratio", "5", "--search.steps", "4"]
    metrics = search(tiny_model_dir, tiny_data, tmp_path, *options)
    sizes = metrics["bytes"]
    assert 0.95 * sizes["budget"] <= sizes["counted"] <= sizes["budget"]
    assert sizes["derived"] > 0
    assert metrics["reload_difference"] < 1e-5
    manifest = json.loads((tmp_path / "model" / "allocation.json").read_text("utf-8"))
    assert manifest["recovery"]["recovery"]["start"] == "pretrained"
    kinds = {matrix["kind"]: set(matrix["bits"]) for matrix in manifest["matrices"]}
    assert kinds["query"] <= {0, 2, 4, 8}
    if preset == "aqbert":
        assert manifest["quantizer"] == "minmax"
        assert kinds["word_embedding"] == kinds["position_embedding"] == {8}
    assert metrics == metrics_of(tmp_path)


def test_what_the_paper_says_is_what_the_preset_does() -> None:
    recipe, space = load_preset("aqbert"), load_space("aqbert")
    losses = recipe.distillation
    assert (losses.cross_entropy, losses.logits, losses.hidden) == (1.0, 0.0, 0.0)
    search = recipe.search
    assert (search.sampling, search.weight_sampling) == ("soft", "soft")
    chosen = search.size_term, search.zero, search.derive, search.schedule, search.bilevel, search.prior_strength
    assert chosen == ("piecewise_log", "softmax", "argmax", "exponential", True, 0.0)
    assert (search.weight_learning_rate, search.architecture_optimizer) == (2e-5, "sgd")
    assert (recipe.quantizer, recipe.activation_bits, space.scale) == ("minmax", 8, "subgroup")
    assert (space.rules["ffn_in"].bits, space.rules["ffn_in"].groups) == ((0, 2, 4, 8), 128)
    assert {space.rules[kind].bits for kind in ("word_embedding", "position_embedding", "type_embedding")} == {(8,)}
