from dataclasses import replace

import numpy as np
import pytest

from autoquant.export.onnx.fold import without_pruned
from autoquant.export.onnx.model import Classifier, Layer, Linear, Norm
from autoquant.export.onnx.weights import Dense


def linear(weights: list[list[float]], bias: list[float]) -> Linear:
    return Linear(Dense(np.array(weights, np.float32)), np.array(bias, np.float32), dynamic=True)


NORM = Norm(np.ones(2, np.float32), np.zeros(2, np.float32))
EYE = [[1.0, 0.0], [0.0, 1.0]]
LAYER = Layer(
    query=linear(EYE, [1, 2]),
    key=linear(EYE, [3, 4]),
    value=linear([[5, 6], [0, 0]], [7, 8]),  # two heads of one row, the second one dead
    attention_output=linear([[1, 2], [3, 4]], [10, 20]),
    attention_norm=NORM,
    ffn_in=linear([[0, 0], [1, 1], [0, 0]], [-5, 6, 9]),  # the first and the last neuron are dead
    ffn_out=linear([[1, 2, 3], [4, 5, 6]], [100, 200]),
    ffn_norm=NORM,
)


def fold(layer: Layer) -> Layer:
    table = Dense(np.zeros((1, 2), np.float32))
    model = Classifier(
        words=table,
        positions=table,
        types=None,
        embedding_norm=NORM,
        layers=(layer,),
        pooler=linear(EYE, [0, 0]),
        classifier=linear(EYE, [0, 0]),
        head_size=1,
        epsilon=1e-12,
        activation="relu",
        pooler_activation="tanh",
        padding=None,
        inputs=("input_ids", "attention_mask"),
    )
    return without_pruned(model, lambda x: np.maximum(x, 0)).layers[0]


def test_a_dead_head_leaves_its_bias_in_the_output() -> None:
    """attention_output's second column (2, 4) times the dead head's constant 8: (10, 20) becomes (26, 52)."""
    folded = fold(LAYER)
    for part, row in ((folded.query, [1, 0]), (folded.key, [1, 0]), (folded.value, [5, 6])):
        assert part.weights.values.tolist() == [row]
    assert [part.bias.tolist() for part in (folded.query, folded.key, folded.value)] == [[1], [3], [7]]
    assert folded.attention_output.weights.values.tolist() == [[1], [3]]
    assert folded.attention_output.bias.tolist() == [26, 52]


def test_dead_neurons_go_through_the_activation_into_the_next_bias() -> None:
    """relu(-5) = 0 and relu(9) = 9, times ffn_out's last column (3, 6): (100, 200) becomes (127, 254)."""
    folded = fold(LAYER)
    assert folded.ffn_in.weights.values.tolist() == [[1, 1]]
    assert folded.ffn_in.bias.tolist() == [6]
    assert folded.ffn_out.weights.values.tolist() == [[2], [5]]
    assert folded.ffn_out.bias.tolist() == [127, 254]


def test_a_head_that_is_dead_in_part_stays() -> None:
    """One head of two rows, one of them zeros."""
    layer = replace(LAYER)
    table = Dense(np.zeros((1, 2), np.float32))
    model = Classifier(
        table, table, None, NORM, (layer,), linear(EYE, [0, 0]), linear(EYE, [0, 0]), 2, 1e-12, "relu", "tanh", None, ()
    )
    folded = without_pruned(model, lambda x: np.maximum(x, 0)).layers[0]
    assert folded.value is LAYER.value or folded.value.weights.shape == (2, 2)
    assert folded.attention_output.bias.tolist() == [10, 20]


def test_nothing_dead_nothing_changes() -> None:
    alive = replace(LAYER, value=linear(EYE, [7, 8]), ffn_in=linear([[1, 0], [1, 1], [0, 1]], [-5, 6, 9]))
    folded = fold(alive)
    assert folded.attention_output is alive.attention_output
    assert folded.ffn_out is alive.ffn_out


def test_all_dead() -> None:
    dead = replace(LAYER, value=linear([[0, 0], [0, 0]], [7, 8]), ffn_in=linear([[0, 0]] * 3, [1, 1, 1]))
    folded = fold(dead)
    assert folded.query.weights.shape == (0, 2)
    assert folded.attention_output.bias.tolist() == pytest.approx([10 + 7 + 16, 20 + 21 + 32])
    assert folded.ffn_out.bias.tolist() == pytest.approx([106, 215])


def test_a_half_without_output_weights_is_dead() -> None:
    """Whatever goes into zeros: only the output's own bias remains."""
    output, ffn_out = linear([[0, 0], [0, 0]], [10, 20]), linear([[0, 0, 0], [0, 0, 0]], [100, 200])
    folded = fold(replace(LAYER, attention_output=output, ffn_out=ffn_out))
    assert [part.weights.shape for part in (folded.query, folded.key, folded.value)] == [(0, 2)] * 3
    assert folded.ffn_in.weights.shape == (0, 2)
    assert folded.attention_output.bias.tolist() == [10, 20]
    assert folded.ffn_out.bias.tolist() == [100, 200]
