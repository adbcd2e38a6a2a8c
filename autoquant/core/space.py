"""What may be chosen? A `SearchSpace` is data: a TOML file in `search_spaces/` or one of your own (`--space PATH`)."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from autoquant.core.errors import SpaceError
from autoquant.core.structure import Unit, find_units
from autoquant.core.subgroup import Matrix, Partition, even_sizes, frequency_buckets

SUPPORTED_WIDTHS = (0, 1, 2, 3, 4, 8)
KINDS = (
    "query",
    "key",
    "value",
    "attention_output",
    "ffn_in",
    "ffn_out",
    "pooler",
    "classifier",
    "word_embedding",
    "position_embedding",
    "type_embedding",
)
SCALES = ("row", "subgroup")
SPACE_FOLDERS = (Path(__file__).parents[1] / "search_spaces", Path(__file__).parents[2] / "search_spaces")


@dataclass(frozen=True)
class Rule:
    """What may be chosen in one kind of matrix: `bits` (0 = prunable) and `groups`: 1, "heads", a number, or "rows".

    For the word embedding `groups` is the number of token-frequency buckets. `scale` overrides the space's granularity.
    """

    bits: tuple[int, ...]
    groups: int | str
    scale: str | None = None

    def __post_init__(self) -> None:
        odd = [b for b in self.bits if type(b) is not int or b not in SUPPORTED_WIDTHS]  # true is no 1, nor is 1.0
        if odd or not any(self.bits) or len(set(self.bits)) != len(self.bits):
            known = ", ".join(map(str, SUPPORTED_WIDTHS))
            raise SpaceError(f"bits = {list(self.bits)} is not a choice of different widths from {known}, one of them above 0.")
        whole = isinstance(self.groups, int) and not isinstance(self.groups, bool) and self.groups >= 1
        if not whole and self.groups not in ("heads", "rows"):
            raise SpaceError(f'groups = {self.groups!r} is not a positive number, "heads" or "rows".')
        if self.scale not in (None, *SCALES):
            raise SpaceError(f'scale = "{self.scale}" is not one of {", ".join(SCALES)}.')

    def count(self, rows: int, heads: int) -> int:
        """Number of sub-groups of a matrix of `rows` rows in a model of `heads` attention heads."""
        wanted = {"heads": heads, "rows": rows}.get(str(self.groups), self.groups)
        return min(int(wanted), rows)


@dataclass(frozen=True)
class SearchSpace:
    """Bit-widths and grouping per kind of matrix, and the scale granularity (`row` or `subgroup`)."""

    name: str
    rules: Mapping[str, Rule] = field(repr=False)
    scale: str = "row"
    heads: bool = False
    """Whether attention heads can be removed as a whole."""
    ffn_blocks: int | str = 0
    """Blocks of FFN neurons per layer that can be removed as a whole: a number (0 = none), or "heads" for as many as heads."""

    def __post_init__(self) -> None:
        if self.scale not in SCALES:
            raise SpaceError(f'Space {self.name}: scale = "{self.scale}" is not one of {", ".join(SCALES)}.')
        blocks = self.ffn_blocks
        whole = isinstance(blocks, int) and not isinstance(blocks, bool) and blocks >= 0
        if not isinstance(self.heads, bool) or not (whole or blocks == "heads"):
            raise SpaceError(f'Space {self.name}: [structure] heads is true or false, ffn_blocks a number or "heads".')

    def units(self, matrices: Sequence[Matrix], heads: int) -> tuple[Unit, ...]:
        """What can be removed as a whole from a model of `heads` attention heads."""
        blocks = heads if self.ffn_blocks == "heads" else int(self.ffn_blocks)
        return find_units(matrices, heads if self.heads else 0, blocks)

    def partition(self, matrices: Sequence[Matrix], heads: int, token_counts: np.ndarray) -> tuple[Partition, ...]:
        """Cut every matrix; `token_counts` [vocabulary] are occurrences in the training text."""
        parts = []
        for matrix in matrices:
            rule = self.rules[matrix.kind]
            groups = rule.count(matrix.rows, heads)
            widths = tuple(sorted(rule.bits))
            if matrix.kind == "word_embedding" and groups > 1:
                if groups > 255:
                    raise SpaceError(f"Space {self.name}: word_embedding has {groups} buckets; at most 255 can be stored.")
                buckets, sizes = frequency_buckets(token_counts, groups)
                parts.append(Partition(matrix, widths, sizes, buckets, rule.scale))
            else:
                parts.append(Partition(matrix, widths, even_sizes(matrix.rows, groups), scale=rule.scale))
        return tuple(parts)


def parse_space(data: Mapping[str, Any], name: str) -> SearchSpace:
    """Check a TOML table: `scale`, `[structure]`, `[default]`, one table per kind; SpaceError names the fault."""
    known = {"name", "scale", "structure", "default", *KINDS}
    unknown = sorted(set(data) - known)
    if unknown:
        raise SpaceError(f"Space {name}: unknown key '{unknown[0]}'; known are {', '.join(sorted(known))}.")
    flat = [key for key in ("structure", "default", *KINDS) if not isinstance(data.get(key, {}), Mapping)]
    if flat:
        raise SpaceError(f"Space {name}: {flat[0]} must be a table, say [{flat[0]}] with bits and groups.")
    rules = {}
    for kind in KINDS:
        table = {**data.get("default", {}), **data.get(kind, {})}
        missing = {"bits", "groups"} - set(table)
        extra = set(table) - {"bits", "groups", "scale"}
        if missing or extra:
            raise SpaceError(f"Space {name}: [{kind}] needs exactly bits and groups ({', '.join(sorted(missing | extra))}).")
        if not isinstance(table["bits"], list):
            raise SpaceError(f"Space {name}: [{kind}] bits must be a list, say [0, 2, 4].")
        rules[kind] = Rule(tuple(table["bits"]), table["groups"], table.get("scale"))
    structure = data.get("structure", {})
    odd = sorted(set(structure) - {"heads", "ffn_blocks"})
    if odd:
        raise SpaceError(f"Space {name}: [structure] knows heads and ffn_blocks, not {odd[0]}.")
    return SearchSpace(str(data.get("name", name)), rules, data.get("scale", "row"), **structure)


def uniform_space(weights: int, embedding: int) -> SearchSpace:
    """One allocation, as in MREM's tables: `weights` bits and one scale a matrix, `embedding` bits in the word embedding and a
    scale for each of its rows; positions, token types and classifier have 8 bits (ours).
    """
    rules = {kind: Rule((weights,), 1) for kind in KINDS}
    rules |= {kind: Rule((8,), 1) for kind in ("classifier", "position_embedding", "type_embedding")}
    rules["word_embedding"] = Rule((embedding,), 1, "row")
    return SearchSpace(f"uniform-{weights}-{embedding}", rules, "subgroup")


def available_spaces() -> list[str]:
    """Names that `load_space` knows."""
    return sorted({path.stem for folder in SPACE_FOLDERS if folder.is_dir() for path in folder.glob("*.toml")})


def load_space(name_or_path: str) -> SearchSpace:
    """Read a search space by name (`search_spaces/<name>.toml`, or `uniform-W-E` for `uniform_space`) or path."""
    uniform = re.fullmatch(r"uniform-(\d)-(\d)", name_or_path)
    if uniform:
        return uniform_space(int(uniform[1]), int(uniform[2]))
    candidates = [folder / f"{name_or_path}.toml" for folder in SPACE_FOLDERS] + [Path(name_or_path)]
    for path in candidates:
        if path.is_file():
            try:
                return parse_space(tomllib.loads(path.read_text("utf-8")), path.stem)
            except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
                raise SpaceError(f"{path} is not TOML: {error}.") from error
    raise SpaceError(f"No search space '{name_or_path}': give a path to a TOML file or one of {', '.join(available_spaces())}.")
