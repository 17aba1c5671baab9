"""What happened to the slots of the target's cache, as rows that a reader replays: see `changes`."""

from collections.abc import Iterator
from typing import Any

from workbench.trace import tables
from workbench.trace.columns import unpack_layers

__all__ = ["EVICTED", "MOST", "OPS", "changes"]

MOST = 60_000  # rows that are sent; a run with more has no map
OPS = ("held", "evicted", "merged away", "merged into", "on the host", "width")
HELD, EVICTED, AWAY, INTO, HOST, WIDTH = range(len(OPS))
_STATE = {"evict": EVICTED, "drop": EVICTED, "offload": HOST, "fetch": HELD}
Event = dict[str, Any]
Row = tuple[int, int, int, int, int, int, float | None]  # round, layer, head, start, length, op, bits


def changes(log: list[Event], before: Event | None = None) -> dict[str, list]:
    """Columns `round`, `layer`, `head`, `start`, `length`, `op`, `bits` of the rounds in a log, in order.

    layer, head: −1 for all of them. start, length: positions. op: index into `OPS`, what the slots are from then on,
    but those that were evicted or merged away, which stay so; `width` changes nothing but `bits`, the mean width of
    keys and values. Positions that no row has named hold nothing.
    log: the run, then some of its events; before: the last round before those, None where they are all.
    Empty where there are more than `MOST` rows, or nothing is known.
    """
    facts = tables.model(log[0], "target")
    heads, layers = facts.get("kv_heads") or 0, facts.get("layers") or 0
    everywhere = sum(heads) if isinstance(heads, (list, tuple)) else heads * layers
    events: dict[int, list[Event]] = {}
    for event in log:
        if event["type"] == "cache" and event.get("model") in ("target", None) and event.get("hypothesis") is None:
            events.setdefault(event["round"], []).append(event)
    rows: list[Row] = []
    held = {} if before is None else dict(enumerate(_committed(before, facts)))
    for event in log:
        if event["type"] != "round":
            continue
        after, round = _committed(event, facts), event["round"]
        rows += _appended(round, after, held, event, facts)
        held |= dict(enumerate(after))
        rows += [made for change in events.pop(round, ()) for made in _event(change)]
        rows += _joined(_widths(event), everywhere)
        if len(rows) > MOST:
            return {}
    rows += [made for changed in events.values() for change in changed for made in _event(change)]
    names = ("round", "layer", "head", "start", "length", "op", "bits")
    return dict(zip(names, map(list, zip(*rows, strict=True)), strict=True)) if rows else {}


def _committed(event: Event, facts: dict[str, Any]) -> list[int]:
    """Positions that every layer of the target had committed after a round; empty where that is not known."""
    packed = (event.get("cache") or {}).get("target")
    lengths = unpack_layers(packed, facts)["logical_length"] if packed else [None]
    return [] if None in lengths else lengths


def _appended(round: int, after: list[int], held: dict[int, int], event: Event, facts: dict[str, Any]) -> list[Row]:
    """What a round committed: one row where that is the same in all layers."""
    if not after:
        return []
    nominal = unpack_layers(event["cache"]["target"], facts)["bits_nominal"]
    found = [
        (round, layer, -1, held.get(layer, 0), end - held.get(layer, 0), HELD, facts.get("kv_bits", nominal[layer]))
        for layer, end in enumerate(after)
        if end > held.get(layer, 0)
    ]
    alike = len(found) == len(after) and len({row[3:] for row in found}) == 1
    return [(round, -1, *found[0][2:])] if alike else found


def _widths(event: Event) -> list[Row]:
    """The changes of width that a round names; those below 0 are of tensors of weights."""
    columns = event.get("bits") or {}
    count = len(columns.get("start", ()))
    rows = []
    names = ("layer", "head", "start", "length", "bits_k", "bits_v")
    for layer, head, start, length, *known in zip(*(columns.get(n, [None] * count) for n in names), strict=True):
        known = [bits for bits in known if bits is not None]
        if start >= 0:
            rows.append((event["round"], layer, head, start, length, WIDTH, sum(known) / len(known) if known else None))
    return rows


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
    op, bits, into = event.get("op"), event.get("bits"), event.get("destination")
    state = AWAY if op == "merge" else _STATE.get(op or "", None if bits is None else WIDTH)
    where = (event["round"], _or_all(event.get("layer")), _or_all(event.get("head")))
    if state is not None:
        yield from ((*where, start, length, state, bits) for start, length in _runs(event.get("positions")))
    if op == "merge" and not isinstance(into, str):
        yield from ((*where, start, length, INTO, None) for start, length in _runs(into))


def _or_all(value: Any) -> int:
    return value if isinstance(value, int) else -1


def _runs(value: Any) -> list[tuple[int, int]]:
    """Positions as an event names them: one, a list of them, or runs [[start, length], …]."""
    listed = value if isinstance(value, (list, tuple)) else [] if value is None else [value]
    runs = [tuple(one) if isinstance(one, (list, tuple)) else (one, 1) for one in listed]
    return [run for run in runs if run[0] >= 0]
