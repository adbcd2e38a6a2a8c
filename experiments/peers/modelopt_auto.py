"""nvidia-modelopt: auto_quantize, its gradient-based search, under a mean width of the linear layers (SETTING, bits).

Traps: it needs `requests` too; q, k and v get widths of their own; embeddings are not touched;
scales are not counted. Its result is simulated, so the file is as large as before. Clipped for the least squared error, as ours
is; pooler and classifier, which the table of the linear layers does not count, stay float.
"""

from __future__ import annotations

import modelopt
import modelopt.torch.quantization as mtq
from common import SETTING, Stopwatch, batches, finish, linear_names, load_teacher, peak_mib, predict, saved_bytes

WIDTHS = (2, 3, 4, 8)


def weights_only(bits: int) -> dict:
    """Integers with a scale per output row."""
    everything = {"quantizer_name": "*", "enable": False}
    weights = {"quantizer_name": "*weight_quantizer", "cfg": {"num_bits": bits, "axis": 0}, "enable": True}
    return {"quant_cfg": [everything, weights], "algorithm": "mse"}


def main() -> None:
    model, data = load_teacher(), list(batches("calibration"))
    matrices = linear_names(model)
    with Stopwatch() as spent:
        model, _ = mtq.auto_quantize(
            model,
            constraints={"effective_bits": float(SETTING)},
            quantization_formats=[weights_only(bits) for bits in WIDTHS],
            data_loader=data,
            forward_step=lambda model, batch: model(**batch),
            loss_func=lambda output, batch: output.loss,
            disabled_layers=["*pooler*", "*classifier*"],
            num_calib_steps=len(data),
            num_score_steps=len(data),
            verbose=False,
        )
    peak = peak_mib()
    quantisers = {name: model.get_submodule(name).weight_quantizer for name in matrices}
    bits = {matrices[name]: int(q.num_bits) for name, q in quantisers.items() if q.is_enabled}
    own = saved_bytes(model.state_dict())
    finish("nvidia-modelopt", modelopt.__version__, bits, own, spent.seconds, peak, predict(model.eval()), "float32")


if __name__ == "__main__":
    main()
