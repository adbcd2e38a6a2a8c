"""What layer-wise reconstruction records of a layer is what a whole pass of the network shows there."""

from typing import Any

import torch
from torch import nn
from transformers import BertForSequenceClassification

from autoquant.refine.layerwise import _value
from autoquant.refine.modules import Module


def test_recorded_values_are_those_of_a_whole_pass(bench: Any) -> None:
    model: BertForSequenceClassification = bench.teacher
    batch = bench.data.collate(range(3), torch.device("cpu"))
    first, last = Module(model, "bert.encoder.layer", 0, 1), Module(model, "bert.encoder.layer", 1, 2)
    seen: dict[nn.Module, tuple[torch.Tensor, torch.Tensor]] = {}
    for layer in (m for m in model.modules() if isinstance(m, nn.Linear)):
        layer.register_forward_hook(lambda m, inputs, output: seen.update({m: (inputs[0], output)}))
    with torch.no_grad():
        model(**{name: tensor for name, tensor in batch.items() if name != "labels"})
        whole = dict(seen)
        between = _value(first, batch, None, None, False)
        for module, hidden in ((first, None), (last, between)):
            layers = [m for m in module.modules() if isinstance(m, nn.Linear)]
            assert layers
            for layer in layers:
                torch.testing.assert_close(_value(module, batch, hidden, layer, True), whole[layer][0])
                torch.testing.assert_close(_value(module, batch, hidden, layer, False), whole[layer][1])
