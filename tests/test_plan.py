"""What `autoquant plan` prints is what a search would reach, and nothing is trained or written."""

import re
from pathlib import Path

import pytest

from autoquant import cli
from autoquant.blueprint import Blueprint
from autoquant.core.cost import MIB, choice_table
from autoquant.core.settings import Recipe
from autoquant.tasks.load import load_glue
from runs import task


@pytest.fixture
def blueprint(tiny_model_dir: Path, tiny_data: Path) -> Blueprint:
    data = load_glue("sst2", tiny_data)
    return Blueprint.draw(str(tiny_model_dir), data, Recipe(), max_length=32, trim_positions=False)


def plan(model: Path, data: Path, capsys: pytest.CaptureFixture[str], *more: str) -> str:
    capsys.readouterr()
    cli.main(["plan", *task(model, data), "--max-length", "32", *more])
    return capsys.readouterr().out


def row(out: str, name: str) -> list[str]:
    """The cells of the table row that begins with `name`."""
    line = next(line for line in out.splitlines() if line.startswith(f"│ {name}"))
    return [cell.strip() for cell in line.strip("│").split("│")]


def test_sizes(
    blueprint: Blueprint, tiny_model_dir: Path, tiny_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = plan(tiny_model_dir, tiny_data, capsys)
    table, full = choice_table(blueprint.byte_model), blueprint.full_bytes()
    assert f"Full precision: {full:,} bytes ({full / MIB:.2f} MiB), counting the file." in out
    assert row(out, "total") == ["total", f"{table.smallest():,}", f"{table.largest():,}"]
    parts = [row(out, name) for name in ("word_embedding", "query", "ffn_in", "classifier", "header", "rest", "layout")]
    assert all(int(smallest.replace(",", "")) <= int(largest.replace(",", "")) for _, smallest, largest in parts)
    assert re.search(r"Time: about \d+ (s|min) on 2 CPU cores", out)


def test_bytes_per_matrix(tiny_model_dir: Path, tiny_data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A 32 by 32 query matrix: a byte of codes for 8 / bits weights, and 2 bytes a row of scale; two layers alike."""
    out = plan(tiny_model_dir, tiny_data, capsys)
    sizes = {bits: 32 * (32 * bits // 8 + 2) if bits else 0 for bits in (0, 1, 2, 3, 4, 8)}
    assert row(out, "2 x query [32, 32]") == ["2 x query [32, 32]", "4", *(f"{size:,}" for size in sizes.values())]
    assert row(out, "classifier [2, 32]")[2:] == ["-", "-", "-", "-", "-", str(2 * (32 + 2))]
    assert row(out, "word_embedding [200, 32]")[2] == "-"  # embeddings are not pruned


def test_encoder_counts_only_the_encoder(tiny_model_dir: Path, tiny_data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = plan(tiny_model_dir, tiny_data, capsys, "--count", "encoder")
    full = 2 * 4 * (4 * 32 * 32 + 2 * 32 * 64)
    assert f"Full precision: {full:,} bytes ({full / MIB:.2f} MiB), counting the encoder." in out
    assert row(out, "total")[1] == "0"  # everything in it may be pruned


def test_a_budget_that_can_be_met(tiny_model_dir: Path, tiny_data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = plan(tiny_model_dir, tiny_data, capsys, "--budget-ratio", "6")
    assert re.search(r"Budget 18,\d{3} bytes \(0\.02 MiB\) can be met: 6\.0x smaller\.", out)


def test_a_budget_that_cannot(
    blueprint: Blueprint, tiny_model_dir: Path, tiny_data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    smallest = choice_table(blueprint.byte_model).smallest()
    met = f"{smallest / MIB + 1e-9:.12f}"
    assert "can be met" in plan(tiny_model_dir, tiny_data, capsys, "--budget-mib", met)
    with pytest.raises(SystemExit, match="2"):
        plan(tiny_model_dir, tiny_data, capsys, "--budget-mib", f"{(smallest - 1) / MIB:.12f}")
    out, err = capsys.readouterr()
    assert f"below the smallest allocation, {smallest / MIB:.2f} MiB" in err
    assert err.count("\n") == 1
    assert "below the smallest" not in out


def test_trimming_positions_makes_everything_smaller(
    tiny_model_dir: Path, tiny_data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, trimmed = (plan(tiny_model_dir, tiny_data, capsys, *more) for more in ((), ("--trim-positions",)))
    for column in (1, 2):
        sizes = [int(row(out, "position_embedding")[column].replace(",", "")) for out in (whole, trimmed)]
        assert sizes[0] == 2 * sizes[1]  # 32 of 64 positions


def test_another_space_and_preset(
    tiny_model_dir: Path, tiny_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "(layer space)" in plan(tiny_model_dir, tiny_data, capsys, "--space", "layer")
    preset = tmp_path / "mine.toml"
    preset.write_text('space = "rows"\n', "utf-8")
    assert "(rows space)" in plan(tiny_model_dir, tiny_data, capsys, "--preset", str(preset))
    assert "(layer space)" in plan(tiny_model_dir, tiny_data, capsys, "--preset", str(preset), "--space", "layer")


def test_nothing_is_written(
    tiny_model_dir: Path, tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    plan(tiny_model_dir, tiny_data, capsys, "--budget-ratio", "6")
    assert list(tmp_path.iterdir()) == []
