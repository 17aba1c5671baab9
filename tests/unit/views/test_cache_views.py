"""Replay of the cache: what the events say is held is what the ledger counted, and the maps draw just that."""

import random

import numpy as np
import pytest

from workbench import views
from workbench.errors import BadInput
from workbench.trace import Recorder, Step
from workbench.trace.slots import HOST, OPS, STATES, Slots, changes, replay, runs_of

LAYERS, HEADS = 3, 2


def run(heads: int = HEADS, layers: int = LAYERS, **more) -> dict:
    facts = {"role": "target", "layers": layers, "kv_heads": heads, "head_dim": 4, "kv_bits": 16}
    return {"id": "made-up", "models": [facts], "prompt_ids": [1, 2, 3], **more}


def ledger(live: list[int], logical: int, tier: str = "device", heads: int = HEADS) -> dict:
    """Columns over layers of a 16-bit cache: 16 bytes per slot and head."""
    return {
        "live_slots": live, "logical_length": [logical] * len(live), "payload": [16 * heads * n for n in live],
        "scale": [2 * n for n in live], "tier": [tier] * len(live), "bits_nominal": [16.0] * len(live),
    }  # fmt: skip


def live(slots: Slots) -> np.ndarray:
    """[layers, heads]: number of slots held, as the ledger's `live_slots` counts them."""
    return (slots.state >= HOST).sum(axis=2)


def as_runs(positions: list[int]) -> list[list[int]]:
    found: list[list[int]] = []
    for place in positions:
        if found and sum(found[-1]) == place:
            found[-1][1] += 1
        else:
            found.append([place, 1])
    return found


def random_run(seed: int, runs: bool, recorder=None):
    """A model cache kept as plain sets beside the trace: the oracle of the replay."""
    draw = random.Random(seed)
    recorder = Recorder(run())
    held = [set(range(4)) for _ in range(LAYERS)]
    recorder.round(Step("prefill", cache={"target": ledger([4] * LAYERS, 4)}))
    for length in range(6, 22, 2):
        step = Step("plain")
        for layer, mine in enumerate(held):
            mine |= {length - 2, length - 1}
            chosen = sorted(draw.sample(sorted(mine), min(len(mine) - 1, draw.randrange(4))))
            if not chosen:
                continue
            op = draw.choice(["evict", "drop", "merge", "offload", "fetch", "requantize", "quantize", "share"])
            event = {"op": op, "layer": layer, "positions": as_runs(chosen) if runs else chosen}
            if op in ("evict", "drop"):
                mine -= set(chosen)
            elif op == "merge":
                event["destination"] = min(mine - set(chosen))
                mine -= set(chosen)
            elif op == "offload":
                event["destination"] = "host"
            step.cache_events.append(event)
        step.cache = {"target": ledger([len(mine) for mine in held], length)}
        recorder.round(step)
    return recorder.trace, held


@pytest.mark.parametrize("runs", [False, True], ids=["positions", "runs"])
@pytest.mark.parametrize("seed", range(4))
def test_replaying_all_events_gives_the_slots_of_the_ledger(seed, runs):
    trace, held = random_run(seed, runs)
    for number in trace.rounds["round"]:
        counted = trace.cache[trace.cache["round"] == number]["live_slots"].to_numpy()
        assert (live(replay(trace, number)) == counted[:, None]).all()
    slots = replay(trace)
    for layer, mine in enumerate(held):
        for head in range(HEADS):
            assert set(np.flatnonzero(slots.state[layer, head] >= HOST)) == mine


def test_a_lost_event_is_noticed():
    """The property above is no tautology: without one eviction, replay and ledger disagree."""
    trace, _ = random_run(1, runs=True)
    lost = next(i for i, event in enumerate(trace.log) if event.get("op") in ("evict", "drop"))
    number = trace.log[lost]["round"]
    del trace.log[lost]
    counted = trace.cache[trace.cache["round"] == number]["live_slots"].to_numpy()
    assert (live(replay(trace, number)) != counted[:, None]).any()


@pytest.mark.parametrize(
    ("written", "found"),
    [(None, []), (3, [3]), ([], []), ([4, 2], [4, 2]), ([[2, 3]], [2, 3, 4]), ([[0, 2], [5, 1]], [0, 1, 5])],
)
def test_positions_may_be_a_number_a_list_or_runs(written, found):
    assert [place for start, length in runs_of(written) for place in range(start, start + length)] == found


@pytest.mark.parametrize(("positions", "destination"), [([1, 2], 2), ([[1, 2]], [2, 4]), ([[0, 3]], [[1, 2]])])
def test_what_is_merged_into_itself_stays(positions, destination):
    """The map of the app once lost it, that of a notebook did not."""
    recorder = Recorder(run(heads=1, layers=1))
    event = {"op": "merge", "layer": 0, "positions": positions, "destination": destination}
    recorder.round(Step("prefill", cache={"target": ledger([4], 6, heads=1)}, cache_events=[event]))
    state, rows = replay(recorder.trace).state[0, 0], changes(recorder.trace.log)
    into = {place for start, length in runs_of(destination) for place in range(start, start + length)}
    assert into == {*np.flatnonzero(state == STATES.index("merged into"))}
    away = OPS.index("merged away")
    runs = zip(rows["start"], rows["length"], rows["op"], strict=True)
    assert not any({*range(start, start + length)} & into for start, length, op in runs if op == away)


def test_heads_that_a_layer_has_not_and_layers_that_are_not_there_hold_nothing():
    recorder = Recorder(run(heads=[2, 1], layers=2))
    event = {"op": "evict", "layer": 5, "positions": [0]}
    recorder.round(Step("prefill", cache={"target": ledger([3, 3], 3)}, cache_events=[event]))
    assert (replay(recorder.trace).state > 0).sum(axis=2).tolist() == [[3, 3], [3, 0]]


@pytest.fixture
def small():
    recorder = Recorder(run(heads=2, layers=2))
    recorder.round(Step("prefill", cache={"target": ledger([4, 4], 4)}))
    step = Step("plain", cache={"target": ledger([3, 3], 5)})
    step.bits = {"layer": [1, 1], "head": [0, 1], "start": [0, 0], "length": [2, 2], "bits_k": [4, 4], "bits_v": [2, 2]}
    step.cache_events = [
        {"op": "evict", "layer": 0, "positions": [1]},
        {"op": "evict", "layer": 1, "head": 0, "positions": [[0, 1], [3, 1]]},
        {"op": "merge", "layer": 0, "head": 1, "positions": [2], "destination": 3},
        {"op": "offload", "layer": 1, "head": 1, "positions": [[2, 2]], "destination": "host"},
        {"op": "evict", "layer": 0, "positions": [0], "model": "draft"},
    ]
    recorder.round(step)
    return recorder.trace


def states(figure) -> list[list[str]]:
    """The name of every cell's state, empty where nothing is drawn; each cell is drawn once."""
    rows = [["" for _ in row] for row in figure.data[0].z]
    for heat in figure.data:
        for row, values in enumerate(heat.z):
            for column, value in enumerate(values):
                if not np.isnan(value):
                    assert not rows[row][column] and value == STATES.index(heat.name.removeprefix("on the "))
                    rows[row][column] = heat.name
    return rows


def test_the_map_draws_every_state_and_numbers_are_in_the_hover_text_alone(small):
    figure = views.cache_map(small)
    drawn = {heat.name: heat for heat in figure.data}
    assert drawn["kept"].y == ("0 · 0", "0 · 1", "1 · 0", "1 · 1")
    kept, host = "kept", "on the host"
    assert states(figure) == [
        [kept, "evicted", kept, kept, kept], [kept, "evicted", "merged away", "merged into", kept],
        ["evicted", kept, kept, "evicted", kept], [kept, kept, host, host, kept],
    ]  # fmt: skip
    assert {name: heat.texttemplate for name, heat in drawn.items()} == {
        "evicted": None, "kept": None, "merged away": "›", "merged into": "+", host: "h",
    }  # fmt: skip
    held = drawn["kept"]
    assert list(held.customdata[3][0]) == [4, 2] and "keys %{customdata[0]} bits" in held.hovertemplate
    table = views.as_table(figure)
    row = table[(table["layer · head"] == "1 · 1") & (table["position (tokens)"] == 0)].iloc[0]
    assert (row["series"], row["bits of keys"], row["bits of values"]) == ("kept", 4, 2)
    assert "4 evicted" in views.description(figure) and "2 on the host" in views.description(figure)


def test_the_legend_of_the_map_lists_the_states_that_occur(small):
    for number, names in ((0, ["kept"]), (1, ["evicted", "merged away", "on the host", "merged into", "kept"])):
        drawn = views.cache_map(small, round=number).data
        assert [heat.name for heat in drawn if heat.showlegend] == names
        assert not any(heat.showscale for heat in drawn)


def test_the_map_follows_the_round_and_chooses_layers_and_heads(small):
    assert {name for row in states(views.cache_map(small, round=0)) for name in row} == {"kept"}
    assert views.cache_map(small, layer=1, head=0).data[0].y == ("1 · 0",)
    for wrong in ({"layer": 2}, {"head": 2}, {"round": 2}, {"layer": -1}):
        with pytest.raises(BadInput, match="expected 0 to 1"):
            views.cache_map(small, **wrong)


def test_a_requantized_page_keeps_its_two_widths():
    """An event names the mean of the two widths; where that is the mean already, neither changes."""
    recorder = Recorder(run(heads=1, layers=1))
    step = Step("prefill", cache={"target": ledger([4], 4, heads=1)})
    step.bits = {"layer": [0], "head": [0], "start": [0], "length": [2], "bits_k": [2], "bits_v": [4]}
    recorder.round(step)
    event = {"op": "requantize", "layer": 0, "positions": [[0, 3]], "bits": 3}
    recorder.round(Step("plain", cache={"target": ledger([4], 4, heads=1)}, cache_events=[event]))
    slots = replay(recorder.trace)
    assert slots.bits_k[0, 0].tolist() == [2, 2, 3, 16] and slots.bits_v[0, 0].tolist() == [4, 4, 3, 16]


def test_narrow_cells_have_no_gaps_between_them():
    """With a gap of a pixel, hundreds of positions once drew nothing at all."""
    gaps = []
    for positions in (20, 500):
        recorder = Recorder(run())
        recorder.round(Step("prefill", cache={"target": ledger([positions] * LAYERS, positions)}))
        gaps.append({heat.xgap for heat in views.cache_map(recorder.trace).data})
    assert gaps == [{1}, {0}]


def test_many_heads_and_positions_become_shares():
    layers, heads, positions = 8, 8, 2000
    recorder = Recorder(run(heads=heads, layers=layers))
    event = {"op": "evict", "head": 0, "positions": [[0, 1000]]}
    cache = {"target": ledger([positions] * layers, positions, heads=heads)}
    recorder.round(Step("prefill", cache=cache, cache_events=[event]))
    (heat,) = views.cache_map(recorder.trace).data
    assert len(heat.x) == 1000 and len(heat.y) == layers and (heat.zmin, heat.zmax) == (0, 1)
    assert set(heat.z[3][:500]) == {7 / 8} and set(heat.z[3][500:]) == {1}
    assert heat.customdata[0][0].tolist() == [2, 14]
    assert "%{customdata[0]} evicted, %{customdata[1]} kept" in heat.hovertemplate
    (heat,) = views.cache_map(recorder.trace, layer=2).data
    assert len(heat.y) == heads and set(heat.z[0][:500]) == {0}


def test_a_large_map_is_small_to_embed_and_shows_heads_where_asked():
    """Texts per cell once made the map of a whole model more than a megabyte."""
    layers, heads, positions = 6, 4, 600
    recorder = Recorder(run(heads=heads, layers=layers))
    events = [{"op": "evict", "head": 0, "positions": [[0, 100]]}, {"op": "offload", "positions": 599, "bits": 16}]
    events[1]["destination"] = "host"
    cache = {"target": ledger([positions] * layers, positions, heads=heads)}
    recorder.round(Step("prefill", cache=cache, cache_events=events))
    (shares,) = views.cache_map(recorder.trace).data
    assert len(shares.y) == layers and len(views.cache_map(recorder.trace).to_json()) < 60_000
    for asked, rows in (({"by_head": True}, layers * heads), ({"layer": 2}, heads)):
        figure = views.cache_map(recorder.trace, **asked)
        drawn = {heat.name: heat for heat in figure.data}
        assert list(drawn) == ["evicted", "on the host", "kept"] and all(len(heat.y) == rows for heat in drawn.values())
        cells = {name: (~np.isnan(heat.z)).sum() for name, heat in drawn.items()}
        assert cells == {"evicted": 100 * layers if rows > heads else 100, "on the host": rows,
                         "kept": rows * (positions - 1) - cells["evicted"]}  # fmt: skip
        assert drawn["kept"].customdata[-1][50].tolist() == [16, 16] and "keys" in drawn["kept"].hovertemplate
        assert len(figure.to_json()) < 12 * len(drawn) * rows * positions and len(views.as_table(figure)) == sum(
            cells.values()
        )


def test_the_bit_map_shows_keys_and_values_where_they_are_held(small):
    keys, values = views.bit_map(small).data
    assert [list(row) for row in keys.z] == [[16, None, 16, 16, 16], [4, 4, 16, 16, 16]]
    assert [list(row) for row in values.z][1] == [2, 2, 16, 16, 16]
    assert keys.zmax == values.zmax == 16 and keys.colorscale == values.colorscale
    assert {value for row in views.bit_map(small, 0).data[0].z for value in row} == {16}
    assert views.bit_map(small, model="draft").layout.annotations[0].text == "no bits recorded"
    table = views.as_table(views.bit_map(small))
    assert table["bits"].sum() == sum(v or 0 for heat in (keys, values) for row in heat.z for v in row)


def test_the_ledger_stacks_kinds_and_knows_tiers_and_the_plain_cache():
    recorder = Recorder(run())
    recorder.round(Step("prefill", cache={"target": ledger([4] * LAYERS, 4)}))
    recorder.round(Step("plain", cache={"target": ledger([2] * LAYERS, 6, tier="host")}))
    trace = recorder.trace
    figure = views.ledger_over_time(trace)
    lines = {line.name: line for line in figure.data}
    assert set(lines) == {"payload", "scale", "on the device", "full cache"}
    both = [lines["payload"].y[i] + lines["scale"].y[i] for i in range(2)]
    assert both == (trace.rounds["cache_bytes"] + trace.rounds["host_bytes"]).tolist()
    assert list(lines["on the device"].y) == trace.rounds["cache_bytes"].tolist() and lines["on the device"].y[1] == 0
    assert list(lines["full cache"].y) == [n * LAYERS * HEADS * 2 * 4 * 16 / 8 for n in (4, 6)]
    assert lines["payload"].stackgroup and not lines["full cache"].stackgroup
    assert "on the host" in views.description(figure)


def test_without_shapes_there_is_no_reference_line():
    recorder = Recorder({"id": "made-up", "models": [{"role": "target"}]})
    recorder.round(Step("prefill", cache={"target": ledger([4], 4)}))
    assert "full cache" not in {line.name for line in views.ledger_over_time(recorder.trace).data}
