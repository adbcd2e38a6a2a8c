"""Sony's model-compression-toolkit: post-training mixed precision of 2, 4 and 8 bits; SETTING is a share of the 8-bit memory.

Activations stay float, as those of the other tools that choose widths do, unless SETTING ends in `-int8`: the toolkit's own way.

Traps: torchvision's operators do not load beside a CPU build of torch, so the two that its import needs are declared here;
torch.fx cannot trace the transformers model, and only float tensors are fed, so a static copy of the encoder starts after the
embeddings and ends before the pooler, which stay float; the result is simulated, not packed.
"""

from __future__ import annotations

import sys
from importlib import metadata

import torch
from common import SETTING, Stopwatch, batches, finish, load_teacher, peak_mib, saved_bytes
from torch import Tensor, library, nn


def declare_torchvision() -> None:
    """Let `import torchvision` pass."""
    try:
        import torchvision  # noqa: F401
    except RuntimeError:
        for name in [name for name in sys.modules if name.startswith("torchvision")]:
            del sys.modules[name]
        for name in ("nms", "qnms"):
            library.define(f"torchvision::{name}", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")


class Layer(nn.Module):
    """An encoder layer of BERT as a static graph over the same modules.

    Padding is masked after the softmax, by 0 and 1: an additive mask would take the whole range of an 8-bit activation.
    """

    def __init__(self, layer: nn.Module, heads: int, tokens: int) -> None:
        super().__init__()
        attention = layer.attention
        self.query, self.key, self.value = attention.self.query, attention.self.key, attention.self.value
        self.attention_output, self.attention_norm = attention.output.dense, attention.output.LayerNorm
        self.up, self.down, self.norm, self.act = layer.intermediate.dense, layer.output.dense, layer.output.LayerNorm, nn.GELU()
        self.shape = (-1, tokens, heads, self.query.out_features // heads)
        self.scale = self.shape[-1] ** -0.5
        self.merged = (-1, tokens, self.query.out_features)

    def forward(self, hidden: Tensor, mask: Tensor) -> Tensor:
        query = self.query(hidden).reshape(self.shape).transpose(1, 2)
        key = self.key(hidden).reshape(self.shape).transpose(1, 2)
        value = self.value(hidden).reshape(self.shape).transpose(1, 2)
        share = torch.softmax(torch.matmul(query, key.transpose(2, 3)) * self.scale, -1) * mask
        share = share / share.sum(-1, keepdim=True)
        context = torch.matmul(share, value).transpose(1, 2).reshape(self.merged)
        hidden = self.attention_norm(self.attention_output(context) + hidden)
        return self.norm(self.down(self.act(self.up(hidden))) + hidden)


class Encoder(nn.Module):
    """Everything between embeddings and pooler, for texts padded to one length; module names say which matrix is which."""

    def __init__(self, model: nn.Module, tokens: int) -> None:
        super().__init__()
        heads = model.config.num_attention_heads
        self.layers = nn.ModuleList(Layer(layer, heads, tokens) for layer in model.bert.encoder.layer)

    def forward(self, hidden: Tensor, mask: Tensor) -> Tensor:
        for layer in self.layers:
            hidden = layer(hidden, mask)
        return hidden[:, 0]


def embedded(model: nn.Module, name: str, tokens: int) -> list[list[Tensor]]:
    """Batches of embedding outputs [texts, tokens, width] and masks [texts, 1, 1, tokens], padded to `tokens`."""
    found = []
    for batch in batches(name):
        padded = {key: nn.functional.pad(batch[key], (0, tokens - batch[key].shape[1])) for key in batch if key != "labels"}
        with torch.no_grad():
            hidden = model.bert.embeddings(input_ids=padded["input_ids"], token_type_ids=padded.get("token_type_ids"))
        found.append([hidden, padded["attention_mask"][:, None, None].float()])
    return found


def main() -> None:
    declare_torchvision()
    import model_compression_toolkit as mct

    model = load_teacher()
    tokens = max(batch["input_ids"].shape[1] for name in ("calibration", "evaluation") for batch in batches(name))
    encoder, data = Encoder(model, tokens).eval(), embedded(model, "calibration", tokens)
    platform = mct.get_target_platform_capabilities(tpc_version="1.0", device_type="imx500")
    images = mct.core.MixedPrecisionQuantizationConfig(num_of_images=len(data))
    share, _, activations = SETTING.partition("-")
    debug = mct.core.DebugConfig(network_editor=[] if activations else [float_activations(mct)])
    config = mct.core.CoreConfig(mixed_precision_config=images, debug_config=debug)

    def representative():
        yield from data

    with Stopwatch() as spent:
        most = mct.core.pytorch_resource_utilization_data(
            encoder, representative, core_config=config, target_platform_capabilities=platform
        )
        quantised, _ = mct.ptq.pytorch_post_training_quantization(
            encoder,
            representative,
            target_resource_utilization=mct.core.ResourceUtilization(weights_memory=float(share) * most.weights_memory),
            core_config=config,
            target_platform_capabilities=platform,
        )
    peak = peak_mib()
    with torch.no_grad():
        first = torch.cat([quantised(*batch) for batch in embedded(model, "evaluation", tokens)])
        logits = model.classifier(torch.tanh(model.bert.pooler.dense(first))).numpy()
    own = saved_bytes(quantised.state_dict())
    version = metadata.version("model-compression-toolkit")
    about = f"{activations}, static" if activations else "float32"
    finish("model-compression-toolkit", version, widths(quantised, encoder, model), own, spent.seconds, peak, logits, about)


def float_activations(mct):
    """The toolkit has no switch for it: an edit of every node's candidates."""
    from model_compression_toolkit.core.common.quantization.node_quantization_config import ActivationQuantizationMode

    editor = mct.core.network_editor
    off = editor.ChangeCandidatesActivationQuantConfigAttr(quant_mode=ActivationQuantizationMode.NO_QUANT)
    return editor.EditRule(filter=editor.NodeNameScopeFilter(""), action=off)


def widths(quantised: nn.Module, encoder: Encoder, model: nn.Module) -> dict[str, int]:
    """Teacher's matrix name -> bits. The toolkit names modules after the traced graph: layers_0_query for layers.0.query."""
    teacher = {id(module): name for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    traced = {name.replace(".", "_"): teacher[id(m)] for name, m in encoder.named_modules() if isinstance(m, nn.Linear)}
    found = {}
    for name, module in quantised.named_modules():
        for quantiser in getattr(module, "weights_quantizers", {}).values():
            matrix = traced.get(name.removesuffix(".layer").replace(".", "_"))
            if matrix is None:
                raise SystemExit(f"The toolkit quantised {name}, which is no linear layer of the teacher: adapt this script.")
            found[f"{matrix}.weight"] = int(quantiser.num_bits)
    return found


if __name__ == "__main__":
    main()
