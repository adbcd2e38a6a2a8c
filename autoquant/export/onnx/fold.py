"""What was pruned leaves: heads without values, neurons without weights, whole halves of a layer without output weights.

Their output is constant and folded into a bias.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from autoquant.export.onnx.model import Classifier, Layer, Linear


def without_pruned(model: Classifier, activation: Callable[[np.ndarray], np.ndarray]) -> Classifier:
    """The same function (in exact arithmetic) with smaller matrices; `activation` is that of the feed-forward halves."""
    layers = tuple(_without_neurons(_without_heads(layer, model.head_size), activation) for layer in model.layers)
    return replace(model, layers=layers)


def _without_heads(layer: Layer, head_size: int) -> Layer:
    """Attention weights sum to 1, so a head whose value rows are zeros gives its value bias, whatever the text."""
    dead = np.repeat(layer.value.weights.pruned.reshape(-1, head_size).all(axis=1), head_size)
    dead |= layer.attention_output.weights.pruned.all()
    kept = np.flatnonzero(~dead)
    constant = layer.value.bias.astype(np.float64)
    query, key, value = (_rows_at(part, kept) for part in (layer.query, layer.key, layer.value))
    output = _columns_at(layer.attention_output, kept, constant)
    return replace(layer, query=query, key=key, value=value, attention_output=output)


def _without_neurons(layer: Layer, activation: Callable[[np.ndarray], np.ndarray]) -> Layer:
    """A neuron whose row is zeros gives the activation of its bias, whatever the text."""
    dead = layer.ffn_in.weights.pruned | layer.ffn_out.weights.pruned.all()
    kept = np.flatnonzero(~dead)
    constant = activation(layer.ffn_in.bias.astype(np.float64))
    return replace(layer, ffn_in=_rows_at(layer.ffn_in, kept), ffn_out=_columns_at(layer.ffn_out, kept, constant))


def _rows_at(linear: Linear, kept: np.ndarray) -> Linear:
    return replace(linear, weights=linear.weights.rows_at(kept), bias=linear.bias[kept])


def _columns_at(linear: Linear, kept: np.ndarray, constant: np.ndarray) -> Linear:
    """Only the columns kept; what the others give for a `constant` input ([columns], only theirs count) goes into the bias."""
    if len(kept) == linear.weights.shape[1]:
        return linear
    dropped = np.setdiff1d(np.arange(len(constant)), kept)
    values = constant[dropped] if linear.range is None else linear.range(constant[dropped])
    bias = linear.bias + linear.weights.values[:, dropped].astype(np.float64) @ values
    return replace(linear, weights=linear.weights.columns_at(kept), bias=bias.astype(np.float32))
