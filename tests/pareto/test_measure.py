"""What a machine must have before it claims a trial."""

from pathlib import Path
from typing import Any

import pytest

from autoquant.core.errors import RunError
from autoquant.core.progress import SilentProgress
from autoquant.core.space import load_space
from autoquant.export.manifest import space_content
from autoquant.pareto.measure import Measurer
from whole_sweeps import settings_of


def measurer(folder: Path, **more: Any) -> Measurer:
    return Measurer(None, settings_of(**more), None, folder, "nowhere", SilentProgress())  # type: ignore[arg-type]


def test_a_space_that_is_another_here_is_refused_before_a_trial(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Measurer, "teacher", "")
    measurer(tmp_path).check()  # an older study, which does not say
    measurer(tmp_path, space=space_content(load_space("default"))).check()
    with pytest.raises(RunError, match="The space 'default' here is not that of the sweep"):
        measurer(tmp_path, space=space_content(load_space("rows"))).check()
