import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_data_flows_one_way():
    lint = Path(sys.executable).with_name("lint-imports")
    result = subprocess.run([lint, "--no-cache"], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr


def test_core_is_quick_to_import():
    """`autoquant --help` reads core's dataclasses; it must not wait for transformers."""
    code = """
import importlib, pkgutil, sys, autoquant.core
for module in pkgutil.iter_modules(autoquant.core.__path__, "autoquant.core."):
    importlib.import_module(module.name)
assert "autoquant.core.run" in sys.modules
print(sorted({"transformers", "datasets", "torch"} & set(sys.modules)))
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout == "[]\n"
