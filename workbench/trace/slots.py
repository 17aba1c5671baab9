"""What happened to the slots of a cache, as rows that a reader replays: `changes` for the browser, `replay` here."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np

from workbench.errors import BadInput
from workbench.trace import tables
from workbench.trace.columns import unpack_layers
from workbench.trace.trace import Trace

MOST = 60_000  # rows that are sent; a run with more has no map
DRAWN, CHANGES = 6_000_000, 3  # slots that are drawn, and how often each may change on the way
OPS = ("held", "evicted", "merged away", "merged into", "on the host", "width")
HELD, _EVICTED, _AWAY, _INTO, _HOST, WIDTH = range(len(OPS))
_OF_EVENT = {"evict": _EVICTED, "drop": _EVICTED, "merge": _AWAY, "offload": _HOST, "fetch": HELD}
STATES = ("absent", "evicted", "merged away", "host", "merged into", "kept")  # in this order: gone, then held
ABSENT, EVICTED, AWAY, HOST, INTO, KEPT = range(len(STATES))
_AFTER = (KEPT, EVICTED, AWAY, INTO, HOST)  # the state that an op leaves

Event = dict[str, Any]
# round, layer, head, start, length, op, and bits: of keys and of values, or the mean of both, or None
Row = tuple[int, int, int, int, int, int, Any]


@dataclass(frozen=True)
class Slots:
    """The cache of one model after one round.

    Attributes
    ----------
    state: [layers, heads, positions] index into `STATES`. `absent` was never cached, or the layer has no such head.
    bits_k, bits_v: [layers, heads, positions] widths in bits; NaN where nothing is held or no width is known.
    excess: why there are none, where more slots or changes of slots would not fit into memory.
    """

    state: np.ndarray
    bits_k: np.ndarray
    bits_v: np.ndarray
    excess: str = ""


def last_round(trace: Trace, round: int | None) -> int:
    """The round asked for, the last one for None (−1 before the first). Raises BadInput for one that is not there."""
    known = trace.rounds["round"]
    if round is None:
        return int(known.iloc[-1]) if len(known) else -1
    if round not in known.to_numpy():
        ends = f"; expected {known.iloc[0]} to {known.iloc[-1]}" if len(known) else ", which has none"
        raise BadInput(f"round {round} is not in the trace{ends}")
    return round


def changes(log: list[Event], before: Event | None = None) -> dict[str, list]:
    """Columns `round`, `layer`, `head`, `start`, `length`, `op`, `bits` of the target's cache in a log, in order.

    layer, head: −1 for all of them. start, length: positions. op: index into `OPS`, what the slots are from then on,
    but those that were evicted or merged away, which stay so; `width` changes nothing but `bits`, the mean width of
    keys and values. Positions that no row has named hold nothing.
    log: the run, then some of its events; before: the last round before those, None where they are all.
    Empty where there are more than `MOST` rows, or nothing is known.
    """
    rows: list[Row] = []
    for found in _rounds(log, "target", before):
        rows += found
        if len(rows) > MOST:
            return {}
    rows = [(*row, _mean(bits) if isinstance(bits, tuple) else bits) for *row, bits in rows]
    names = ("round", "layer", "head", "start", "length", "op", "bits")
    return dict(zip(names, map(list, zip(*rows, strict=True)), strict=True)) if rows else {}


def replay(trace: Trace, round: int | None = None, model: str = "target") -> Slots:
    """The cache of a model after a round (default: the last): commits, then the round's events in order, then widths.

    `evict` and `drop` remove the positions; `merge` folds them into those named as destination, which stay; `offload`
    moves them to the host, `fetch` back to the device; the others change widths or nothing that shows here.
    Widths come from the bits table, and from an event's `bits` (the mean of the two) where the table has no row.
    Raises BadInput for a round that is not in the trace.
    """
    rows, shape = _until(trace, last_round(trace, round), model)
    if excess := _excess(rows, shape):
        shape, rows = (0, 0, 0), []
    state, widths = np.full(shape, ABSENT, np.int8), np.full((2, *shape), np.nan)
    for _, layer, head, start, length, op, bits in rows:
        if layer >= shape[0] or head >= shape[1]:  # an event may name what there is not
            continue
        here = (_chosen(layer), _chosen(head), slice(start, start + length))
        now, width = state[here], widths[(slice(None), *here)]
        if op != WIDTH:
            now[(now >= HOST) | (now == (ABSENT if op == HELD else HOST))] = _AFTER[op]
        if isinstance(bits, tuple):
            for mine, known in zip(width, bits, strict=True):
                mine[...] = mine if known is None else known
        elif bits is not None:
            width[:, width.mean(axis=0) != bits] = bits
    if isinstance(heads := _heads(trace.log[0], model), list | tuple):
        for layer, most in zip(state, heads, strict=False):
            layer[most:] = ABSENT
    widths[:, state < HOST] = np.nan
    return Slots(state, *widths, excess)


def _excess(rows: list[Row], shape: tuple[int, int, int]) -> str:
    layers, heads, positions = shape
    slots = layers * heads * positions
    many = sum(row[4] * (layers if row[1] < 0 else 1) * (heads if row[2] < 0 else 1) for row in rows)
    return f"{slots:,} slots are too many to draw" if slots > DRAWN or many > CHANGES * DRAWN else ""


def _until(trace: Trace, number: int, model: str) -> tuple[list[Row], tuple[int, int, int]]:
    """The rows up to a round, and how many layers, heads and positions they name."""
    log = [event for event in trace.log if event.get("round", -1) <= number]
    rows = [*chain.from_iterable(_rounds(log, model))]
    facts, heads = tables.model(log[0], model), _heads(log[0], model)
    named = [row for row in rows if row[5] in (HELD, WIDTH)]
    if not named:
        return [], (0, 0, 0)
    layers = max(facts.get("layers") or 0, *(row[1] + 1 for row in named))
    most = max(heads) if isinstance(heads, list | tuple) else heads
    return rows, (layers, max(most, *(row[2] + 1 for row in named)), max(row[3] + row[4] for row in named))


def _heads(run: Event, model: str) -> Any:
    """KV heads: one number, or one of every layer."""
    return tables.model(run, model).get("kv_heads") or 1


def _chosen(number: int) -> Any:
    return slice(None) if number < 0 else number


def _rounds(log: list[Event], model: str, before: Event | None = None) -> Iterator[list[Row]]:
    """The rows of every round in a log, and then those of events behind the last one."""
    facts, heads = tables.model(log[0], model), _heads(log[0], model)
    everywhere = sum(heads) if isinstance(heads, list | tuple) else heads * (facts.get("layers") or 0)
    events: dict[int, list[Event]] = {}
    for event in log:
        ours = event["type"] == "cache" and (event.get("model") or "target") == model
        if ours and event.get("hypothesis") is None:
            events.setdefault(event["round"], []).append(event)
    held = {} if before is None else dict(enumerate(_committed(before, model, facts)))
    for event in log:
        if event["type"] == "round":
            after = _committed(event, model, facts)
            rows = _appended(event, model, after, held, facts)
            held |= dict(enumerate(after))
            rows += chain.from_iterable(map(_event, events.pop(event["round"], ())))
            yield rows + (_joined(_widths(event), everywhere) if model == "target" else [])
    yield [*chain.from_iterable(map(_event, chain.from_iterable(events.values())))]


def _committed(event: Event, model: str, facts: Event) -> list[int]:
    """Positions that every layer had committed after a round; empty where that is not known."""
    packed = (event.get("cache") or {}).get(model)
    lengths = unpack_layers(packed, facts)["logical_length"] if packed else [None]
    return [] if None in lengths else lengths


def _appended(event: Event, model: str, after: list[int], held: dict[int, int], facts: Event) -> list[Row]:
    """What a round committed: one row where that is the same in all layers."""
    nominal = unpack_layers(event["cache"][model], facts)["bits_nominal"] if after else []
    found = [
        (event["round"], layer, -1, held.get(layer, 0), end - held.get(layer, 0), HELD,
         facts.get("kv_bits", nominal[layer]))
        for layer, end in enumerate(after)
        if end > held.get(layer, 0)
    ]  # fmt: skip
    alike = len(found) == len(after) == facts.get("layers") and len({row[3:] for row in found}) == 1
    return [(event["round"], -1, *found[0][2:])] if alike else found


def _widths(event: Event) -> list[Row]:
    """The changes of width that a round names; those below 0 are of tensors of weights."""
    columns = event.get("bits") or {}
    count = len(columns.get("start", ()))
    names = ("layer", "head", "start", "length", "bits_k", "bits_v")
    rows = []
    for layer, head, start, length, *bits in zip(*(columns.get(n, [None] * count) for n in names), strict=True):
        if start >= 0:
            rows.append((event["round"], layer, head, start, length, WIDTH, tuple(bits)))
    return rows


def _mean(bits: tuple[float | None, ...]) -> float | None:
    known = [one for one in bits if one is not None]
    return sum(known) / len(known) if known else None


def _joined(rows: list[Row], everywhere: int) -> list[Row]:
    """Rows that are the same in every layer and head, of which there are `everywhere`, as one."""
    alike: dict[tuple, list[Row]] = {}
    for row in rows:
        alike.setdefault((row[0], *row[3:]), []).append(row)
    joined = []
    for (round, *rest), part in alike.items():
        joined += [(round, -1, -1, *rest)] if len({row[1:3] for row in part}) == everywhere else part
    return joined


def _event(event: Event) -> Iterator[Row]:
    """The rows of a cache event; one that moves or narrows nothing has none."""
    op, bits = event.get("op"), event.get("bits")
    state = _OF_EVENT.get(op, None if bits is None else WIDTH)
    where = (event["round"], *(-1 if event.get(name) is None else event[name] for name in ("layer", "head")))
    into = runs_of(event.get("destination")) if op == "merge" else []
    stay = {position for start, length in into for position in range(start, start + length)}
    if state is not None:  # what is merged into itself stays
        runs = _without(runs_of(event.get("positions")), stay)
        yield from ((*where, start, length, state, bits) for start, length in runs)
    yield from ((*where, start, length, _INTO, None) for start, length in into)


def _without(runs: list[tuple[int, int]], stay: set[int]) -> Iterator[tuple[int, int]]:
    for start, length in runs:
        places = range(start, start + length)
        yield from [(start, length)] if stay.isdisjoint(places) else ((at, 1) for at in places if at not in stay)


def runs_of(value: Any) -> list[tuple[int, int]]:
    """Positions as an event names them: one, a list of them, or runs [[start, length], …]; a name is none."""
    listed = value if isinstance(value, list | tuple) else [] if value is None or isinstance(value, str) else [value]
    runs = [tuple(one) if isinstance(one, list | tuple) else (one, 1) for one in listed]
    return [run for run in runs if run[0] >= 0]
