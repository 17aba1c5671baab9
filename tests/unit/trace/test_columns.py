"""What is written says nothing twice, and reads back as it was."""

import pytest

from workbench.errors import BadInput
from workbench.trace.columns import listed, pack_layers, unpack_layers


def test_columns_are_full_lists_and_those_without_values_left_out():
    columns = {"phase": ["draft", "target"], "rows": [1, 1], "wall_ms": [None, 0.123456], "model": [None, None]}
    assert listed("forwards", columns, []) == {"phase": ["draft", "target"], "rows": [1, 1], "wall_ms": [None, 0.1235]}
    assert listed("forwards", {}, []) == listed("forwards", {"phase": []}, []) == {}


def test_columns_of_unequal_length_or_without_their_key_are_refused():
    with pytest.raises(BadInput, match="'phase' is missing"):
        listed("forwards", {"rows": [1]}, [])
    with pytest.raises(BadInput, match=r"forwards\.rows: expected 1 values as in forwards\.phase, got 2"):
        listed("forwards", {"phase": ["draft"], "rows": [1, 2]}, [])


def test_layers_leave_out_what_is_usual_and_get_it_back():
    columns = {
        "live_slots": [7, 7], "logical_length": [7, 7], "payload": [64, 96], "scale": [0, 0], "evicted": [0, 0],
        "tier": ["device"] * 2, "simulated": [False] * 2, "bits_nominal": [16, 16],
    }  # fmt: skip
    facts = {"layers": 2, "kv_bits": 16}
    packed = pack_layers(columns, facts, "cache.target", [])
    assert packed == {"live_slots": 7, "payload": [64, 96]}
    assert {name: unpack_layers(packed, facts)[name] for name in columns} == columns


def test_layers_keep_what_is_not_usual():
    columns = {
        "live_slots": [7, 4], "logical_length": [7, 7], "payload": [64, 64], "evicted": [0, 3],
        "tier": ["device", "host"], "simulated": [True, True], "bits_nominal": [4, 2],
    }  # fmt: skip
    facts = {"layers": 2, "kv_bits": 16}
    again = unpack_layers(pack_layers(columns, facts, "cache.target", []), facts)
    assert {name: again[name] for name in columns} == columns
