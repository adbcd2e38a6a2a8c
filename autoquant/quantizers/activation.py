"""8-bit activations as the fast runtime computes them: dynamic, asymmetric, one range per tensor."""

from __future__ import annotations

import torch
from torch import Tensor


def fake_quantize_dynamic(x: Tensor) -> Tensor:
    """uint8 with the range of this very tensor, zero included; straight-through gradient.

    The arithmetic of ONNX DynamicQuantizeLinear: scale = (max - min) / 255, zero point = round(-min / scale),
    code = clamp(round(x / scale) + zero point, 0, 255).
    """
    with torch.no_grad():
        low, high = torch.aminmax(x.detach())
        low, high = low.clamp_max(0.0), high.clamp_min(0.0)
        scale = ((high - low) / 255.0).clamp_min(torch.finfo(torch.float32).tiny)
        zero = torch.round(-low / scale)
        quantised = (torch.clamp(torch.round(x / scale) + zero, 0, 255) - zero) * scale
    return x + (quantised - x).detach()
