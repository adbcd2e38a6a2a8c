"""The recipe that cells share, whatever becomes of the default one: so that those of another day stand in one table."""

from pathlib import Path

PINNED = str(Path(__file__).with_name("heads.toml"))
