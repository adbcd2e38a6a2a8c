"""What layer-wise reconstruction records of a layer is what a whole pass of the network shows there."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from transformers import BertForSequenceClassification

from autoquant.core.errors import RunError
from autoquant.refine import REFINERS
from autoquant.refine.layerwise import LayerSequence, _value
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


def test_a_layer_reads_what_the_student_makes_and_learns_what_the_teacher_makes(bench: Any) -> None:
    """The first linear layer of the second transformer layer: its input is the student's hidden state after the first."""
    supernet, indices = bench.supernet(), np.arange(3)
    with bench.open_context() as context:
        sequence = LayerSequence(bench.problem("layer-wise", supernet, context))
        sequence.begin(next(turn for turn, (index, _) in enumerate(sequence.names) if index == 1))
    batch = sequence.data.collate(indices)
    real = batch["attention_mask"].bool()
    batch.pop("labels")
    with torch.no_grad():
        between = [m(**batch, output_hidden_states=True).hidden_states[1] for m in (supernet.model, bench.teacher)]
        target = bench.teacher.bert.encoder.layer[1].attention.self.query(between[1])
    # ranges of activations are those of a batch, which is another here
    torch.testing.assert_close(sequence.source.batch(indices)[real], between[0][real], atol=2e-2, rtol=1e-2)
    torch.testing.assert_close(sequence.target.batch(indices)[real], target[real], atol=2e-2, rtol=1e-2)


def test_removed_units_have_no_partner(bench: Any) -> None:
    supernet = bench.supernet()
    supernet.model.bert.encoder.layer[0].attention.self.query.out_features = 24
    with bench.open_context() as context, pytest.raises(RunError, match="every head and FFN block in place: choose mrem-s"):
        REFINERS["layer-wise"].refine(bench.problem("layer-wise", supernet, context))
