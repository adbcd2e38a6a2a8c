"""A packed folder becomes the model it was simulated as, and a folder again; what is no packed folder is refused."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import BertForSequenceClassification

from autoquant.core.errors import AutoquantError, CheckpointError, ModelError
from autoquant.pack.model import load_packed
from autoquant.pack.modules import PackedEmbedding, PackedLinear
from autoquant.quantizers.activation import fake_quantize_dynamic
from packed import logits, save, simulated

Maker = Callable[..., Any]


def test_packed_model_gives_the_simulated_logits(
    make_material: Maker, tiny_classifier: BertForSequenceClassification, tmp_path: Path
) -> None:
    material = make_material(activation_bits=32)
    loaded = load_packed(save(material, tiny_classifier, tmp_path))
    assert not loaded.training
    assert torch.equal(logits(loaded), logits(simulated(material, tiny_classifier)))


def test_dynamic_activations_reach_the_linears_that_a_fast_runtime_quantises(
    make_material: Maker, tiny_classifier: BertForSequenceClassification, tmp_path: Path
) -> None:
    material = make_material(activation_bits=8)
    loaded = load_packed(save(material, tiny_classifier, tmp_path))
    reference = simulated(material, tiny_classifier)
    for name, module in reference.named_modules():
        if isinstance(module, nn.Linear) and name != "classifier":
            module.register_forward_pre_hook(lambda _, inputs: (fake_quantize_dynamic(inputs[0]),))
    assert torch.equal(logits(loaded), logits(reference))
    assert not torch.equal(logits(loaded), logits(simulated(material, tiny_classifier)))
    assert loaded.get_submodule("classifier").activation_bits == 32


def test_every_matrix_is_packed_and_nothing_is_left_unloaded(
    make_material: Maker, tiny_classifier: BertForSequenceClassification, tmp_path: Path
) -> None:
    loaded = load_packed(save(make_material(), tiny_classifier, tmp_path))
    assert not [m for m in loaded.modules() if isinstance(m, nn.Linear | nn.Embedding)]
    assert sum(isinstance(m, PackedEmbedding) for m in loaded.modules()) == 3
    assert sum(isinstance(m, PackedLinear) for m in loaded.modules()) == 2 * 6 + 2
    tensors = [*loaded.parameters(), *loaded.buffers()]
    assert {t.device.type for t in tensors} == {"cpu"}
    assert {p.dtype for p in loaded.parameters()} == {torch.float32}
    assert not any(p.requires_grad for p in loaded.parameters())


def test_loading_draws_no_random_numbers(
    make_material: Maker, tiny_classifier: BertForSequenceClassification, tmp_path: Path
) -> None:
    folder = save(make_material(), tiny_classifier, tmp_path)
    before = torch.random.get_rng_state()
    load_packed(folder)
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"quantization_config": None}, ModelError, "lacks model_type or quantization_config"),
        ({"quantization_config": {"quant_method": "gptq"}}, ModelError, "quant_method is 'gptq'"),
        ({"model_type": "gpt2"}, ModelError, "'gpt2' is unknown; known are bert"),
        ({"num_hidden_layers": 3}, CheckpointError, "has 3 layers"),
        ({"num_hidden_layers": 10**4}, CheckpointError, "has 10000 layers"),
        ({"num_hidden_layers": 10**9}, CheckpointError, "num_hidden_layers is 1000000000"),
        ({"max_position_embeddings": 10**9}, CheckpointError, "max_position_embeddings is 1000000000"),
        ({"num_labels": 10**9}, CheckpointError, "num_labels is 1000000000 in config.json and nothing .* larger than 65536"),
        ({"num_hidden_layers": 1}, CheckpointError, "missing by config.json"),
        ({"max_position_embeddings": 32}, CheckpointError, r"position_embeddings.weight is \(64, 32\) .* \(32, 32\)"),
        ({"id2label": {"0": "a", "1": "b", "2": "c"}}, CheckpointError, "classifier"),
        ({"num_attention_heads": 5}, ModelError, "makes no model"),
        ({"hidden_size": "wide"}, ModelError, "makes no model"),
    ],
)
def test_refuses_a_config_that_is_not_the_files(
    changes: dict[str, Any],
    error: type[AutoquantError],
    message: str,
    make_material: Maker,
    tiny_classifier: BertForSequenceClassification,
    tmp_path: Path,
) -> None:
    folder = save(make_material(), tiny_classifier, tmp_path, **changes)
    with pytest.raises(error, match=message) as caught:
        load_packed(folder)
    assert "\n" not in str(caught.value)


def test_names_the_missing_files(tmp_path: Path, tiny_classifier_dir: Path) -> None:
    with pytest.raises(ModelError, match=r"config.json and model.safetensors missing"):
        load_packed(tmp_path)
    with pytest.raises(ModelError, match="not that of a packed model"):
        load_packed(tiny_classifier_dir)


def test_trimmed_positions_load(make_material: Maker, tiny_classifier: BertForSequenceClassification, tmp_path: Path) -> None:
    material = make_material(positions=16)
    folder = save(material, tiny_classifier, tmp_path, max_position_embeddings=16)
    assert load_packed(folder).get_submodule("bert.embeddings.position_embeddings").weight.shape == (16, 32)
    assert logits(load_packed(folder)).shape == (2, 2)
