"""What decides a run's numbers besides its settings: versions, the state of the code, the device."""

from __future__ import annotations

import hashlib
import platform
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

PACKAGES = {"autoquant": "autoquant-bert", **{name: name for name in ("torch", "transformers", "numpy", "safetensors")}}


def versions() -> dict[str, str]:
    """Versions of what decides a run's numbers; `code` tells apart states of a checkout, whose version stays the same."""
    found = {"python": platform.python_version(), "platform": platform.platform(), "code": _code_hash()}
    for name, distribution in PACKAGES.items():
        try:
            found[name] = metadata.version(distribution)
        except metadata.PackageNotFoundError:  # a checkout on the path, not installed
            found[name] = "unknown"
    return found


@cache
def _code_hash() -> str:
    """The first 12 digits of a sha256 over this package's sources, presets and search spaces left out."""
    digest, package = hashlib.sha256(), Path(__file__).parents[1]
    for path in sorted(package.rglob("*.py")):
        digest.update(f"{path.relative_to(package).as_posix()}\0".encode() + path.read_bytes().replace(b"\r\n", b"\n"))
    return digest.hexdigest()[:12]


def device_name(device: Any) -> str:
    """A torch device as a table names it: the card's name, or cpu."""
    import torch

    return torch.cuda.get_device_name(device) if device.type == "cuda" else str(device.type)
