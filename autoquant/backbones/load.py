"""From a directory or hub id to a transformers sequence classifier, with errors a person can act on."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import nn

from autoquant.backbones import BACKBONES, Backbone
from autoquant.backbones.shorten import keep_layers, kept_layers
from autoquant.core.errors import ModelError

HUB_SECONDS = 5.0  # how long to wait for a sign of life


def quiet_transformers() -> None:
    """No load reports and bars of transformers between our own lines."""
    from huggingface_hub.utils import disable_progress_bars
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    disable_progress_bars()


@dataclass(frozen=True, eq=False)
class ModelSource:
    """A model that can be loaded: where it is, its (already adapted) config, and its architecture's description.

    Where the config has fewer layers than the model at `path`, the others are dropped as it is loaded.
    """

    path: str
    config: Any
    backbone: Backbone
    tokenizer: Any
    head_classes: tuple[str, ...] = ()
    """What a trained head calls its classes, where the data has other ones."""

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """State-dict names -> shapes of the classifier, without loading a weight."""
        from transformers import AutoModelForSequenceClassification

        with torch.device("meta"):
            model = AutoModelForSequenceClassification.from_config(self.config)
        return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}

    def load(self, seed: int) -> tuple[nn.Module, bool]:
        """The float32 model, and whether its pooler and head were in the checkpoint (else drawn from `seed`)."""
        from transformers import AutoModelForSequenceClassification

        torch.manual_seed(seed)
        config = copy.deepcopy(self.config)
        found = _config(self.path)
        config.max_position_embeddings = found.max_position_embeddings  # trimmed below
        config.num_hidden_layers = found.num_hidden_layers
        model, report = _from_hub(
            self.path,
            lambda **options: AutoModelForSequenceClassification.from_pretrained(
                self.path, config=config, dtype=torch.float32, output_loading_info=True, **options
            ),
        )
        missing = sorted(report["missing_keys"])
        self._check_encoder(missing)
        has_head = not missing
        if self.config.num_hidden_layers < found.num_hidden_layers:
            keep_layers(model, self.backbone, self.kept_layers)
        if self.config.max_position_embeddings < model.config.max_position_embeddings:
            model = self._trimmed(model)
        return model, has_head

    @property
    def is_classifier(self) -> bool:
        """Whether it was saved with a head, by its config."""
        return _has_trained_head(self.config)

    @property
    def kept_layers(self) -> tuple[int, ...]:
        """Layers of the model at `path` that are loaded."""
        return kept_layers(_config(self.path).num_hidden_layers, self.config.num_hidden_layers)

    def with_every(self, nth: int) -> ModelSource:
        """The same with one layer in `nth`; 1: with all that the model at `path` has. Raises ModelError where none would go."""
        layers = _config(self.path).num_hidden_layers
        if nth > 1 and -(-layers // nth) == layers:
            raise ModelError(f"{self.path} has {layers} layer, of which none can go: give --student.keep-every 1.")
        config = copy.deepcopy(self.config)
        config.num_hidden_layers = -(-layers // nth)
        return replace(self, config=config)

    def _check_encoder(self, missing: list[str]) -> None:
        """Only pooler and classifier may be missing, which fine-tuning trains; transformers draws what is missing at random."""
        drawn = tuple(f"{path}." for path in self.backbone.outer_modules.values())
        encoder = [name for name in missing if not name.startswith(drawn)]
        if encoder:
            raise ModelError(
                f"{self.path} lacks {len(encoder)} tensors of its encoder, such as {encoder[0]}: bring the whole model."
            )

    def _trimmed(self, model: nn.Module) -> nn.Module:
        from transformers import AutoModelForSequenceClassification

        smaller = AutoModelForSequenceClassification.from_config(self.config, dtype=torch.float32)  # whatever the checkpoint's
        state = model.state_dict()
        name = f"{self.backbone.embedding_modules['position_embedding']}.weight"
        state[name] = state[name][: self.config.max_position_embeddings].clone()
        smaller.load_state_dict(state)
        return smaller


def open_model(path: str, label_names: tuple[str, ...] | None, max_length: int, trim_positions: bool) -> ModelSource:
    """Read config and tokenizer of a model directory or hub id and fit the head's description to the task.

    `label_names` are the classes (None = regression). Raises ModelError for a missing model, an architecture that is not
    supported, weights that are quantised already, a head of another size, or a `max_length` beyond the model's positions or too
    short for any text.
    """
    quiet_transformers()
    config = _config(path)
    if config.model_type not in BACKBONES:
        raise ModelError(f"{path} is a '{config.model_type}' model; supported are {', '.join(BACKBONES)}.")
    if getattr(config, "quantization_config", None):
        raise ModelError(f"{path} is quantised already: give the full-precision model, such as teacher/ of the run that made it.")
    backbone = BACKBONES[config.model_type]
    tokenizer = load_tokenizer(path, backbone)
    shortest = tokenizer.num_special_tokens_to_add(pair=True) + 1
    if max_length < shortest:
        raise ModelError(f"--max-length {max_length} leaves no room for text: give {shortest} or more.")
    unused = backbone.first_position(config)
    positions = config.max_position_embeddings - unused
    if max_length > positions:
        raise ModelError(f"--max-length {max_length} is beyond the model's {positions} positions: lower it.")
    outputs = 1 if label_names is None else len(label_names)
    if _has_trained_head(config) and config.num_labels != outputs:
        raise ModelError(
            f"{path} has a head of {config.num_labels} outputs, the data has {outputs} "
            f"({'regression' if label_names is None else 'classes'}): give matching data or the bare encoder."
        )
    others: tuple[str, ...] = ()
    if _has_trained_head(config) and label_names is not None:
        others = _other_classes(path, tuple(str(config.id2label[index]) for index in range(outputs)), label_names)
    config.num_labels = outputs
    config.problem_type = "regression" if label_names is None else "single_label_classification"
    if label_names is not None:
        config.id2label = dict(enumerate(label_names))
        config.label2id = {name: index for index, name in enumerate(label_names)}
    if trim_positions:
        config.max_position_embeddings = unused + max_length
    tokenizer.model_max_length = max_length  # what truncation=True means to whoever loads it
    return ModelSource(path, config, backbone, tokenizer, others)


def load_tokenizer(path: str, backbone: Backbone) -> Any:
    """The tokenizer of a model directory or hub id; it gives what the architecture takes, whatever its own class would.

    Raises ModelError if it cannot be read or has no vocabulary.
    """
    from transformers import AutoTokenizer

    inputs = list(backbone.inputs)
    tokenizer = _from_hub(path, lambda **options: AutoTokenizer.from_pretrained(path, model_input_names=inputs, **options))
    if len(tokenizer) <= len(tokenizer.all_special_tokens):  # what transformers makes of a folder without tokenizer files
        raise ModelError(f"{path} has no vocabulary: bring its tokenizer.json or vocab.txt.")
    return tokenizer


def _config(path: str) -> Any:
    from transformers import AutoConfig

    return _from_hub(path, lambda **options: AutoConfig.from_pretrained(path, **options))


def _other_classes(path: str, head: tuple[str, ...], labels: tuple[str, ...]) -> tuple[str, ...]:
    """A head's classes if they are not the data's; names such as LABEL_0 or 0 say nothing, on either side.

    Raises ModelError when they are the same in another order.
    """
    there, here = [name.lower() for name in head], [name.lower() for name in labels]
    if sorted(there) == sorted(here) and there != here:
        raise ModelError(f"{path} orders the classes {', '.join(head)}, the data {', '.join(labels)}: reorder the model's head.")
    named = not any(name.removeprefix("label_").isdigit() for name in (*there, *here))
    return head if named and there != here else ()


def _has_trained_head(config: Any) -> bool:
    return any("SequenceClassification" in name for name in config.architectures or [])


def _from_hub(path: str, load: Any) -> Any:
    """Load from a directory, the hub or its cache; one line if none works."""
    local = Path(path).is_dir()
    if local and not (Path(path) / "config.json").is_file():
        raise ModelError(f"{path} is not a model directory: config.json is missing.")
    try:
        return load(local_files_only=local or not _hub_answers(path))
    except Exception as error:  # transformers, tokenizers and safetensors raise many kinds for damaged files
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        where = "is damaged or incomplete" if local else "is no directory here and could not be fetched from the hub"
        raise ModelError(f"Model {path} {where} ({first[:160]}): check the path, or the network.") from error


@cache
def _hub_answers(path: str) -> bool:
    """Whether the hub gives a sign of life; without one, transformers would retry for half a minute."""
    import huggingface_hub
    from huggingface_hub.errors import HfHubHTTPError

    try:
        huggingface_hub.HfApi().model_info(path, timeout=HUB_SECONDS)
    except HfHubHTTPError:  # no such model, or not for this person: loading says so
        return True
    except Exception:  # whatever a missing network raises
        return False
    return True
