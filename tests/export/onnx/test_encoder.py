"""What is in the file, and what is left of it when a session has loaded."""

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import numpy_helper

from autoquant.backbones import BACKBONES
from autoquant.core.errors import ModelError
from autoquant.export import EXPORTERS
from autoquant.export.onnx.encoder import draw
from autoquant.export.onnx.model import Classifier, read_folder

MakeFolder = Callable[..., Path]
UNPACKING = {"TopK", "Concat", "Expand", "Transpose", "CumSum", "Range", "Where", "Less"}


def loaded(path: Path) -> onnx.ModelProto:
    """The graph that ONNX Runtime executes."""
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(path.with_name("loaded.onnx"))
    options.log_severity_level = 3
    onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return onnx.load(options.optimized_model_filepath)


@pytest.mark.parametrize("model_type", sorted(BACKBONES))
@pytest.mark.parametrize("tail", ["int8", "fp32"])
def test_whole_matrices_are_unpacked_once_at_load(tail: str, model_type: str, make_folder: MakeFolder) -> None:
    graph = loaded(EXPORTERS[f"onnx-{tail}"].export(make_folder(model_type))).graph
    kinds = Counter(node.op_type for node in graph.node)
    left = UNPACKING - ({"CumSum"} if model_type == "roberta" else set())  # which counts positions with it
    assert not left & set(kinds)
    constants = {initializer.name: initializer for initializer in graph.initializer}
    products = [node for node in graph.node if node.op_type in ("DynamicQuantizeMatMul", "MatMul", "Gemm")]
    weights = [constants[node.input[1]] for node in products if node.input[1] in constants]
    assert len(weights) == len(products) - 1  # all but that of the word embedding
    types = {numpy_helper.to_array(weight).dtype for weight in weights[:-1]}
    assert types == {np.dtype(np.int8 if tail == "int8" else np.float32)}


def test_the_word_embedding_stays_packed(make_folder: MakeFolder) -> None:
    """200 rows of 32 columns: no table of them at 4 or even 1 byte a weight."""
    folder = make_folder()
    graph = loaded(EXPORTERS["onnx-int8"].export(folder)).graph
    assert not any(200 in initializer.dims and 32 in initializer.dims for initializer in graph.initializer)


@pytest.mark.parametrize(("dead", "heads", "neurons"), [("none", 4, 64), ("some", 2, 32)])
def test_pruned_heads_and_neurons_leave(dead: str, heads: int, neurons: int, make_folder: MakeFolder) -> None:
    graph = loaded(EXPORTERS["onnx-int8"].export(make_folder(dead=dead))).graph
    attributes = [a.i for node in graph.node for a in node.attribute if a.name == "num_heads"]
    assert attributes == [heads, heads]
    shapes = Counter(tuple(initializer.dims) for initializer in graph.initializer)
    assert shapes[32, neurons] >= 2
    assert shapes[neurons, 32] >= 2


def test_layers_without_heads_or_neurons(make_folder: MakeFolder) -> None:
    graph = loaded(EXPORTERS["onnx-int8"].export(make_folder(dead="all"))).graph
    kinds = Counter(node.op_type for node in graph.node)
    assert "MultiHeadAttention" not in kinds
    assert "Gelu" not in kinds


@pytest.mark.parametrize("model_type", sorted(BACKBONES))
def test_inputs_and_output_are_named_as_usual(model_type: str, make_folder: MakeFolder) -> None:
    session = onnxruntime.InferenceSession(EXPORTERS["onnx-int8"].export(make_folder(model_type)))
    names = {"input_ids", "attention_mask"} | ({"token_type_ids"} if model_type == "bert" else set())
    assert {node.name for node in session.get_inputs()} == names
    assert all(node.shape == ["batch", "tokens"] for node in session.get_inputs())
    assert [(node.name, node.shape) for node in session.get_outputs()] == [("logits", ["batch", 2])]
    metadata = json.loads(session.get_modelmeta().custom_metadata_map["autoquant"])
    assert metadata["tail"] == "int8"
    assert metadata["max_length"] == 32


def test_an_unknown_activation_is_refused(make_folder: MakeFolder) -> None:
    model, _ = read_folder(make_folder())
    changed = Classifier(**{**vars(model), "activation": "silu"})
    with pytest.raises(ModelError, match="'silu': the ONNX export knows gelu, relu"):
        draw(changed, "int8", {})
