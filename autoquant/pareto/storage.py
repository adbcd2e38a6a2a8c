"""Where does a study live? A SQLite file by default; any Optuna storage, so that several machines can share one."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import optuna
from optuna.exceptions import StorageInternalError
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend
from sqlalchemy import Engine, event
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, NoSuchModuleError, SQLAlchemyError

from autoquant.core.errors import RunError

SQLITE_PATIENCE = 60.0  # seconds that one process waits for another's write


def default_storage(folder: Path) -> str:
    """The SQLite file of a sweep in `folder`, as a URL."""
    path = str(folder.absolute() / "study.db")
    return "sqlite:///" + path.replace("%", "%25").replace("?", "%3F")  # else they would escape, and end the path


def without_password(storage: str) -> str:
    """A storage as it may be shown or written down."""
    return make_url(storage).render_as_string(hide_password=True) if "://" in storage else storage


def open_storage(storage: str) -> BaseStorage:
    """A database by its SQLAlchemy URL, or a journal file by its path. Raises RunError in one line if it cannot be had."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    logging.getLogger("sqlalchemy").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
    with storage_errors(storage):
        if "://" not in storage:
            Path(storage).absolute().parent.mkdir(parents=True, exist_ok=True)
            return JournalStorage(JournalFileBackend(storage))
        sqlite = storage.startswith("sqlite")
        if sqlite:
            Path(make_url(storage).database or ".").absolute().parent.mkdir(parents=True, exist_ok=True)
        # a server may drop connections that idle through a recovery of minutes
        engine = {"connect_args": {"timeout": SQLITE_PATIENCE}} if sqlite else {"pool_pre_ping": True}
        opened = RDBStorage(storage, engine_kwargs=engine)
        if sqlite:
            _lock_early(opened.engine)
        return opened


def _lock_early(engine: Engine) -> None:
    """Make every transaction take SQLite's write lock at its start.

    SQLite has no SELECT ... FOR UPDATE, which Optuna relies on for a waiting trial to go to one worker only: without this, two
    that look at the same moment both get it.
    """

    @event.listens_for(engine, "connect")
    def no_implicit_begin(connection: Any, record: Any) -> None:
        connection.isolation_level = None

    @event.listens_for(engine, "begin")
    def begin(connection: Any) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE")

    engine.dispose()  # connections from before the listeners


@contextmanager
def storage_errors(storage: str) -> Iterator[None]:
    """Turn what opening a storage and loading a study raise into one RunError line with the remedy; nothing else belongs inside,
    since a ValueError, ImportError or OSError of a trial would read as the storage's."""
    try:
        with database_errors(storage):
            yield
    except ImportError as error:
        raise RunError(f"No driver for {without_password(storage)}: pip install 'autoquant-bert[postgres]' or yours.") from error
    except (ArgumentError, NoSuchModuleError, ValueError) as error:
        raise RunError(
            f"'{storage.partition('://')[0]}://...' is no storage: give a URL such as postgresql://user@host/db or a file's path."
        ) from error
    except OSError as error:
        raise _unusable(storage, error) from error


@contextmanager
def database_errors(storage: str) -> Iterator[None]:
    """Turn what only a database raises, as when its server goes away, into one RunError line."""
    try:
        yield
    except (ArgumentError, NoSuchModuleError):  # of the URL: `storage_errors` knows better
        raise
    except (SQLAlchemyError, StorageInternalError) as error:
        raise _unusable(storage, error) from error


def _unusable(storage: str, error: Exception) -> RunError:
    reason = str(error).strip().partition("\n")[0][:160]
    return RunError(f"Cannot use the storage {without_password(storage)} ({reason}): is it there and writable?")
