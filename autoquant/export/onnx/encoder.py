"""A classifier as an ONNX graph: merged query, key and value, and the runtime's fused operators."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import chain

import numpy as np
from onnx import ModelProto, helper
from scipy.special import erf

from autoquant.core.errors import ModelError
from autoquant.export.onnx.fold import without_pruned
from autoquant.export.onnx.graph import FLOAT, INT32, INT64, MICROSOFT, Graph
from autoquant.export.onnx.model import Classifier, InputRange, Layer, Linear, Norm
from autoquant.export.onnx.store import look_up_rows, unpack_matrices
from autoquant.export.onnx.weights import Coded, Dense, Matrix, stacked


@dataclass(frozen=True)
class Activation:
    """An activation function: the operator that computes it, and its value."""

    operator: str
    domain: str
    value: Callable[[np.ndarray], np.ndarray]


ACTIVATIONS = {
    "gelu": Activation("Gelu", MICROSOFT, lambda x: x * 0.5 * (1 + erf(x / np.sqrt(2)))),
    "relu": Activation("Relu", "", lambda x: np.maximum(x, 0)),
    "tanh": Activation("Tanh", "", np.tanh),
}


def draw(model: Classifier, tail: str, metadata: dict[str, str], plain: bool = False) -> ModelProto:
    """The ONNX model; `tail` is `int8` (8-bit activations, integer products) or `fp32` (exact).

    `plain` is for comparison: the graph that ONNX Runtime's own transformer optimiser aims at, with all its fused operators and
    every token in every layer.

    Raises ModelError for an activation function that has no operator, and for learned ranges with the int8 tail.
    """
    if tail == "int8" and model.pooler.range is not None:
        raise ModelError("The model's activations have learned ranges, integer products take dynamic ones: give --tail fp32.")
    if model.activation not in ACTIVATIONS:
        known = ", ".join(ACTIVATIONS)
        raise ModelError(f"The model's activation is '{model.activation}': the ONNX export knows {known}.")
    return _Drawing(without_pruned(model, ACTIVATIONS[model.activation].value), tail, plain).finish(metadata)


class _Drawing:
    """Draws one classifier; hidden states are [batch, tokens, hidden] everywhere."""

    def __init__(self, model: Classifier, tail: str, plain: bool) -> None:
        self.classifier, self.tail, self.plain, self.graph = model, tail, plain, Graph()
        # of the last layer only the first token is looked at: it attends to all, and goes on alone
        self.alone = None if plain else model.layers[-1]
        self.projections = [_projections(layer, layer is self.alone) for layer in model.layers]
        coded = {id(m): m for m in self._matrices() if isinstance(m, Coded) and min(m.shape)}
        self.unpacked = dict(zip(coded, unpack_matrices(self.graph, list(coded.values())), strict=True))

    def _matrices(self) -> list[Matrix]:
        """Every matrix that is unpacked when the session loads."""
        model = self.classifier
        linears = [model.pooler, model.classifier, *chain.from_iterable(self.projections)]
        linears += [part for layer in model.layers for part in (layer.attention_output, layer.ffn_in, layer.ffn_out)]
        tables = [table for table in (model.positions, model.types) if table is not None]
        return [*tables, *(linear.weights for linear in linears)]

    def finish(self, metadata: dict[str, str]) -> ModelProto:
        graph, model = self.graph, self.classifier
        x = self.embeddings()
        mask = graph.op("Cast", "attention_mask", to=INT32)
        for layer, projections in zip(model.layers, self.projections, strict=True):
            asking = self.first_token(x) if layer is self.alone else x
            x = self.feed_forward(self.attention(asking, x, mask, layer, projections), layer)
        first = graph.op("Squeeze", self.first_token(x) if self.plain else x, graph.integers(1))
        pooled = self.activate(self.linear(first, model.pooler), model.pooler_activation)
        graph.rename(self.linear(pooled, model.classifier), "logits")
        return graph.finish(
            [helper.make_tensor_value_info(name, INT64, ["batch", "tokens"]) for name in model.inputs],
            [helper.make_tensor_value_info("logits", FLOAT, ["batch", model.classifier.weights.shape[0]])],
            "autoquant",
            metadata,
        )

    def embeddings(self) -> str:
        graph, model = self.graph, self.classifier
        if isinstance(model.words, Coded):
            x = look_up_rows(graph, model.words, "input_ids")
        else:
            x = graph.op("Gather", graph.constant(model.words.values), "input_ids")
        x = graph.op("Add", x, self.positions())
        if model.types is not None and "token_type_ids" in model.inputs:
            x = graph.op("Add", x, graph.op("Gather", self.floats(model.types), "token_type_ids"))
        norm = model.embedding_norm
        weight, bias = graph.floats(norm.weight), graph.floats(norm.bias)
        return graph.op("LayerNormalization", x, weight, bias, epsilon=model.epsilon, axis=-1)

    def positions(self) -> str:
        """[tokens, hidden], or [batch, tokens, hidden] where positions are counted over what is not padding."""
        graph, model = self.graph, self.classifier
        table = self.floats(model.positions)
        if model.types is not None and "token_type_ids" not in model.inputs:
            table = graph.op("Add", table, graph.op("Slice", self.floats(model.types), graph.integers(0), graph.integers(1)))
        if model.padding is None:
            tokens = graph.op("Shape", "input_ids", start=1, end=2)
            return graph.op("Slice", table, graph.integers(0), tokens, graph.integers(0))
        padding = graph.constant(np.array(model.padding, np.int64))
        text = graph.op("Cast", graph.op("Not", graph.op("Equal", "input_ids", padding)), to=INT64)
        count = graph.op("Mul", graph.op("CumSum", text, graph.integers(1)), text)
        return graph.op("Gather", table, graph.op("Add", count, padding))

    def attention(self, asking: str, x: str, mask: str, layer: Layer, projections: list[Linear]) -> str:
        """`asking`: the tokens that attend to `x`, all of it or the first; `projections` as `_projections` gives them."""
        graph, width = self.graph, layer.value.weights.shape[0]
        if width == 0:
            return self.normalise(asking, graph.floats(layer.attention_output.bias), layer.attention_norm)
        parts: list[str] = []
        for projection, tokens in zip(projections, (asking, x, x), strict=False):
            parts += self.split(self.linear(tokens, projection), projection, width)
        heads = width // self.classifier.head_size
        mixed = graph.op("MultiHeadAttention", *parts, "", mask, domain=MICROSOFT, num_heads=heads)
        return self.normalise(asking, self.linear(mixed, layer.attention_output), layer.attention_norm)

    def split(self, x: str, linear: Linear, width: int) -> list[str]:
        """What a merged map gives, cut into the outputs of its parts."""
        count = len(linear.bias) // width
        return [x] if count == 1 else self.graph.ops("Split", x, self.graph.integers(*[width] * count), outputs=count, axis=-1)

    def first_token(self, x: str) -> str:
        """[batch, 1, hidden]."""
        return self.graph.op("Slice", x, self.graph.integers(0), self.graph.integers(1), self.graph.integers(1))

    def feed_forward(self, x: str, layer: Layer) -> str:
        if layer.ffn_in.weights.shape[0] == 0:
            return self.normalise(x, self.graph.floats(layer.ffn_out.bias), layer.ffn_norm)
        inner = self.activate(self.linear(x, layer.ffn_in), self.classifier.activation)
        return self.normalise(x, self.linear(inner, layer.ffn_out), layer.ffn_norm)

    def linear(self, x: str, linear: Linear) -> str:
        graph, bias = self.graph, self.graph.floats(linear.bias)
        x = x if linear.range is None else self.rounded(x, linear.range)
        if isinstance(linear.weights, Dense):
            return graph.op("Add", graph.op("MatMul", x, graph.constant(linear.weights.values.T)), bias)
        if self.tail == "int8" and linear.dynamic:
            integers = graph.op("Transpose", self.unpacked[id(linear.weights)], perm=[1, 0])
            scales = graph.floats(linear.weights.scales)
            return graph.op("DynamicQuantizeMatMul", x, integers, scales, "", bias, domain=MICROSOFT)
        weights = graph.op("Transpose", self.floats(linear.weights), perm=[1, 0])
        return graph.op("Add", graph.op("MatMul", x, weights), bias)

    def rounded(self, x: str, learned: InputRange) -> str:
        """The nearest values of a learned range."""
        graph = self.graph
        numbers = (learned.step, learned.offset, 0, learned.top)
        step, offset, zero, top = (graph.constant(np.array(number, np.float32)) for number in numbers)
        codes = graph.op("Round", graph.op("Div", graph.op("Sub", x, offset), step))
        return graph.op("Add", graph.op("Mul", graph.op("Clip", codes, zero, top), step), offset)

    def floats(self, matrix: Matrix) -> str:
        """A matrix as float32 [rows, columns]."""
        graph = self.graph
        if isinstance(matrix, Dense):
            return graph.constant(matrix.values)
        scales = graph.op("Unsqueeze", graph.floats(matrix.scales), graph.integers(1))
        return graph.op("Mul", graph.op("Cast", self.unpacked[id(matrix)], to=FLOAT), scales)

    def activate(self, x: str, name: str) -> str:
        activation = ACTIVATIONS[name]
        return self.graph.op(activation.operator, x, domain=activation.domain)

    def normalise(self, x: str, change: str, norm: Norm) -> str:
        """LayerNorm(x + change).

        Sum, since ONNX Runtime fuses Add with what follows into SkipLayerNormalization, which takes four times as long.
        """
        graph, epsilon = self.graph, self.classifier.epsilon
        weight, bias = graph.floats(norm.weight), graph.floats(norm.bias)
        if self.plain:
            return graph.op("SkipLayerNormalization", x, change, weight, bias, domain=MICROSOFT, epsilon=epsilon)
        return graph.op("LayerNormalization", graph.op("Sum", x, change), weight, bias, epsilon=epsilon, axis=-1)


def _projections(layer: Layer, last: bool) -> list[Linear]:
    """The maps of an attention's input whose outputs, side by side, are query, key and value: as few as can be.

    In the last layer the query has another input; with learned ranges each of the three rounds its own input.
    """
    if layer.query.range is not None:
        return [layer.query, layer.key, layer.value]
    return [layer.query, _merged(layer.key, layer.value)] if last else [_merged(layer.query, layer.key, layer.value)]


def _merged(*parts: Linear) -> Linear:
    """Linear maps of one input as a single one, their outputs side by side."""
    bias = np.concatenate([part.bias for part in parts])
    return Linear(stacked([part.weights for part in parts]), bias, parts[0].dynamic)
