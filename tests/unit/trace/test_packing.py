"""What is written is compact and reads back as it was."""

import random

import pytest

from workbench.trace.packing import pack, pack_layers, unpack, unpack_layers


@pytest.mark.parametrize("seed", range(20))
def test_packed_columns_read_back_equal(seed):
    draw = random.Random(seed)
    n = draw.randrange(1, 9)
    columns = {
        "phase": [draw.choice(["draft", "target"]) for _ in range(n)],
        "model": ["draft"] * n,
        "rows": [draw.randrange(3) for _ in range(n)],
        "wall_ms": [draw.choice([None, 0.5, 1.25]) for _ in range(n)],
    }
    packed = pack("forwards", columns, [])
    again = unpack("forwards", packed)
    if "wall_ms" not in again:  # a column without values is left out
        assert columns.pop("wall_ms") == [None] * n
    assert again == columns


def test_a_chain_leaves_its_parents_out_and_a_tree_keeps_them():
    chain = {"node": [1, 2, 3], "parent": [0, 1, 2], "depth": [1, 2, 3], "q": [0.5, 0.25, 0.5]}
    packed = pack("drafts", chain, [])
    assert "parent" not in packed and unpack("drafts", packed) == chain
    tree = {"node": [1, 2, 3], "parent": [0, 0, 1], "depth": [1, 1, 2]}
    assert unpack("drafts", pack("drafts", tree, [])) == tree


def test_runs_hold_a_column_once_per_run_and_others_in_full():
    columns = {"phase": ["draft", "draft", "target"], "rows": [1, 1, 5], "wall_ms": [0.1, 0.2, 4.0], "model": ["a"] * 3}
    assert pack("forwards", columns, []) == {
        "runs": [2, 1], "phase": ["draft", "target"], "rows": [1, 5], "wall_ms": [0.1, 0.2, 4.0], "model": "a",
    }  # fmt: skip


def test_ids_and_texts_of_tokens_are_always_full_lists():
    columns = {"token_id": [5, 5], "text": [" ", " "], "source": ["target"] * 2}
    assert pack("tokens", columns, []) == {**columns, "source": "target"}
    assert pack("drafts", {"node": [1, 2], "text": [None, None]}, []) == {"node": [1, 2]}


def test_topk_cells_are_never_taken_for_constants():
    pair = [[1, 2], [0.75, 0.25]]
    columns = {"token_id": [1, 2], "topk_raw": [pair, pair]}
    assert unpack("tokens", pack("tokens", columns, [])) == columns


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
