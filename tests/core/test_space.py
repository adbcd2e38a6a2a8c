from pathlib import Path
from typing import Any

import numpy as np
import pytest

from autoquant.core.errors import SpaceError
from autoquant.core.space import KINDS, Rule, SearchSpace, available_spaces, load_space, parse_space
from autoquant.core.subgroup import Matrix

DEFAULT = {"bits": [0, 2, 4], "groups": "heads"}


@pytest.mark.parametrize("name", ["default", "heads", "groups128", "layer", "rows"])
def test_shipped_spaces_load(name: str) -> None:
    assert name in available_spaces()
    space = load_space(name)
    assert space.name == name
    assert set(space.rules) == set(KINDS)
    assert space.rules["classifier"].bits == (8,)
    assert 0 not in space.rules["word_embedding"].bits


def test_a_kind_overrides_the_default() -> None:
    space = parse_space({"default": DEFAULT, "ffn_in": {"groups": 3}, "scale": "subgroup"}, "mine")
    assert space.rules["ffn_in"] == Rule((0, 2, 4), 3)
    assert space.rules["query"] == Rule((0, 2, 4), "heads")
    assert (space.name, space.scale) == ("mine", "subgroup")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"default": DEFAULT, "querry": DEFAULT}, "unknown key 'querry'"),
        ({"default": {"bits": [2]}}, r"\[query\] needs exactly bits and groups \(groups\)"),
        ({"default": {**DEFAULT, "scale": 1}}, 'scale = "1" is not one of row, subgroup'),
        ({"default": {**DEFAULT, "widths": [2]}}, r"\(widths\)"),
        ({"default": {**DEFAULT, "bits": 2}}, "bits must be a list"),
        ({"default": {**DEFAULT, "bits": [2, 5]}}, r"bits = \[2, 5\]"),
        ({"default": {**DEFAULT, "bits": [2, 2]}}, r"bits = \[2, 2\]"),
        ({"default": {**DEFAULT, "bits": [0]}}, r"bits = \[0\]"),
        ({"default": {**DEFAULT, "bits": [True, 2]}}, r"bits = \[True, 2\]"),
        ({"default": {**DEFAULT, "bits": [2.0, 4]}}, r"bits = \[2\.0, 4\]"),
        ({"default": {**DEFAULT, "bits": []}}, r"bits = \[\]"),
        ({"default": {**DEFAULT, "groups": 0}}, "groups = 0"),
        ({"default": {**DEFAULT, "groups": True}}, "groups = True"),
        ({"default": {**DEFAULT, "groups": "columns"}}, "groups = 'columns'"),
        ({"default": DEFAULT, "scale": "tensor"}, 'scale = "tensor" is not one of row, subgroup'),
        ({"default": 3}, r"default must be a table, say \[default\]"),
        ({"default": DEFAULT, "query": 3}, r"query must be a table, say \[query\]"),
        ({"default": DEFAULT, "structure": {"layers": True}}, "knows heads and ffn_blocks, not layers"),
        ({"default": DEFAULT, "structure": {"heads": 1}}, r"\[structure\] heads is true or false"),
        ({"default": DEFAULT, "structure": {"ffn_blocks": True}}, r"\[structure\] heads is true or false"),
        ({"default": DEFAULT, "structure": {"ffn_blocks": -1}}, r"\[structure\] heads is true or false"),
        ({}, "needs exactly bits and groups"),
    ],
)
def test_refuses_malformed_spaces_by_name(data: dict[str, Any], message: str) -> None:
    with pytest.raises(SpaceError, match=message) as caught:
        parse_space(data, "mine")
    assert "\n" not in str(caught.value)


def test_paths_and_unknown_names(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text("[default]\nbits = [4, 2]\ngroups = 2\n")
    assert load_space(str(path)).name == "mine"
    path.write_text("[default")
    with pytest.raises(SpaceError, match="is not TOML"):
        load_space(str(path))
    with pytest.raises(SpaceError, match=r"No search space 'nothing'.*default, .*layer, .*rows"):
        load_space("nothing")


def test_partition_of_every_grouping() -> None:
    rules = {
        "query": Rule((4, 2), "heads"),
        "ffn_in": Rule((2,), "rows"),
        "pooler": Rule((2,), 5, "subgroup"),
        "classifier": Rule((8,), 5),
        "word_embedding": Rule((1, 8), 3, "row"),
    }
    matrices = [
        Matrix("q", 8, 8, "query", 0),
        Matrix("f", 6, 8, "ffn_in", 0),
        Matrix("p", 8, 8, "pooler"),
        Matrix("c", 2, 8, "classifier"),
        Matrix("w", 9, 8, "word_embedding"),
    ]
    query, ffn, pooler, classifier, words = SearchSpace("s", rules).partition(matrices, 4, np.arange(9))
    assert query.sizes == (2, 2, 2, 2)
    assert query.widths == (2, 4)
    assert ffn.sizes == (1,) * 6
    assert pooler.sizes == (2, 2, 2, 1, 1)
    assert classifier.sizes == (1, 1)
    assert words.sizes == (3, 3, 3)
    assert words.buckets is not None
    assert words.buckets.tolist() == [2, 2, 2, 1, 1, 1, 0, 0, 0]
    assert [part.scale for part in (query, ffn, pooler, classifier, words)] == [None, None, "subgroup", None, "row"]


def test_one_bucket_is_a_plain_run() -> None:
    words = Matrix("w", 9, 8, "word_embedding")
    (part,) = SearchSpace("s", {"word_embedding": Rule((8,), 1)}).partition([words], 4, np.arange(9))
    assert part.buckets is None
    assert part.sizes == (9,)


def test_more_buckets_than_a_byte_can_name() -> None:
    words = Matrix("w", 900, 8, "word_embedding")
    spaces = {count: SearchSpace("s", {"word_embedding": Rule((8,), count)}) for count in (255, 256)}
    assert spaces[255].partition([words], 4, np.arange(900))[0].groups <= 255
    with pytest.raises(SpaceError, match="256 buckets; at most 255"):
        spaces[256].partition([words], 4, np.arange(900))


def test_uniform_spaces_have_one_allocation() -> None:
    space = load_space("uniform-3-4")
    assert {kind: rule.bits for kind, rule in space.rules.items() if rule.bits != (3,)} == {
        "word_embedding": (4,),
        **dict.fromkeys(("classifier", "position_embedding", "type_embedding"), (8,)),
    }
    assert (space.name, space.scale, space.rules["word_embedding"].scale) == ("uniform-3-4", "subgroup", "row")
    with pytest.raises(SpaceError, match="5"):
        load_space("uniform-5-4")
