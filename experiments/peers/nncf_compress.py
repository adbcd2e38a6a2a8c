"""NNCF: compress_weights to int4 by Hessian sensitivity; SETTING is the share of the linear weights that become int4.

Traps: a share of layers, not a size; the rest of the linear layers and the embeddings become int8; the 2-bit mode fails in torch.
Codes of 4 bits have a scale for every group of 64 inputs, which the recount counts.
"""

from __future__ import annotations

import nncf
import torch
from common import SETTING, Stopwatch, batches, finish, load_teacher, peak_mib, predict, saved_bytes, without_labels

GROUP = 64


def main() -> None:
    model, whole = load_teacher(), {}
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear | torch.nn.Embedding):
            whole[name] = module.weight.numel()
    data = nncf.Dataset([without_labels(batch) for batch in batches("calibration")])
    with Stopwatch() as spent:
        low = nncf.compress_weights(
            model,
            mode=nncf.CompressWeightsMode.INT4_SYM,
            ratio=float(SETTING),
            group_size=GROUP,
            dataset=data,
            sensitivity_metric=nncf.SensitivityMetric.HESSIAN_INPUT_ACTIVATION,
        )
    peak, bits = peak_mib(), {}
    for name, count in whole.items():
        weight = low.get_submodule(name).weight
        if not weight.is_floating_point():
            bits[f"{name}.weight"] = round(8 * weight.numel() * weight.element_size() / count)
    groups = {name: GROUP for name, width in bits.items() if width == 4}
    own = saved_bytes(low.state_dict())
    finish("nncf", nncf.__version__, bits, own, spent.seconds, peak, predict(low), "float32", groups)


if __name__ == "__main__":
    main()
