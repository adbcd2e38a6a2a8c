"""Model, data and space weigh what will be written, and what does not fit is refused before any training."""

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from autoquant.blueprint import Blueprint
from autoquant.core.cost import SizeBudget
from autoquant.core.errors import BudgetError, ModelError, SpaceError
from autoquant.core.settings import Recipe
from autoquant.core.space import load_space
from autoquant.tasks.data import TaskData
from autoquant.tasks.load import load_glue

RECIPE = Recipe()


@pytest.fixture(scope="module")
def data(tiny_data: Path) -> TaskData:
    return load_glue("sst2", tiny_data)


def test_a_blueprint_weighs_what_the_model_will(tiny_classifier_dir: Path, data: TaskData) -> None:
    blueprint = Blueprint.draw(str(tiny_classifier_dir), data, RECIPE, 16, trim_positions=True)
    shapes = blueprint.shapes
    partitions = {p.matrix.name: p for p in blueprint.byte_model.partitions}
    assert shapes["bert.embeddings.position_embeddings.weight"] == (16, 32)
    assert partitions["bert.embeddings.position_embeddings.weight"].matrix.rows == 16
    assert set(partitions) | set(blueprint.byte_model.rest) == set(shapes)
    assert not set(partitions) & set(blueprint.byte_model.rest)
    assert blueprint.token_counts.sum() == sum(len(ids) for ids in blueprint.train.ids)


def test_full_bytes_are_those_of_the_file_it_came_from(tiny_classifier_dir: Path, data: TaskData) -> None:
    blueprint = Blueprint.draw(str(tiny_classifier_dir), data, RECIPE, 32, trim_positions=False)
    file = (tiny_classifier_dir / "model.safetensors").stat().st_size
    assert blueprint.full_bytes() == pytest.approx(file, rel=0.002)  # but for the header's padding and metadata
    assert blueprint.full_bytes("encoder") == 4 * 2 * (4 * 32 * 32 + 2 * 32 * 64)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"quantizer": "nothing"}, "Unknown quantizer 'nothing'; known are midrise"),
        ({"space": "nothing"}, "No search space"),
        ({"quantizer": "twn"}, "twn has 2, 8 bits; space 'default' offers 1 in word_embedding"),
        ({"quantizer": "gobo"}, "gobo has a codebook per sub-group; space 'default' has a scale per row: try --space codebook"),
        ({"quantizer": "pq", "space": "structured"}, "pq has a codebook per sub-group"),
    ],
)
def test_what_cannot_be_is_refused(changes: dict[str, Any], message: str, tiny_classifier_dir: Path, data: TaskData) -> None:
    with pytest.raises(SpaceError, match=message):
        Blueprint.draw(str(tiny_classifier_dir), data, dataclasses.replace(RECIPE, **changes), 32, trim_positions=False)


def test_a_model_that_is_not_there_is_refused(data: TaskData, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelError, match=r"config\.json is missing"):
        Blueprint.draw(str(tmp_path / "empty"), data, RECIPE, 32, trim_positions=False)


def test_a_tokenizer_with_more_tokens_than_the_model_has_rows(tiny_classifier_dir: Path, data: TaskData, tmp_path: Path) -> None:
    model = shutil.copytree(tiny_classifier_dir, tmp_path / "model")
    tokenizer = AutoTokenizer.from_pretrained(model)
    rows = json.loads((model / "config.json").read_text())["vocab_size"]
    tokenizer.add_tokens([f"added{index}" for index in range(rows - len(tokenizer) + 1)])
    tokenizer.save_pretrained(model)
    with pytest.raises(ModelError, match=f"has {rows + 1} tokens but {rows} rows of word embeddings"):
        Blueprint.draw(str(model), data, RECIPE, 32, trim_positions=False)


def test_budgets_that_cannot_be_are_refused(tiny_classifier_dir: Path, data: TaskData) -> None:
    blueprint = Blueprint.draw(str(tiny_classifier_dir), data, RECIPE, 32, trim_positions=False)
    for size, message in ((1000, "below the smallest allocation"), (10**9, "not below full precision")):
        with pytest.raises(BudgetError, match=message):
            blueprint.table(SizeBudget(size))


def test_a_budget_above_the_widest_bits_leaves_nothing_to_search(tiny_classifier_dir: Path, data: TaskData) -> None:
    blueprint = Blueprint.draw(str(tiny_classifier_dir), data, RECIPE, 32, trim_positions=False)
    largest = blueprint.table(SizeBudget(30_000)).largest()
    blueprint.check_searchable(SizeBudget(largest))
    with pytest.raises(BudgetError, match="above the largest allocation"):
        blueprint.check_searchable(SizeBudget(largest + 1))


def test_a_given_space_counts_and_not_the_recipes(tiny_classifier_dir: Path, data: TaskData) -> None:
    space = dataclasses.replace(load_space("layer"), scale="subgroup")
    blueprint = Blueprint.draw(str(tiny_classifier_dir), data, RECIPE, 32, trim_positions=False, space=space)
    assert blueprint.packed_settings()["scale"] == "subgroup"
    assert {p.groups for p in blueprint.byte_model.partitions if p.matrix.layer is not None} == {1}
