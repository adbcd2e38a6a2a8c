"""`import autoquant` is enough for transformers to know packed models, whichever is imported first, and costs nothing."""

import importlib
import subprocess
import sys
from pathlib import Path

import pytest

from autoquant import registration

CHECK = """
import autoquant
from transformers.quantizers import auto
config = auto.AutoQuantizationConfig.from_dict({"quant_method": "autoquant", "scale": "row"})
assert auto.AUTO_QUANTIZER_MAPPING["autoquant"].__name__ == "AutoquantQuantizer"
assert config.to_dict() == {"quant_method": "autoquant", "scale": "row"}
assert autoquant.AutoquantConfig is type(config)
assert auto.LOADING_ATTRIBUTES_CONFIG_TYPES.count(type(config)) == 1
"""


@pytest.mark.parametrize("first", ["", "import autoquant.pack.transformers_quantizer", "import transformers.quantizers.auto"])
def test_transformers_knows_the_method(first: str) -> None:
    """In a process of its own, whatever was imported first."""
    subprocess.run([sys.executable, "-c", first + CHECK], check=True)


def test_neither_torch_nor_transformers_is_imported() -> None:
    check = "import sys, autoquant\nassert not {'torch', 'transformers', 'accelerate'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", check], check=True)


@pytest.fixture
def joined(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Whether a stand-in for the registry was complete, each time that ours joined it."""
    (tmp_path / "a_registry.py").write_text("COMPLETE = True\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "a_registry", raising=False)
    monkeypatch.setattr(registration, "REGISTRY", "a_registry")
    monkeypatch.setattr(sys, "meta_path", list(sys.meta_path))
    times: list[bool] = []
    monkeypatch.setattr(registration, "_join", lambda: times.append(hasattr(sys.modules["a_registry"], "COMPLETE")))
    return times


def test_ours_joins_when_the_registry_is_complete(joined: list[bool]) -> None:
    finders = list(sys.meta_path)
    registration.register()
    registration.register()
    assert joined == []
    module = importlib.import_module("a_registry")
    assert joined == [True]
    assert sys.meta_path == finders
    assert type(module.__spec__.loader).__module__ == "_frozen_importlib_external"


def test_a_registry_that_is_there_is_joined_at_once(joined: list[bool]) -> None:
    importlib.import_module("a_registry")
    registration.register()
    assert joined == [True]
