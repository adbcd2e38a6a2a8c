"""What is known before anything is trained? Model, data and space, and with them the bytes of every choice."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from autoquant.backbones.load import ModelSource, open_model
from autoquant.core.allocation import BitAllocation
from autoquant.core.cost import MIB, ByteModel, ChoiceTable, SizeBudget, TensorEntry, check_budget, choice_table, header_json
from autoquant.core.errors import BudgetError, DataError, ModelError, SpaceError
from autoquant.core.settings import Recipe, StudentSettings
from autoquant.core.space import SearchSpace, load_space
from autoquant.core.subgroup import Partition
from autoquant.pack.checkpoint import metadata_text
from autoquant.quantizers import QUANTIZERS, CodebookQuantizer, Quantizer
from autoquant.supernet.build import RANGE_NAME
from autoquant.tasks.data import TaskData
from autoquant.training.batches import Encoded, encode


@dataclass(frozen=True, eq=False)
class Blueprint:
    """Model, data and space, known before anything is trained: enough to weigh every choice."""

    source: ModelSource
    data: TaskData
    recipe: Recipe
    space: SearchSpace
    max_length: int
    trim_positions: bool
    train: Encoded

    @classmethod
    def draw(
        cls,
        model: str,
        data: TaskData,
        recipe: Recipe,
        max_length: int,
        trim_positions: bool,
        space: SearchSpace | None = None,
    ) -> Blueprint:
        """Open model and space and tokenise the training file. Raises before any training if something does not fit."""
        if recipe.quantizer not in QUANTIZERS:
            raise SpaceError(f"Unknown quantizer '{recipe.quantizer}'; known are {', '.join(QUANTIZERS)}.")
        space = space or load_space(recipe.space)
        source = open_model(model, data.label_names or None, max_length, trim_positions)
        source = source.with_every(recipe.student.keep_every)
        train = encode(source.tokenizer, data.train, max_length)
        blueprint = cls(source, data, recipe, space, max_length, trim_positions, train)
        blueprint.check_vocabulary()
        blueprint.check_quantizer()
        blueprint.check_labels()
        return blueprint

    def check_vocabulary(self) -> None:
        """Raise ModelError for a tokenizer that has tokens beyond the word embedding's rows."""
        tokens, rows = len(self.source.tokenizer), self.shapes[self.word_embedding][0]
        if tokens > rows:
            raise ModelError(
                f"{self.source.path} has {tokens:,} tokens but {rows:,} rows of word embeddings: bring the tokenizer that "
                "belongs to the model, or call model.resize_token_embeddings(len(tokenizer)) and save it."
            )

    def check_labels(self) -> None:
        """Raise DataError for texts without labels where recovery learns from these."""
        recovery, distillation = self.recipe.recovery, self.recipe.distillation
        taught = recovery.training not in ("finetune", "annealed") and not distillation.cross_entropy
        if self.data.unlabelled is not None and recovery.steps and not taught:
            raise DataError(
                "--more-texts have no labels, and this recipe's recovery learns from labels: leave them out, or give "
                "--recovery.training retrain --distillation.cross-entropy 0."
            )

    def check_quantizer(self) -> None:
        """Raise SpaceError where the space offers what the quantizer does not have."""
        name, known, space = self.quantizer.name, self.quantizer.widths, self.space.name
        for partition in self.partitions:
            odd = sorted(set(partition.widths) - {0, *known})
            if odd:
                raise SpaceError(
                    f"Quantizer {name} has {', '.join(map(str, known))} bits; space '{space}' offers {odd[0]} in "
                    f"{partition.matrix.kind}: give a --space without it."
                )
        if not isinstance(self.quantizer, CodebookQuantizer):
            return
        if any(p.scale_or(self.space.scale) == "row" for p in self.partitions):
            raise SpaceError(
                f"Quantizer {name} has a codebook per sub-group; space '{space}' has a scale per row: try --space codebook."
            )
        if self.space.heads or self.space.ffn_blocks:
            raise SpaceError(
                f"Quantizer {name} cannot remove heads or FFN blocks, as space '{space}' would: try --space codebook."
            )

    def check_searchable(self, budget: SizeBudget) -> None:
        """Raise BudgetError if the budget cannot be met or leaves nothing to choose, and as `check_recovery` does."""
        largest = self.table(budget).largest()
        if budget.bytes > largest:
            raise BudgetError(
                f"Budget {budget.bytes / MIB:.2f} MiB is above the largest allocation, {largest / MIB:.2f} MiB, the widest bits "
                "everywhere: nothing to search; lower the budget, or allow more bits in the search space (--space)."
            )
        self.check_recovery()

    def check_recovery(self) -> None:
        """Raise SpaceError if the recovery needs what a search may remove, DataError as `check_labels` does."""
        self.check_labels()
        recovery, space = self.recipe.recovery, self.space
        if recovery.training == "ternarybert" and recovery.steps and space.heads:
            raise SpaceError(
                f"--recovery.training ternarybert needs every head, of which space '{space.name}' can remove some: try retrain."
            )
        if recovery.reconstruction == "layer-wise" and recovery.mrem_steps and (space.heads or space.ffn_blocks):
            raise SpaceError(
                "--recovery.reconstruction layer-wise needs every head and FFN block, of which "
                f"space '{space.name}' can remove some: try mrem-s."
            )

    def without_student(self) -> Blueprint:
        """The same of the model with all its layers."""
        recipe = dataclasses.replace(self.recipe, student=StudentSettings())
        return dataclasses.replace(self, recipe=recipe, source=self.source.with_every(1))

    @property
    def quantizer(self) -> Quantizer:
        return QUANTIZERS[self.recipe.quantizer]

    @cached_property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return self.source.shapes()

    @property
    def word_embedding(self) -> str:
        """Its name in the state dict."""
        return f"{self.source.backbone.embedding_modules['word_embedding']}.weight"

    @cached_property
    def token_counts(self) -> np.ndarray:
        """Occurrences of every token in the training text, [vocabulary]."""
        return self.train.token_counts(self.shapes[self.word_embedding][0])

    def packed_settings(self) -> dict[str, object]:
        """What the packed file says about itself."""
        settings: dict[str, object] = {
            "quantizer": self.recipe.quantizer,
            "scale": self.space.scale,
            "activation_bits": self.recipe.activation_bits,
            "max_length": self.max_length,
        }
        per_row = [p.matrix.name for p in self.partitions if p.scale_or(self.space.scale) == "row"]
        if self.space.scale != "row" and per_row:
            settings["row_scales"] = per_row
        if self.recipe.static_activations:
            settings["activations"] = "static"
        return settings

    @cached_property
    def partitions(self) -> tuple[Partition, ...]:
        config = self.source.config
        matrices = self.source.backbone.matrices(config, dict(self.shapes))
        return self.space.partition(matrices, config.num_attention_heads, self.token_counts)

    @property
    def ranged(self) -> list[str]:
        """Matrices of the layers whose input gets a learned static range."""
        kinds = self.source.backbone.dynamic_activations if self.recipe.static_activations else ()
        return [p.matrix.name for p in self.partitions if p.matrix.kind in kinds]

    @cached_property
    def byte_model(self) -> ByteModel:
        quantised = {p.matrix.name for p in self.partitions}
        rest = {name: shape for name, shape in self.shapes.items() if name not in quantised}
        rest |= {f"{name.removesuffix('.weight')}.{RANGE_NAME}": (2,) for name in self.ranged}
        units = self.space.units([p.matrix for p in self.partitions], self.source.config.num_attention_heads)
        metadata = metadata_text(self.packed_settings())
        return ByteModel(self.partitions, rest, self.space.scale, metadata, units, self.quantizer.storage)

    def full_bytes(self, count: str = "file") -> int:
        """Float32 size of what counts: the safetensors file, but for some bytes of its header, or the encoder's matrices."""
        if count != "file":
            return sum(4 * p.matrix.parameters for p in self.byte_model.partitions if p.matrix.layer is not None)
        entries = [TensorEntry(name, "F32", shape) for name, shape in sorted(self.shapes.items())]
        return sum(entry.bytes for entry in entries) + len(header_json(entries, ""))

    @cached_property
    def only_allocation(self) -> BitAllocation | None:
        """The allocation of a space that leaves no choice; None where there is one."""
        if self.byte_model.units or any(len(p.widths) > 1 for p in self.partitions):
            return None
        return BitAllocation({p.matrix.name: p.widths * p.groups for p in self.partitions})

    @cached_property
    def own_budget(self) -> SizeBudget | None:
        """The size that the recipe itself fixes, by its mean bits or by a space without a choice; None: it has to be given."""
        if self.recipe.encoder_bits:
            return SizeBudget(int(self.full_bytes("codes") * self.recipe.encoder_bits / 32), "codes")
        only = self.only_allocation
        return None if only is None else SizeBudget(self.byte_model.exact_bytes(only))

    def table(self, budget: SizeBudget) -> ChoiceTable:
        """The table of choices under what `budget` counts. Raises BudgetError if the budget cannot be met."""
        table = choice_table(self.byte_model, budget.count)
        check_budget(budget, table, self.full_bytes(budget.count), self.byte_model)
        return table
