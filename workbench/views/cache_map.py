"""Which positions a cache still holds: layer by KV head by position, at any round."""

import numpy as np
import plotly.graph_objects as go

from workbench.errors import BadInput
from workbench.trace import Trace
from workbench.trace.slots import HOST, INTO, KEPT, STATES, Slots, last_round, replay
from workbench.views.figure import figure, offered
from workbench.views.palette import PALETTE, scale, tint
from workbench.views.words import named

ROWS, COLUMNS = 48, 1024  # most rows and columns drawn one by one
MARKED = 96  # most columns whose cells carry a mark
COUNT = np.uint8  # of the heads and positions in a cell, where they fit: figures are embedded in pages and notebooks
MARKS = {"merged away": "›", "merged into": "+", "host": "h"}


@offered("cache map", by_head=True)
def cache_map(
    trace: Trace,
    round: int | None = None,
    layer: int | None = None,
    head: int | None = None,
    model: str = "target",
    theme: str | None = None,
    by_head: bool = False,
) -> go.Figure:
    """What became of every cached position by the end of a round (default: the last).

    A row per layer and KV head (`layer` and `head` choose some), a column per position. A cell is kept, merged into,
    on the host (these are held: full colours), merged away or evicted (these are gone: pale); the hover text has its
    bits, and in a small map what was merged or moved carries a mark. In a map of several layers and many positions a
    cell is the share of its slots still held, the heads of a layer together, unless `by_head` asks for each; where
    there are too many even so, neighbouring positions are taken together, too.

    Raises BadInput for a round, layer or head that is not there.
    """
    number = last_round(trace, round)
    slots = replay(trace, round, model)
    layers, heads = _rows(slots.state.shape[0], layer, "layer"), _rows(slots.state.shape[1], head, "head")
    chosen = (part[np.ix_(layers, heads)] for part in (slots.state, slots.bits_k, slots.bits_v))
    slots = Slots(*chosen, slots.excess)
    positions, rows = slots.state.shape[2], len(layers) * len(heads)
    if rows > ROWS or positions > COLUMNS or (positions > MARKED and len(layers) > 1 and not by_head):
        drawn, title = _shares(slots, layers, heads)
    else:
        drawn, title = _states(slots, layers, heads)
    axes = {
        "xaxis": {"title": "position (tokens)"},
        "yaxis": {"title": title, "type": "category", "autorange": "reversed"},
    }
    counts = {name: int((slots.state == code).sum()) for code, name in enumerate(STATES) if code}
    known = ", ".join(f"{n} {named(name)}" for name, n in counts.items() if n) or slots.excess or "nothing recorded"
    words = f"Cache of the {model} after round {number}, slots by state: {known}."
    note = "" if drawn else slots.excess or "no cache recorded"
    height = min(900, max(260, 130 + 16 * (len(drawn[-1].y) if drawn else 0)))
    return figure("cache_map", trace.id, drawn, words, theme, note, height=height, **axes)


def _rows(n: int, chosen: int | None, name: str) -> list[int]:
    if chosen is None or n == 0:
        return list(range(n))
    if not 0 <= chosen < n:
        raise BadInput(f"{name} {chosen} is not in the cache; expected 0 to {n - 1}")
    return [chosen]


def _states(slots: Slots, layers: list[int], heads: list[int]) -> tuple[list[go.Heatmap], str]:
    """A row per layer and head, a cell per position: a map per state that occurs, in typed arrays."""
    rows, positions = len(layers) * len(heads), slots.state.shape[2]
    state = slots.state.reshape(rows, positions)
    widths = np.stack([slots.bits_k, slots.bits_v], -1).reshape(rows, positions, 2).astype(np.float32)
    small = positions <= MARKED
    drawn = []
    for code in np.unique(state[state > 0]):
        mine, name, about = state == code, named(STATES[code]), {}
        if not np.isnan(widths[mine]).any():
            facts = np.where(mine[..., None], widths, np.float32(0))
            facts = facts.astype(COUNT) if (facts % 1 == 0).all() else facts
            about = {"customdata": facts, "meta": ["bits of keys", "bits of values"]}
        bits = ", keys %{customdata[0]} bits, values %{customdata[1]} bits" if about else ""
        colour = tint(PALETTE["slot"][STATES[code]], 1 if code >= HOST else 0.3)
        drawn.append(
            go.Heatmap(
                x=np.arange(positions, dtype=np.int16), y=[f"{layer} · {head}" for layer in layers for head in heads],
                z=np.where(mine, code, np.nan).astype(np.float32), zmin=0, zmax=len(STATES), name=name,
                colorscale=[[0, colour], [1, colour]], showscale=False, showlegend=True, hoverongaps=False,
                xgap=int(small), ygap=1,  # a gap between narrow cells would be all there is
                texttemplate=MARKS.get(STATES[code]) if small else None, textfont={"size": 10},
                hovertemplate=f"layer · head %{{y}}, position %{{x}}<br>{name}{bits}<extra></extra>", **about,
            )
        )  # fmt: skip
    return drawn, "layer · head"


def _shares(slots: Slots, layers: list[int], heads: list[int]) -> tuple[list[go.Heatmap], str]:
    """A row per layer (per head where one layer was chosen), neighbouring positions together: the share still held."""
    by_head = len(layers) == 1 and len(heads) <= ROWS
    state = slots.state[0][:, None] if by_head else slots.state  # [rows, members, positions]
    step = -(-state.shape[2] // COLUMNS)
    starts = np.arange(0, state.shape[2], step)
    counts = {code: np.add.reduceat((state == code).sum(axis=1), starts, axis=1) for code in range(1, len(STATES))}
    known = sum(counts.values())
    held = sum(counts[code] for code in (HOST, INTO, KEPT))
    share = np.where(known > 0, held / np.maximum(known, 1), np.nan).astype(np.float32)
    present = [code for code in counts if counts[code].any()]
    facts = np.stack([counts[code] for code in present], -1)
    facts = facts.astype(COUNT if facts.max() <= np.iinfo(COUNT).max else np.int32)
    counted = ", ".join(f"%{{customdata[{place}]}} {named(STATES[code])}" for place, code in enumerate(present))
    where = "position %{x}" if step == 1 else f"{step} positions from %{{x}}"
    heat = go.Heatmap(
        x=starts.astype(np.int32), y=[str(row) for row in (heads if by_head else layers)], z=share, zmin=0, zmax=1,
        xgap=0, colorscale=scale(PALETTE["slot"]["kept"]), name="share of slots held",
        colorbar={"title": "share held", "tickformat": ".0%"}, customdata=facts,
        hovertemplate=f"%{{y}}, {where}: %{{z:.0%}} held<br>{counted}<extra></extra>",
    )  # fmt: skip
    return [heat], f"head of layer {layers[0]}" if by_head else "layer"
