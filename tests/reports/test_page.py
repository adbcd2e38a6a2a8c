"""Reports open from disk in a real browser, draw everything, ask nothing of a network and say nothing on the console."""

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page

from autoquant import cli
from autoquant.core.errors import RunError
from autoquant.reports import page as module
from autoquant.reports.page import write_report
from autoquant.reports.results import Sweep
from runs import Reference, reference

__all__ = ["reference"]

MOST_BYTES = 6 * 2**20  # plotly.js is 4.6 MiB of it


@pytest.fixture
def look(browser: Browser) -> Callable[[Path], Page]:
    """Open a file; fail for anything on the console, any error, and any request that is not the file itself."""

    def open_(path: Path) -> Page:
        page = browser.new_page(viewport={"width": 1200, "height": 900})
        said: list[str] = []
        page.on("console", lambda message: said.append(f"console: {message.text}"))
        page.on("pageerror", lambda error: said.append(f"error: {error}"))
        page.on("request", lambda request: said.append(request.url) if not request.url.startswith(("file:", "data:")) else None)
        page.goto(path.as_uri())
        page.wait_for_function("document.querySelectorAll('.js-plotly-plot .main-svg').length > 0")
        page.wait_for_timeout(300)
        assert said == []
        return page

    return open_


def headings(page: Page) -> list[str]:
    return page.locator("h2").all_inner_texts()


def test_a_run_has_its_report(reference: Reference, look: Callable[[Path], Page]) -> None:
    path = reference.run_dir / "report.html"
    assert path.stat().st_size < MOST_BYTES
    page = look(path)
    expected = ["Metric and size", "Methods", "Where the bits went", "Bit-widths", "Bits by token frequency", "Training", "Bytes"]
    assert [h for h in headings(page) if h in expected] == expected
    assert page.locator(".js-plotly-plot").count() == 6
    assert page.locator(".heatmaplayer").count() == 2
    text = page.inner_text("main")
    metrics = reference.metrics
    for number in (f"{metrics['metric']['value']:.4f}", f"{metrics['bytes']['file']:,}", f"{metrics['metric']['uniform']:.4f}"):
        assert number in text
    assert "autoquant search --model" in page.inner_text("pre >> nth=0")


def test_hovering_a_matrix_shows_its_subgroups(reference: Reference, look: Callable[[Path], Page]) -> None:
    page = look(reference.run_dir / "report.html")
    heatmap = page.locator(".js-plotly-plot").nth(1)
    heatmap.scroll_into_view_if_needed()
    box = heatmap.locator(".nsewdrag").first.bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + 20, box["y"] + 20, steps=4)
    hover = page.locator(".hoverlayer .hovertext")
    hover.wait_for(timeout=5000)
    text = hover.text_content() or ""
    assert "attention.self.query.weight" in text
    assert "rows 0 to 7" in text


def test_every_method_of_a_run_has_numbers_of_its_own() -> None:
    metrics: dict[str, Any] = {
        "task": "sst2",
        "strategy": "dnas",
        "seed": 3,
        "metric": {"name": "accuracy", "full_precision": 0.9},
        "bytes": {"budget": 100, "file": 98, "full_precision": 1000, "controls": {"uniform": 97, "random": 96}},
        "all_metrics": {"dnas": {"accuracy": 0.8}, "uniform": {"accuracy": 0.7}, "random": {"accuracy": 0.6}},
    }
    found = module.as_sweep(metrics, {"matrices": []})
    numbers = [(p.strategy, p.seed, p.budget_bytes, p.file_bytes, p.metric, bool(p.allocation)) for p in found.points]
    assert numbers == [
        ("dnas", 3, 100, 98, 0.8, True),
        ("uniform", 3, 100, 97, 0.7, False),
        ("random", 3, 100, 96, 0.6, False),
    ]
    assert (found.full_precision_bytes, found.full_precision_metric) == (1000, 0.9)


def test_what_fills_a_budget_is_what_counts() -> None:
    sizes = {"budget": 1000, "counted": 990, "file": 5000, "full_precision": 20_000}
    metric = {"name": "accuracy", "value": 0.8, "full_precision": 0.9, "uniform": None}
    tiles = module._run_tiles({"metric": metric, "bytes": sizes, "encoder_bits_per_weight": 2.5, "seconds": {"search": 1.0}})
    assert [text for name, _, text in tiles if name == "file size"] == ["99.00% of the budget of 1,000 bytes"]
    assert [value for name, value, _ in tiles if name == "smaller than float32"] == ["4.0x"]


def test_the_winner_of_a_race_stands_first() -> None:
    (race,) = module._race({"dnas": 0.5, "fisher": 0.25, "uniform": 0.75})
    assert race.body.index("fisher") < race.body.index("dnas") < race.body.index("uniform")


def test_allocations_are_drawn_of_the_strategy_that_covers_most(sweep: Sweep) -> None:
    better = dataclasses.replace(sweep.points[2], cell="fisher-200-seed0", strategy="fisher", metric=0.89)
    both = dataclasses.replace(sweep, points=(*sweep.points, better))
    assert both.hypervolumes()["dnas"] > both.hypervolumes()["fisher"]
    assert {c.strategy for c in module._shown(both)} == {"dnas"}
    best = dataclasses.replace(better, file_bytes=10)
    assert {c.strategy for c in module._shown(dataclasses.replace(sweep, points=(*sweep.points, best)))} == {"fisher"}


def test_a_sweep_has_its_report(sweep: Sweep, tmp_path: Path, look: Callable[[Path], Page]) -> None:
    sweep.write(tmp_path)
    trial = tmp_path / "trials" / "dnas-100-seed1"
    trial.mkdir(parents=True)
    (trial / "report.html").write_text("", "utf-8")
    page = look(write_report(tmp_path))
    assert headings(page)[:3] == ["The front", "Configurations", "Where more bytes go"]
    assert page.locator("tbody tr").count() == 3
    assert page.locator("td a").count() == 1
    assert page.locator(".errorbars").count() > 0
    assert "autoquant pareto --budgets 1,2" in page.inner_text("main")


def test_names_are_text_not_html(sweep: Sweep, tmp_path: Path, look: Callable[[Path], Page]) -> None:
    points = [dataclasses.replace(p, strategy="<b>x</b><script>alert(1)</script>") for p in sweep.points]
    dataclasses.replace(sweep, task="<i>task</i>", points=tuple(points)).write(tmp_path)
    page = look(write_report(tmp_path))
    assert page.locator("h1 i").count() == 0
    assert page.locator("table b").count() == 0


def test_report_is_a_command(reference: Reference, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("run.json", "metrics.json", "metrics.jsonl"):
        shutil.copy(reference.run_dir / name, tmp_path / name)
    shutil.copytree(reference.model_dir, tmp_path / "model")
    cli.main(["report", str(tmp_path)])
    assert capsys.readouterr().out == f"Wrote {tmp_path / 'report.html'}\n"
    assert (tmp_path / "report.html").stat().st_size > 2**20


def test_a_folder_without_results_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="holds no finished run"):
        write_report(tmp_path)
