"""A method is finished only if its file is what was predicted, what was simulated, and within the budget."""

from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from autoquant import method
from autoquant.core.allocation import BitAllocation
from autoquant.core.cost import SizeBudget
from autoquant.core.errors import BudgetError, CheckpointError
from autoquant.strategies import SearchResult

Finished = dict[str, dict[str, Any]]


def build(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    finished: Finished,
    written: int = 100,
    difference: float = 0.0,
    counted: int = 60,
) -> dict[str, Any]:
    """Of an allocation of 100 bytes under an encoder's budget of 60: a file of `written` bytes, and what is found of it."""
    file = folder / "model.safetensors"
    file.write_bytes(bytes(written))
    monkeypatch.setattr(method, "recover", lambda *_: None)
    monkeypatch.setattr(method, "pack", lambda *_: file)
    monkeypatch.setattr(method, "_reload_difference", lambda *_: difference)
    run = SimpleNamespace(finished=finished.get, finish=finished.__setitem__, discard_states=lambda _: None)
    sizes = SimpleNamespace(exact_bytes=lambda _, count="file": {"file": 100, "encoder": counted}[count])
    workspace: Any = SimpleNamespace(run=run, timed=lambda _: nullcontext(), blueprint=SimpleNamespace(byte_model=sizes))
    return method.build(workspace, SearchResult(BitAllocation({})), SizeBudget(60, "encoder"), "dnas", folder)


def test_what_is_found_is_kept_and_not_done_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    finished: Finished = {}
    done = build(tmp_path, monkeypatch, finished, difference=1e-6)
    assert done == {"file_bytes": 100, "counted_bytes": 60, "reload_difference": 1e-6}
    assert finished == {"recover-dnas": done}
    assert build(tmp_path, monkeypatch, finished, difference=1.0) == done


@pytest.mark.parametrize(
    ("found", "error", "message"),
    [
        ({"written": 99}, CheckpointError, "has 99 bytes, 100 were predicted: please report this"),
        ({"difference": 2e-5}, CheckpointError, "differs from the simulated model by 2.00e-05: please report this"),
        ({"difference": float("nan")}, CheckpointError, "differs from the simulated model by nan: please report this"),
        ({"counted": 61}, BudgetError, "The allocation of dnas counts 61 bytes, the budget is 60: raise the budget"),
    ],
)
def test_a_file_that_is_not_what_it_should_be_is_refused(
    found: dict[str, Any], error: type[Exception], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    finished: Finished = {}
    with pytest.raises(error, match=message):
        build(tmp_path, monkeypatch, finished, **found)
    assert not finished
