"""Which rows has the ablation? One change to the recipe each; `ablation.py` measures them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from autoquant.core.settings import Recipe, from_mapping, load_preset


@dataclass(frozen=True)
class Row:
    """One change to the recipe: `changes` as a preset would write them; `scale` instead of the space's."""

    about: str
    changes: Mapping[str, Any] = field(default_factory=dict)
    strategy: str = "dnas"
    scale: str | None = None
    search_too: bool = False
    """Recovery takes the steps of a search, each of which is two training steps, besides its own."""
    searched_by: str = ""
    """The row whose search it begins with: it goes on with a `trust`, a strategy or a recovery of its own."""
    more_texts: bool = False
    """Recovery learns from further texts too, without labels."""

    def recipe(self, preset: str) -> Recipe:
        settings = dataclasses.asdict(load_preset(preset))
        for key, value in self.changes.items():
            settings[key] = {**settings[key], **value} if isinstance(value, Mapping) else value
        if self.search_too:
            settings["recovery"]["steps"] += 2 * settings[SEARCH]["steps"]
        return from_mapping(Recipe, settings, "ablation")


SEARCH, SOFT, LASTING = "search", {"sensitivity_temperature": 4.0}, {"lasting_0": 2.0, "lasting_1": 2.5}
EXCHANGED, LONG_EXCHANGED = {"recovery": {"exchange": 0.3}}, {"recovery": {"exchange": 0.3, "steps": 800}}
LONGER = {"recovery": {"steps": 1200}}
LONGER_ALONE = {"recovery": {"steps": 800, "mrem_steps": 0}}
EXCHANGED_ALONE = {"recovery": {"exchange": 0.3, "mrem_steps": 0}}
ROWS: dict[str, Row] = {
    "dnas": Row("dnas"),
    "uniform": Row("uniform bits", strategy="uniform"),
    "equal-compute": Row("uniform bits, as many steps as search and recovery", strategy="uniform", search_too=True),
    "search-equal-compute": Row("- search, as many steps", strategy="fisher", search_too=True),
    # dnas minus ...
    "distillation": Row("- distillation", {"distillation": {"logits": 0.0, "hidden": 0.0, "cross_entropy": 1.0}}),
    "labels-too": Row("labels as well as distillation", {"distillation": {"cross_entropy": 1.0}}),
    "hidden": Row("- hidden states (the teacher's logits alone)", {"distillation": {"hidden": 0.0}}),
    "hidden-labels": Row("- hidden states, labels as well as logits", {"distillation": {"hidden": 0.0, "cross_entropy": 1.0}}),
    "annealed": Row("distillation that gives way to labels", {"recovery": {"training": "annealed"}}, searched_by="dnas"),
    "gates": Row("- gates (0 in the softmax)", {SEARCH: {"zero": "softmax"}}),
    "structure": Row("structural gates", {"space": "structured"}),
    "scales": Row("- learned scales", {SEARCH: {"scale_learning_rate": 0.0}, "recovery": {"scale_learning_rate": 0.0}}),
    "prior": Row("- prior", {SEARCH: {"prior_strength": 0.0}}),
    "bilevel": Row("- bilevel split", {SEARCH: {"bilevel": False}}),
    "knapsack": Row("- knapsack (argmax and repair)", {SEARCH: {"derive": "argmax"}}),
    "search": Row("- search (prior and knapsack alone)", strategy="fisher"),
    "recovery": Row("- recovery", {"recovery": {"steps": 0, "mrem_steps": 0}}, searched_by="dnas"),
    # nothing below 2 bits
    "floor": Row("2 bits at least", {"space": "floor"}),
    "search-floor": Row("2 bits at least, - search", {"space": "floor"}, strategy="fisher"),
    "race": Row("the best of four after 100 steps of recovery", strategy="race", searched_by="dnas"),
    # how much more of a loss at 0 and 1 bits stays after recovery
    "lasting": Row("losses by 0 and 1 bits count 2 and 2.5 times", {SEARCH: LASTING}),
    "search-lasting": Row("losses by 0 and 1 bits count 2 and 2.5 times, - search", {SEARCH: LASTING}, strategy="fisher"),
    # words that may have 0 bits
    "words": Row("words can be pruned", {"space": "pruned-words"}),
    "search-words": Row("words can be pruned, - search", {"space": "pruned-words"}, strategy="fisher"),
    # how much of what the search learned counts beside the prior
    "trust-50": Row("half of what the search learned", {SEARCH: {"trust": 0.5}}, searched_by="dnas"),
    "trust-25": Row("a quarter of it", {SEARCH: {"trust": 0.25}}, searched_by="dnas"),
    "structure-trust-25": Row(
        "structural gates, a quarter of it", {"space": "structured", SEARCH: {"trust": 0.25}}, searched_by="structure"
    ),
    # size terms
    "piecewise-log": Row("AQ-BERT's piecewise log", {SEARCH: {"size_term": "piecewise_log"}}),
    "soft-barrier": Row("BP-NAS's soft barrier", {SEARCH: {"size_term": "soft_barrier", "one_hot_weight": 0.1}}),
    # group sizes and scale granularity
    "groups-1": Row("1 group a matrix", {"space": "layer"}),
    "groups-128": Row("128 groups a matrix", {"space": "groups128"}),
    "groups-rows": Row("a group a row", {"space": "rows"}),
    "groups-neurons": Row("the default space: heads in query, key and value, rows elsewhere", {"space": "default"}),
    "search-groups-128": Row("128 groups a matrix, - search", {"space": "groups128"}, strategy="fisher"),
    "search-groups-rows": Row("a group a row, - search", {"space": "rows"}, strategy="fisher"),
    "search-groups-neurons": Row("the default space, - search", {"space": "default"}, strategy="fisher"),
    "heads-subgroup": Row("a scale per sub-group", scale="subgroup"),
    "groups-1-subgroup": Row("1 group, a scale per sub-group", {"space": "layer"}, scale="subgroup"),
    "groups-128-subgroup": Row("128 groups, a scale per sub-group", {"space": "groups128"}, scale="subgroup"),
    "groups-neurons-subgroup": Row("the default space, a scale per sub-group", {"space": "default"}, scale="subgroup"),
    # start and schedule
    "no-warm-up": Row("bits open from the start", {SEARCH: {"warmup": 0.0}}),
    "late": Row("bits open after half of the steps", {SEARCH: {"warmup": 0.5}}),
    "constant-temperature": Row("temperature 1 throughout", {SEARCH: {"temperature_end": 1.0}}),
    "cold": Row("temperature falls to 0.05", {SEARCH: {"temperature_end": 0.05}}),
    "short": Row("100 search steps", {SEARCH: {"steps": 100}}),
    "short-long": Row(
        "100 search steps, 800 of recovery: as long in all",
        {SEARCH: {"steps": 100}, "recovery": {"steps": 800}},
        searched_by="short",
    ),
    "long": Row("600 search steps", {SEARCH: {"steps": 600}}),
    "hard": Row("hard sampling", {SEARCH: {"sampling": "hard"}}),
    "soft-weights": Row("weight steps under the relaxed mixture", {SEARCH: {"weight_sampling": "soft"}}),
    "second-order": Row("second order", {SEARCH: {"unrolled": 1e-4}}),
    "continue": Row("recovery goes on from the searched weights", {"recovery": {"start": "search"}}, searched_by="dnas"),
    # sensitivities and recovery
    "coherent": Row("coherent sensitivities", {SEARCH: {"sensitivity": "coherent"}}),
    "search-coherent": Row("coherent sensitivities, - search", {SEARCH: {"sensitivity": "coherent"}}, strategy="fisher"),
    "search-measured": Row("measured losses, - search", strategy="measured"),
    "search-measured-structure": Row("measured losses, structural gates, - search", {"space": "structured"}, strategy="measured"),
    "soft-sensitivity": Row("softened sensitivities", {SEARCH: SOFT}),
    "search-soft": Row("softened sensitivities, - search", {SEARCH: SOFT}, strategy="fisher"),
    "search-soft-words": Row(
        "softened sensitivities, words can be pruned, - search", {SEARCH: SOFT, "space": "pruned-words"}, strategy="fisher"
    ),
    "search-soft-structure": Row(
        "softened sensitivities, structural gates, - search", {SEARCH: SOFT, "space": "structured"}, strategy="fisher"
    ),
    "soft-structure": Row("softened sensitivities, structural gates", {SEARCH: SOFT, "space": "structured"}),
    "search-structure": Row("structural gates, - search", {"space": "structured"}, strategy="fisher"),
    "structure-continue": Row(
        "structural gates, from the searched weights",
        {"space": "structured", "recovery": {"start": "search"}},
        searched_by="structure",
    ),
    "long-recovery": Row("as many more steps of recovery as the search has", search_too=True, searched_by="dnas"),
    "no-mrem-800": Row("- reconstruction, 800 steps", LONGER_ALONE, searched_by="dnas"),
    "high-rate": Row("recovery rate 5e-4", {"recovery": {"learning_rate": 5e-4}}, searched_by="dnas"),
    # more texts
    "exchange": Row("recovery on exchanged words", EXCHANGED, searched_by="dnas"),
    "exchange-no-mrem": Row("recovery on exchanged words, - reconstruction", EXCHANGED_ALONE, searched_by="dnas"),
    "exchange-uniform": Row("uniform bits, recovery on exchanged words", EXCHANGED, strategy="uniform"),
    "exchange-search": Row("recovery on exchanged words, - search", EXCHANGED, strategy="fisher"),
    "exchange-search-floor": Row(
        "recovery on exchanged words, 2 bits at least, - search", {"space": "floor", **EXCHANGED}, strategy="fisher"
    ),
    "exchange-long": Row("recovery on exchanged words, 800 steps", LONG_EXCHANGED, searched_by="dnas"),
    "exchange-long-uniform": Row("uniform bits, recovery on exchanged words, 800 steps", LONG_EXCHANGED, strategy="uniform"),
    "longer": Row("1,200 steps of recovery", LONGER, searched_by="dnas"),
    "longer-uniform": Row("uniform bits, 1,200 steps of recovery", LONGER, strategy="uniform"),
    "texts": Row("1,200 steps of recovery, further texts without labels", LONGER, searched_by="dnas", more_texts=True),
    "texts-uniform": Row("uniform bits, 1,200 steps, further texts", LONGER, strategy="uniform", more_texts=True),
    "texts-search": Row("- search, 1,200 steps, further texts", LONGER, strategy="fisher", more_texts=True),
    "no-mrem": Row("- reconstruction", {"recovery": {"mrem_steps": 0}}, searched_by="dnas"),
}
