"""What a cache holds at a given round, by replaying the trace: every position of every layer and KV head."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from workbench.errors import BadInput
from workbench.trace import Trace
from workbench.trace.forms import run_length

__all__ = ["STATES", "Slots", "last_round", "places", "replay", "too_many"]

MOST, CHANGES = 6_000_000, 3  # slots that are drawn, and how often each may change on the way

STATES = ("absent", "evicted", "merged away", "host", "merged into", "kept")  # in this order: gone, then held
ABSENT, EVICTED, AWAY, HOST, INTO, KEPT = range(len(STATES))


@dataclass(frozen=True)
class Slots:
    """The cache of one model after one round.

    Attributes
    ----------
    state: [layers, heads, positions] index into `STATES`. `absent` was never cached, or the layer has no such head.
    bits_k, bits_v: [layers, heads, positions] widths in bits; NaN where nothing is held or no width is known.
    """

    state: np.ndarray
    bits_k: np.ndarray
    bits_v: np.ndarray


def last_round(trace: Trace, round: int | None) -> int:
    """The round asked for, the last one for None (−1 before the first). Raises BadInput for one that is not there."""
    known = trace.rounds["round"]
    if round is None:
        return int(known.iloc[-1]) if len(known) else -1
    if round not in known.to_numpy():
        ends = f"; expected {known.iloc[0]} to {known.iloc[-1]}" if len(known) else ", which has none"
        raise BadInput(f"round {round} is not in the trace{ends}")
    return round


def places(value: Any) -> np.ndarray:
    """Positions as an event names them: one number, a list of numbers, or runs `[[start, length], …]`."""
    if value is None:
        return np.empty(0, dtype=np.int64)
    if not isinstance(value, (list, tuple)):
        return np.array([value], dtype=np.int64)
    parts = [np.arange(p[0], p[0] + p[1]) if isinstance(p, (list, tuple)) else np.array([p]) for p in value]
    return np.concatenate(parts).astype(np.int64) if parts else np.empty(0, dtype=np.int64)


def too_many(trace: Trace, round: int | None = None, model: str = "target") -> str:
    """What a drawing says in place of more slots, or more changes of slots, than fit into memory; else nothing."""
    bits = _until(trace, last_round(trace, round), model)
    if bits.empty:
        return ""
    layers, heads, positions = map(int, _shape(bits))
    slots, changes = layers * heads * positions, bits["length"].sum()
    for event in trace.log:
        if event["type"] == "cache":
            everywhere = event.get("layer") is None or event.get("head") is None
            changes += run_length(event.get("positions"), "") * (layers * heads if everywhere else 1)
    return f"{slots:,} slots are too many to draw" if slots > MOST or changes > CHANGES * MOST else ""


def _until(trace: Trace, number: int, model: str) -> pd.DataFrame:
    bits = trace.bits
    return bits[(bits["model"] == model) & (bits["round"] <= number) & (bits["start"] >= 0)]


def _shape(bits: pd.DataFrame) -> tuple[int, int, int]:
    return bits["layer"].max() + 1, bits["head"].max() + 1, (bits["start"] + bits["length"]).max()


def replay(trace: Trace, round: int | None = None, model: str = "target") -> Slots:
    """The cache of a model after a round (default: the last): commits, then the round's events in order, then widths.

    `evict` and `drop` remove the positions; `merge` folds them into those named as destination, which stay; `offload`
    moves them to the host, `fetch` back to the device; the others change widths or nothing that shows here.
    Widths come from the bits table, and from an event's `bits` (the mean of the two) where the table has no row.
    Raises BadInput for a round that is not in the trace.
    """
    until = last_round(trace, round)
    bits = _until(trace, until, model)
    if bits.empty or too_many(trace, round, model):
        none = np.zeros((0, 0, 0))
        return Slots(none.astype(np.int8), none, none)
    shape = _shape(bits)
    state = np.full(shape, ABSENT, dtype=np.int8)
    widths = {name: np.full(shape, np.nan) for name in ("bits_k", "bits_v")}
    events = _by_round(trace, model, until)
    changed = dict(iter(bits.groupby("round")))
    for number in sorted({*changed, *events}):
        now = changed.get(number, bits.iloc[:0])
        appended = now["reason"] == "append"
        _write(now[appended], state, widths)
        for event in events.get(number, ()):
            _apply(event, state, widths)
        _write(now[~appended], state, widths)
    gone = state < HOST
    for width in widths.values():
        width[gone] = np.nan
    return Slots(state, **widths)


def _by_round(trace: Trace, model: str, until: int) -> dict[int, list[dict]]:
    found: dict[int, list[dict]] = {}
    for event in trace.log:
        if event["type"] == "cache" and event["round"] <= until and event.get("model", "target") == model:
            found.setdefault(event["round"], []).append(event)
    return found


def _write(rows: Any, state: np.ndarray, widths: dict[str, np.ndarray]) -> None:
    """Rows of the bits table: their widths; a position never seen before is kept from now on."""
    columns = (rows[name] for name in ("layer", "head", "start", "length", "bits_k", "bits_v"))
    for layer, head, start, length, k, v in zip(*columns, strict=True):
        here = (layer, head, slice(start, start + length))
        state[here][state[here] == ABSENT] = KEPT
        for name, width in (("bits_k", k), ("bits_v", v)):
            if not np.isnan(width):
                widths[name][here] = width


def _apply(event: dict, state: np.ndarray, widths: dict[str, np.ndarray]) -> None:
    layers, heads, positions = state.shape
    touched = places(event.get("positions"))
    touched = touched[(touched >= 0) & (touched < positions)]
    here = np.ix_(_chosen(event.get("layer"), layers), _chosen(event.get("head"), heads), touched)
    op, to = event.get("op"), event.get("destination")
    if op in ("evict", "drop"):
        _set(state, here, EVICTED)
    elif op == "merge":
        into = places(to if isinstance(to, (int, list, tuple)) else None)
        into = into[(into >= 0) & (into < positions)]
        _set(state, (here[0], here[1], np.setdiff1d(touched, into)[None, None, :]), AWAY)
        _set(state, (here[0], here[1], into[None, None, :]), INTO)
    elif op in ("offload", "fetch"):
        _set(state, here, HOST if op == "offload" else KEPT)
    if event.get("bits") is not None:
        same = (widths["bits_k"][here] + widths["bits_v"][here]) / 2 == event["bits"]  # an event names their mean
        for width in widths.values():
            width[here] = np.where(same, width[here], event["bits"])


def _set(state: np.ndarray, here: tuple, value: int) -> None:
    """The new state of what is held; what is gone stays gone."""
    state[here] = np.where(state[here] >= HOST, value, state[here])


def _chosen(which: Any, n: int) -> np.ndarray:
    """All of them where an event names none."""
    return np.arange(n) if which is None else places(which)[places(which) < n]
