"""How much does the loss rise when a sub-group gets a width? Output-side Fisher scores.

For an operator with output Y and loss gradient g = dL/dY, quantising a sub-group's rows changes Y by dY. The `diagonal` score is
sum g^2 dY^2 over tokens and rows: the diagonal of the Fisher information of the outputs, one backward pass per batch. The
`coherent` one is the sum over texts of (sum g dY over a text's tokens and the sub-group's rows)^2: the Fisher information along
the very change, which counts errors that add up over tokens and rows, as those of pruning do. Rows of embeddings, whose errors
have nothing in common, are scored by the diagonal in both.
The gradient is that of the teacher's own predictions, so the scores do not vanish where it fits its training labels. Of a
confident teacher they nearly would all the same, but for the few texts it doubts, and a large error changes confident answers
too: at a temperature above 1 its predictions are softened first, and every text counts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from autoquant.backbones import Backbone
from autoquant.backbones.remove import constant_input
from autoquant.core.cost import ChoiceTable
from autoquant.core.progress import Progress
from autoquant.core.structure import Unit
from autoquant.core.subgroup import Partition
from autoquant.quantizers import CodebookQuantizer, Quantizer
from autoquant.supernet.build import Supernet
from autoquant.training.batches import Encoded

SMALLEST_INFORMATION = 1e-12  # keeps a root where a class has no probability
EMBEDDING_PRIOR_OCCURRENCES = 4.0  # how many average occurrences a token's own gradient is blended with


def quantisation_errors(
    weight: Tensor, scales: Tensor, widths: tuple[int, ...], quantizer: Quantizer, group: Tensor | None = None
) -> Tensor:
    """W - Q_k(W) for every width of the table, [K, rows, columns]; zero bits give W itself.

    scales [rows, non-zero widths] or, with the sub-group of every row in `group` [rows], [groups, non-zero widths]; of a
    codebook quantizer codebooks, [groups, numbers of all widths].
    """
    if isinstance(quantizer, CodebookQuantizer):
        assert group is not None
        return _codebook_errors(weight, scales, widths, quantizer, group)
    if group is not None and len(scales) != len(weight):
        scales = scales[group]
    errors = []
    column = 0
    for width in widths:
        if width == 0:
            errors.append(weight)
            continue
        errors.append(weight - quantizer.fake_quantize(weight, scales[:, column], width))
        column += 1
    return torch.stack(errors)


def _codebook_errors(
    weight: Tensor, codebooks: Tensor, widths: tuple[int, ...], quantizer: CodebookQuantizer, group: Tensor
) -> Tensor:
    above = [width for width in widths if width]
    split = zip(above, quantizer.split(codebooks, above), strict=True)
    errors = [weight - quantizer.fake_quantize(weight, codebook, group, width) for width, codebook in split]
    return torch.stack([weight, *errors] if 0 in widths else errors)


@torch.no_grad()
def squared_errors(supernet: Supernet) -> np.ndarray:
    """|W - Q_k(W)|^2 of every sub-group and choice at the supernet's weights and scales, [N, K] float64."""
    table, sums = supernet.table, []
    for _, mixed in supernet.mixed_weights():
        weight, group = mixed.weight.detach(), mixed.group_of_row
        errors = quantisation_errors(weight, mixed.scales(), table.widths, mixed.quantizer, group)
        rows = errors.square().sum(dim=2).T.double().cpu()
        sums.append(torch.zeros(mixed.partition.groups, rows.shape[1]).double().index_add_(0, group.cpu(), rows))
    return torch.cat(sums).numpy()


def fisher_loss(logits: Tensor, temperature: float = 1.0) -> Tensor:
    """A loss whose gradient g by a text's logits has E[g g^T] = the Fisher information of its predictions, summed over the batch.

    The predictions are p = softmax(logits / temperature). For classes that is diag(p) - p p^T; g = L e with its Cholesky root L
    over all classes but the last and random signs e. With two classes g^2 = p (1 - p) whatever the sign. Labels drawn from p
    would have the same expectation, but of a confident teacher's texts only the few whose drawn label surprises would count.
    Regression (one output, unit Gaussian): g = e.
    """
    if logits.shape[-1] == 1:
        return (_signs(logits) * logits).sum()
    p = functional.softmax(logits.detach().double() / temperature, dim=-1)[:, :-1]
    root, _ = torch.linalg.cholesky_ex(torch.diag_embed(p + SMALLEST_INFORMATION) - p[:, :, None] * p[:, None])
    gradient = (root @ _signs(p)[:, :, None])[:, :, 0].to(logits.dtype)
    return (gradient * (logits[:, :-1] - logits[:, -1:])).sum()


def _signs(like: Tensor) -> Tensor:
    """Random -1 and 1."""
    return torch.empty_like(like).bernoulli_(0.5).mul_(2).sub_(1)


@dataclass(frozen=True, eq=False)
class Sensitivity:
    """What every choice of a table costs, [N, K] float64, and removing each of its units, [U]: Fisher scores are twice the
    expected increase of the loss, whose quadratic has a half; measured ones are the loss itself, in nats per text."""

    choices: np.ndarray
    removals: np.ndarray

    def after_recovery(self, widths: Sequence[int], lasting_0: float, lasting_1: float) -> Sensitivity:
        """What stays of them, up to a common factor: recovery undoes less of a loss at 0 and 1 bits than of one at 2 or more."""
        lasting = np.array([{0: lasting_0, 1: lasting_1}.get(width, 1.0) for width in widths])
        return Sensitivity(self.choices * lasting, self.removals * lasting_0)


def fisher_scores(
    model: nn.Module,
    backbone: Backbone,
    table: ChoiceTable,
    quantizer: Quantizer,
    scales: Mapping[str, Tensor],
    data: Encoded,
    token_counts: np.ndarray,
    seed: int,
    progress: Progress,
    coherent: bool = False,
    temperature: float = 1.0,
) -> Sensitivity:
    """Scores of every choice and unit of the table, per text of `data`; smaller is better.

    Word-embedding rows that do not occur in `data` get the average gradient of those that do, weighted by how often they are
    expected: their count in the training text (`token_counts` [vocabulary]), Good-Turing's mass shared by the unseen.
    """
    device = next(model.parameters()).device
    recorder = _Recorder(model, backbone, table, quantizer, scales, device, coherent)
    torch.manual_seed(seed)
    batches = list(data.by_length(32))
    with progress.stage("Sensitivity", total=len(batches)) as bar:
        for indices in batches:
            batch = data.collate(indices, device)
            batch.pop("labels")
            recorder.mask = batch["attention_mask"]
            model.zero_grad(set_to_none=True)
            fisher_loss(model(**batch).logits.float(), temperature).backward()
            bar.advance()
    model.zero_grad(set_to_none=True)
    recorder.remove()
    return Sensitivity(recorder.scores(token_counts) / len(data), recorder.removals.double().cpu().numpy() / len(data))


class _Recorder:
    """Hooks that add up scores per sub-group of every linear layer, and g^2 per row and column of every embedding."""

    def __init__(
        self,
        model: nn.Module,
        backbone: Backbone,
        table: ChoiceTable,
        quantizer: Quantizer,
        scales: Mapping[str, Tensor],
        device: torch.device,
        coherent: bool,
    ) -> None:
        self.table, self.coherent = table, coherent
        units = table.removable.structure.units if table.removable else ()
        self.removals = torch.zeros(len(units), device=device)
        self.groups: dict[str, Tensor] = {}
        self.errors: dict[str, Tensor] = {}
        self.gradients: dict[str, Tensor] = {}
        self.occurrences: dict[str, Tensor] = {}
        self.mask = torch.empty(0)
        self.handles = []
        for partition in table.partitions:
            name = partition.matrix.name
            module: Any = model.get_submodule(name.removesuffix(".weight"))
            group, weight = torch.from_numpy(partition.group_of_row).to(device), module.weight.detach()
            with torch.no_grad():
                self.errors[name] = quantisation_errors(weight, scales[name].to(device), table.widths, quantizer, group)
            if isinstance(module, nn.Embedding):
                self.gradients[name] = torch.zeros_like(module.weight, requires_grad=False)
                if partition.matrix.kind == "word_embedding":
                    self.occurrences[name] = torch.zeros(len(module.weight), device=device)
                self.handles.append(module.register_forward_hook(self._embedding_hook(name)))
            else:
                self.groups[name] = torch.zeros(len(table.widths), partition.groups, device=device)
                self.handles.append(module.register_forward_hook(self._linear_hook(name, group)))
                inside = {number: unit for number, unit in enumerate(units) if unit.has_columns_in(partition.matrix)}
                if inside:
                    first = next(iter(inside.values()))
                    constant = constant_input(model, backbone, first.layer, first.kind)
                    self.handles.append(module.register_forward_hook(self._unit_hook(inside, constant)))

    def _linear_hook(self, name: str, group: Tensor) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        def hook(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            x = inputs[0].detach()

            def collect(grad: Tensor) -> None:
                for total, error in zip(self.groups[name], self.errors[name], strict=True):
                    loss = grad.detach() * (x @ error.T)  # what every token and row adds to it, to first order
                    if self.coherent:
                        texts = _per_text(loss)
                        total += texts.new_zeros(len(texts), len(total)).index_add_(1, group, texts).square().sum(0)
                    else:
                        total.index_add_(0, group, loss.flatten(0, -2).square().sum(0))

            output.register_hook(collect)

        return hook

    def _unit_hook(self, units: Mapping[int, Unit], constant: Tensor) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        """Adds up the scores of removing units: each of their inputs becomes its constant."""

        def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            delta = inputs[0].detach() - constant
            weight = module.get_parameter("weight").detach()

            def collect(grad: Tensor) -> None:
                for number, unit in units.items():
                    at = slice(unit.start, unit.stop)
                    loss = grad.detach() * (delta[..., at] @ weight[:, at].T)
                    self.removals[number] += (_per_text(loss).sum(1) if self.coherent else loss).square().sum()

            output.register_hook(collect)

        return hook

    def _embedding_hook(self, name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        def hook(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            def collect(grad: Tensor) -> None:
                # A position embedding may be looked up once for the whole batch: its gradient is then a sum over texts, whose
                # square has the same expectation, since signs are drawn independently.
                ids = inputs[0].expand(grad.shape[:-1]).flatten()
                self.gradients[name].index_add_(0, ids, grad.detach().flatten(0, -2).square())
                if name in self.occurrences:  # padding is looked up too, without a gradient: it does not count
                    self.occurrences[name].index_add_(0, ids, self.mask.flatten().to(self.occurrences[name]))

            output.register_hook(collect)

        return hook

    def remove(self) -> None:
        for handle in self.handles:
            handle.remove()

    def scores(self, token_counts: np.ndarray) -> np.ndarray:
        return np.concatenate([self._matrix_scores(p, token_counts) for p in self.table.partitions])

    @torch.no_grad()
    def _matrix_scores(self, partition: Partition, token_counts: np.ndarray) -> np.ndarray:
        name = partition.matrix.name
        if name in self.groups:
            return self.groups[name].T.double().cpu().numpy()
        gradient = self.gradients[name]
        if partition.matrix.kind == "word_embedding":
            gradient = self._expected_gradient(name, token_counts)
        rows = torch.stack([(gradient * error.square()).sum(1) for error in self.errors[name]], dim=1)
        group = torch.from_numpy(partition.group_of_row).to(rows.device)
        total = torch.zeros(partition.groups, rows.shape[1], device=rows.device).index_add_(0, group, rows)
        return total.double().cpu().numpy()

    def _expected_gradient(self, name: str, token_counts: np.ndarray) -> Tensor:
        """Expected sum of g^2 per vocabulary row over as many tokens as were seen, [vocabulary, width]."""
        seen, gradient = self.occurrences[name], self.gradients[name]
        average = gradient.sum(0) / seen.sum()
        blend = EMBEDDING_PRIOR_OCCURRENCES
        per_occurrence = (gradient + blend * average) / (seen + blend)[:, None]
        expected = torch.from_numpy(good_turing(token_counts)).to(seen)
        return per_occurrence * (expected * seen.sum())[:, None]


def _per_text(loss: Tensor) -> Tensor:
    """[texts, (tokens,) rows] summed over tokens, [texts, rows]; a layer that sees one vector a text has no tokens."""
    return loss if loss.dim() == 2 else loss.sum(1)


def good_turing(counts: np.ndarray) -> np.ndarray:
    """Probability of every token, [vocabulary] float64: unseen tokens share the mass of those seen once (Good 1953)."""
    total, once, unseen = counts.sum(), (counts == 1).sum(), (counts == 0).sum()
    mass = once / total if unseen else 0.0
    return np.where(counts > 0, (1 - mass) * counts / total, mass / max(unseen, 1))
