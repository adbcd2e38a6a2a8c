"""How is a file written, whole or not at all? And how does a disk that refuses become one line with the remedy?"""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from autoquant.core.cost import MIB
from autoquant.core.errors import RunError

TEMPORARY_SUFFIX = ".autoquant.tmp"
FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
READ_ONLY = {errno.EACCES, errno.EPERM, errno.EROFS}
NOT_A_FOLDER = {errno.ENOTDIR, errno.EEXIST}


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn the OSErrors of writing at `path` into one RunError line with the remedy."""
    try:
        yield
    except OSError as error:
        if error.errno in FULL:
            free = free_bytes(path) / MIB
            reason = f"No space left to write {path} ({free:.0f} MiB free): make room; a run goes on with --resume."
        elif error.errno in READ_ONLY:
            reason = f"{path} is not writable: change its permissions or choose another folder."
        elif error.errno in NOT_A_FOLDER:
            reason = f"Cannot write {path}: a file is where a folder is needed; choose another folder."
        else:
            reason = f"Cannot write {path}: {error.strerror or error}."
        raise RunError(reason) from error


@contextmanager
def atomic_file(path: str | Path) -> Iterator[IO[bytes]]:
    """A binary file that takes the name `path` only once it is complete and on disk; missing folders are made.

    Raises RunError when the disk is full or the folder not writable; the previous file then stays as it was.
    """
    path = Path(path)
    # Beside the target, since a rename is atomic only within one file system; never mkstemp, which ignores the umask.
    temporary = path.with_name(f".{path.name}.{os.getpid()}{TEMPORARY_SUFFIX}")
    with disk_errors(path):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with temporary.open("wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        except BaseException:
            if temporary.parent.is_dir():
                temporary.unlink(missing_ok=True)
            raise


def atomic_write_bytes(path: str | Path, data: bytes) -> None:
    """Write a whole file or nothing; raises RunError as `atomic_file` does."""
    with atomic_file(path) as file:
        file.write(data)


def atomic_write_text(path: str | Path, text: str) -> None:
    """Write a whole UTF-8 file or nothing; raises RunError as `atomic_file` does."""
    atomic_write_bytes(path, text.encode("utf-8"))


def file_sha256(path: str | Path) -> str:
    """SHA-256 of a file's bytes, in hex."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def folder_bytes(folder: Path) -> int:
    """Of all files below it. Another process may hold it still, so that temporary ones go meanwhile."""
    found = 0
    for place, _, names in os.walk(folder):
        for name in names:
            with suppress(FileNotFoundError):
                found += (Path(place) / name).stat().st_size
    return found


def free_bytes(path: Path) -> int:
    """Room on the disk that `path`, which need not exist, is or would be on."""
    existing = next(folder for folder in (path, *path.absolute().parents) if folder.exists())
    return shutil.disk_usage(existing).free
