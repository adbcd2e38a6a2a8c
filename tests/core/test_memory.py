"""The peak of a block is that of the block: not what came before it, and not only what is left at its end."""

import time

import pytest

from autoquant.core.memory import EVERY_SECONDS, watched_memory

LARGE_MIB = 128


def fill() -> bytearray:
    """Memory that is really there: untouched pages would not count."""
    return bytearray(b"x") * (LARGE_MIB * 2**20)


def test_what_is_gone_at_the_end_counts() -> None:
    with watched_memory() as small:
        pass
    with watched_memory() as large:
        held = fill()
        time.sleep(3 * EVERY_SECONDS)
        del held
    assert large.mib - small.mib == pytest.approx(LARGE_MIB, rel=0.2)


def test_what_was_before_does_not() -> None:
    held = fill()
    with watched_memory() as before:
        pass
    del held
    with watched_memory() as after:
        pass
    assert before.mib - after.mib == pytest.approx(LARGE_MIB, rel=0.2)


def test_watching_ends_with_an_error() -> None:
    with pytest.raises(ValueError, match="inside"), watched_memory() as peak:
        raise ValueError("inside")
    assert peak.mib > 1
