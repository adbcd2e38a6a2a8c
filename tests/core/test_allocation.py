import dataclasses
import json

import pytest

from autoquant.core.allocation import BitAllocation
from autoquant.core.errors import CheckpointError
from autoquant.core.subgroup import Matrix, Partition

QUERY = Partition(Matrix("query", 3, 10, "query", 0), (0, 2, 4), (2, 1))
KEY = Partition(Matrix("key", 1, 30, "key", 0), (0, 2, 4), (1,))
ALLOCATION = BitAllocation({"query": (2, 0), "key": (4,)})


def test_bits_of_rows() -> None:
    assert ALLOCATION.row_bits(QUERY).tolist() == [2, 2, 0]


@pytest.mark.parametrize("removed", [(), ("0.head.1",)])
def test_json_round_trip(removed: tuple[str, ...]) -> None:
    allocation = dataclasses.replace(ALLOCATION, removed=removed)
    assert BitAllocation.from_json(json.loads(json.dumps(allocation.to_json()))) == allocation


def test_check_fits() -> None:
    ALLOCATION.check_fits([QUERY, KEY])
    with pytest.raises(CheckpointError, match="1 matrices differ, first key"):
        ALLOCATION.check_fits([QUERY])
    with pytest.raises(CheckpointError, match="3 sub-groups for query, the space cuts it into 2"):
        BitAllocation({"query": (2, 0, 2), "key": (4,)}).check_fits([QUERY, KEY])
    with pytest.raises(CheckpointError, match="gives query 3 bits, the space allows 0, 2, 4"):
        BitAllocation({"query": (2, 3), "key": (4,)}).check_fits([QUERY, KEY])
