import json

import pytest

from autoquant.core.allocation import BitAllocation
from autoquant.core.errors import CheckpointError
from autoquant.core.subgroup import Matrix, Partition

QUERY = Partition(Matrix("query", 3, 10, "query", 0), (0, 2, 4), (2, 1))
KEY = Partition(Matrix("key", 1, 30, "key", 0), (0, 2, 4), (1,))
ALLOCATION = BitAllocation({"query": (2, 0), "key": (4,)})


def test_bits_of_rows_and_their_mean() -> None:
    assert ALLOCATION.row_bits(QUERY).tolist() == [2, 2, 0]
    # (2 + 2 + 0) * 10 + 4 * 30 code bits over 60 weights
    assert ALLOCATION.mean_bits([QUERY, KEY]) == pytest.approx(160 / 60)


def test_share_different() -> None:
    assert ALLOCATION.share_different(ALLOCATION) == 0
    assert ALLOCATION.share_different(BitAllocation({"query": (4, 0), "key": (2,)})) == pytest.approx(2 / 3)


def test_json_round_trip() -> None:
    assert BitAllocation.from_json(json.loads(json.dumps(ALLOCATION.to_json()))) == ALLOCATION


def test_check_fits() -> None:
    ALLOCATION.check_fits([QUERY, KEY])
    with pytest.raises(CheckpointError, match="1 matrices differ, first key"):
        ALLOCATION.check_fits([QUERY])
    with pytest.raises(CheckpointError, match="3 sub-groups for query, the space cuts it into 2"):
        BitAllocation({"query": (2, 0, 2), "key": (4,)}).check_fits([QUERY, KEY])
