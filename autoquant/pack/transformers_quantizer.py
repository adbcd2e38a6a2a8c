"""`AutoModelForSequenceClassification.from_pretrained` of a packed folder: autoquant as a quantization method of transformers.

transformers builds the plain model without weights, and hands it over before and after it has read the file. The tensors
that count are those `read_packed` has checked: they replace whatever transformers read from the same path.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers.quantizers import auto
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from autoquant.core.errors import ModelError

QUANT_METHOD = "autoquant"
MOST_LAYERS = 1024  # more than any model of this family by far; a config.json that claims more would only take forever
MOST_POSITIONS = 2**20  # buffers are made for each


@auto.register_quantization_config(QUANT_METHOD)
class AutoquantConfig(QuantizationConfigMixin):
    """How to load a packed model: `from_pretrained(folder, quantization_config=AutoquantConfig(memory="packed"))`.

    `memory`: `unpacked` unpacks every weight once, `packed` at every use. `recorded` is what config.json says of the packing.
    Raises ModelError for another `memory`.
    """

    def __init__(self, memory: str = "unpacked", **recorded: Any) -> None:
        from autoquant.pack.modules import check_memory

        check_memory(memory)
        self.quant_method = recorded.pop("quant_method", QUANT_METHOD)
        self.memory, self.recorded = memory, recorded

    def get_loading_attributes(self) -> dict[str, Any]:
        """What the config given to `from_pretrained` decides, and not the folder's."""
        return {"memory": self.memory}

    def to_dict(self) -> dict[str, Any]:
        """What config.json holds: nothing about memory."""
        return {"quant_method": self.quant_method, **self.recorded}


# the configs whose loading attributes a caller may set; transformers has no function to add one
auto.LOADING_ATTRIBUTES_CONFIG_TYPES = (*auto.LOADING_ATTRIBUTES_CONFIG_TYPES, AutoquantConfig)


@auto.register_quantizer(QUANT_METHOD)
class AutoquantQuantizer(HfQuantizer):
    """Turns the plain model into the packed one. Raises ModelError or CheckpointError for what cannot be loaded."""

    def validate_environment(self, *_: Any, device_map: Any = None, **__: Any) -> None:
        if not self.pre_quantized:
            raise ModelError("This model is not packed: `autoquant search` packs one; its model/ folder loads without a config.")
        if isinstance(device_map, dict) and (len(set(device_map.values())) > 1 or "disk" in device_map.values()):
            raise ModelError("A packed model goes onto one device: give device_map='cpu' or 'cuda'.")

    def update_device_map(self, device_map: Any) -> Any:
        """`auto` and the like: the one accelerator there is, else the CPU."""
        if not isinstance(device_map, str):
            return device_map
        return {"": torch.accelerator.current_accelerator() if torch.accelerator.is_available() else torch.device("cpu")}

    def update_attn_implementation(self, config: Any) -> Any:
        """Before anything is built: nothing in a folder may have code fetched, nor a model built that never ends."""
        if "/" in (config._attn_implementation or ""):
            raise ModelError(f"attn_implementation {config._attn_implementation!r} is code from the hub: give sdpa or eager.")
        if config.num_hidden_layers > MOST_LAYERS:
            raise ModelError(f"config.json claims {config.num_hidden_layers} layers: it is not that of a packed model.")
        if config.max_position_embeddings > MOST_POSITIONS:
            raise ModelError(f"config.json claims {config.max_position_embeddings} positions: it is not that of a packed model.")
        return config

    def _process_model_before_weight_loading(self, model: Any, checkpoint_files: Any = None, **_: Any) -> None:
        from autoquant.backbones import BACKBONES
        from autoquant.pack.checkpoint import read_packed
        from autoquant.pack.model import FILE_NAME, put_modules

        if model.config.model_type not in BACKBONES or not type(model).__name__.endswith("ForSequenceClassification"):
            raise ModelError(
                f"{type(model).__name__} cannot be packed: load with AutoModelForSequenceClassification; known model types are "
                f"{', '.join(BACKBONES)}."
            )
        path = Path(checkpoint_files[0]) if checkpoint_files else Path(FILE_NAME)
        if not checkpoint_files or len(checkpoint_files) > 1 or path.name != FILE_NAME:
            raise ModelError(f"{path.parent} is no packed model: it must have its weights in one {FILE_NAME}.")
        with torch.device("cpu"):  # transformers is building on no device at all
            self.packed_file = read_packed(path)
            put_modules(model, self.packed_file, self.quantization_config.memory, path.parent)

    def _process_model_after_weight_loading(self, model: Any, **_: Any) -> None:
        from autoquant.pack.model import put_tensors

        put_tensors(model, self.packed_file)
        del self.packed_file

    def is_serializable(self) -> bool:
        """Not by transformers, whose file would have no checksum: the model has a `save_pretrained` of its own."""
        return False

    @property
    def is_trainable(self) -> bool:
        return False
