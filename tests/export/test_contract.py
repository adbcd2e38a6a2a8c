"""What every exporter promises, over the table."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from autoquant.backbones import BACKBONES
from autoquant.core.errors import CheckpointError, ModelError
from autoquant.export import EXPORTERS
from autoquant.quantizers import QUANTIZERS, Midrise
from export_folders import random_batch, simulated

MakeFolder = Callable[..., Path]
names = pytest.mark.parametrize("name", sorted(EXPORTERS))
exact_names = pytest.mark.parametrize("name", [name for name in sorted(EXPORTERS) if EXPORTERS[name].activation_bits == 32])
rounding_names = pytest.mark.parametrize("name", [name for name in sorted(EXPORTERS) if EXPORTERS[name].activation_bits == 8])


def logits(name: str, folder: Path, batch: dict[str, np.ndarray]) -> np.ndarray:
    exporter = EXPORTERS[name]
    return exporter.open(exporter.export(folder), threads=1)(batch)


@exact_names
@pytest.mark.parametrize("dead", ["none", "some", "all"])
@pytest.mark.parametrize("model_type", sorted(BACKBONES))
def test_exact_formats_give_the_simulated_logits(name: str, model_type: str, dead: str, make_folder: MakeFolder) -> None:
    folder, batch = make_folder(model_type, dead=dead), random_batch(4, 11)
    np.testing.assert_allclose(logits(name, folder, batch), simulated(folder, batch, 32), atol=1e-5)


@exact_names
@pytest.mark.parametrize("model_type", sorted(BACKBONES))
def test_scales_of_sub_groups(name: str, model_type: str, make_folder: MakeFolder) -> None:
    folder, batch = make_folder(model_type, scale="subgroup"), random_batch(3, 7)
    np.testing.assert_allclose(logits(name, folder, batch), simulated(folder, batch, 32), atol=1e-5)


@exact_names
@pytest.mark.parametrize("quantizer", [name for name in sorted(QUANTIZERS) if QUANTIZERS[name].symmetric_int8])
def test_every_symmetric_quantizer(name: str, quantizer: str, make_folder: MakeFolder) -> None:
    folder, batch = make_folder(quantizer=quantizer), random_batch(3, 7)
    np.testing.assert_allclose(logits(name, folder, batch), simulated(folder, batch, 32), atol=1e-5)


@exact_names
@pytest.mark.parametrize("dead", ["none", "some", "all"])
def test_learned_ranges_are_kept(name: str, dead: str, make_folder: MakeFolder) -> None:
    """Whatever is folded went through them too."""
    folder, batch = make_folder(dead=dead, static=True, activation_bits=4), random_batch(3, 7)
    np.testing.assert_allclose(logits(name, folder, batch), simulated(folder, batch, 32), atol=1e-5)


@rounding_names
def test_learned_ranges_do_not_fit_integer_products(name: str, make_folder: MakeFolder) -> None:
    folder = make_folder(static=True, activation_bits=8)
    with pytest.raises(ModelError, match="give --tail fp32"):
        EXPORTERS[name].export(folder)


@names
@pytest.mark.parametrize("model_type", sorted(BACKBONES))
def test_regression_has_one_output(name: str, model_type: str, make_folder: MakeFolder) -> None:
    folder, batch = make_folder(model_type, outputs=1), random_batch(2, 5)
    found = logits(name, folder, batch)
    assert found.shape == (2, 1)
    np.testing.assert_allclose(found, simulated(folder, batch, EXPORTERS[name].activation_bits), atol=5e-3)


@rounding_names
@pytest.mark.parametrize("model_type", sorted(BACKBONES))
def test_rounded_activations_are_those_of_the_simulation(name: str, model_type: str, make_folder: MakeFolder) -> None:
    """With one token a text, every range is that of the simulation too (else the last layer's are those of first tokens)."""
    folder, batch = make_folder(model_type, dead="none"), random_batch(8, 1)
    found, rounded, plain = logits(name, folder, batch), simulated(folder, batch, 8), simulated(folder, batch, 32)
    assert np.abs(found - rounded).max() < 1e-6
    assert np.abs(found - plain).max() > 1e-4


@rounding_names
@pytest.mark.parametrize("model_type", sorted(BACKBONES))
def test_rounded_activations_come_close(name: str, model_type: str, make_folder: MakeFolder) -> None:
    folder, batch = make_folder(model_type), random_batch(4, 11)
    wanted = simulated(folder, batch, 8)
    assert np.abs(logits(name, folder, batch) - wanted).max() < 0.03 * np.ptp(wanted)


@names
def test_any_batch_and_length_and_padding_does_not_matter(name: str, make_folder: MakeFolder) -> None:
    folder = make_folder("bert")
    exporter = EXPORTERS[name]
    run = exporter.open(exporter.export(folder), threads=1)
    batch = random_batch(5, 13)
    whole = run(batch)
    tolerance = 1e-5 if exporter.activation_bits == 32 else 5e-3
    for row in range(5):
        length = int(batch["attention_mask"][row].sum())
        alone = run({key: values[row : row + 1, :length] for key, values in batch.items()})
        np.testing.assert_allclose(alone, whole[row : row + 1], atol=tolerance)


@names
@pytest.mark.parametrize("model_type", sorted(BACKBONES))
def test_equal_folders_give_equal_bytes(name: str, model_type: str, make_folder: MakeFolder, tmp_path: Path) -> None:
    first = EXPORTERS[name].export(make_folder(model_type)).read_bytes()
    assert EXPORTERS[name].export(make_folder(model_type)).read_bytes() == first


@names
def test_nothing_is_left_beside_the_file(name: str, make_folder: MakeFolder) -> None:
    folder = make_folder()
    before = {path.name for path in folder.iterdir()}
    EXPORTERS[name].export(folder)
    assert {path.name for path in folder.iterdir()} == before | {EXPORTERS[name].file_name}


@names
def test_a_missing_package_is_named_with_the_command(
    name: str, make_folder: MakeFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("autoquant.export.onnx.exporter.find_spec", lambda package: None)
    with pytest.raises(ModelError, match="pip install onnx onnxruntime"):
        EXPORTERS[name].export(make_folder())


class Lopsided(Midrise):
    name = "lopsided"
    symmetric_int8 = False


@names
def test_a_quantizer_that_is_not_symmetric_is_refused(
    name: str, make_folder: MakeFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_folder()
    monkeypatch.setitem(QUANTIZERS, "midrise", Lopsided())
    with pytest.raises(ModelError, match="quantizer 'lopsided' are not symmetric"):
        EXPORTERS[name].export(folder)
    assert not (folder / EXPORTERS[name].file_name).exists()


@names
def test_a_damaged_folder_is_refused(name: str, make_folder: MakeFolder) -> None:
    folder = make_folder()
    (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:-1])
    with pytest.raises(CheckpointError, match="checksum"):
        EXPORTERS[name].export(folder)


@names
@pytest.mark.parametrize("content", [b"", b"no model", b"\x08\x0a"])
def test_a_damaged_file_is_refused(name: str, content: bytes, tmp_path: Path) -> None:
    path = tmp_path / EXPORTERS[name].file_name
    path.write_bytes(content)
    with pytest.raises(ModelError, match="export it again") as caught:
        EXPORTERS[name].open(path)
    assert "\n" not in str(caught.value)
