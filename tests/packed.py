"""A packed folder of the tiny classifier, and the plain model it must be equal to."""

import json
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from autoquant.quantizers import QUANTIZERS

MIDRISE = QUANTIZERS["midrise"]
IDS = torch.tensor([[2, 7, 30, 41, 3, 0], [2, 9, 61, 12, 55, 3]])
MASK = torch.tensor([[1, 1, 1, 1, 1, 0], [1, 1, 1, 1, 1, 1]])


def save(material: Any, classifier: PreTrainedModel, folder: Path, **changes: object) -> Path:
    """A packed folder as it is shipped."""
    folder.mkdir(exist_ok=True)
    config = json.loads(classifier.config.to_json_string())
    config |= {"quantization_config": {"quant_method": "autoquant"}, **changes}
    (folder / "config.json").write_text(json.dumps(config))
    material.write(folder / "model.safetensors")
    return folder


def simulated(material: Any, classifier: PreTrainedModel) -> PreTrainedModel:
    """The same classifier with plain modules that hold the quantised weights."""
    state = {name: tensor.half().float() for name, tensor in material.state.items()}
    for partition in material.model.partitions:
        name = partition.matrix.name
        weight = torch.zeros_like(state[name])
        for row, bits in enumerate(material.allocation.row_bits(partition)):
            if bits:
                one = slice(row, row + 1)
                weight[one] = MIDRISE.fake_quantize(material.state[name][one], material.scales[name][one], int(bits))
        state[name] = weight
    model = type(classifier)(classifier.config)
    model.load_state_dict(state)
    return model.eval()


def logits(model: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=IDS, attention_mask=MASK).logits
