"""Which positions a cache still holds: layer by KV head by position, at any round."""

from typing import Any

import numpy as np
import plotly.graph_objects as go

from workbench.errors import BadInput
from workbench.trace import Trace
from workbench.views.figure import blank, figure, ink
from workbench.views.palette import PALETTE, SEQUENTIAL
from workbench.views.slots import HOST, INTO, KEPT, STATES, Slots, last_round, replay

__all__ = ["cache_map"]

ROWS, COLUMNS = 48, 1024  # most rows and columns drawn one by one
WRITTEN, MARKED = 32, 96  # most columns whose cells carry their width in writing, and most that carry a mark
MARKS = {"absent": "", "evicted": "×", "merged away": "›", "host": "h", "merged into": "+", "kept": ""}


def cache_map(
    trace: Trace,
    round: int | None = None,
    layer: int | None = None,
    head: int | None = None,
    model: str = "target",
    theme: str | None = None,
) -> go.Figure:
    """What became of every cached position by the end of a round (default: the last).

    A row per layer and KV head (`layer` and `head` choose some), a column per position. A cell is kept, merged into,
    on the host (these are held: full colours), merged away or evicted (these are gone: pale). In a small map it also
    carries a mark, in a still smaller one its width in bits. Where there are too many rows or columns, a cell is the
    share of its slots still held: heads of a layer together, neighbouring positions together.

    Raises BadInput for a round, layer or head that is not there.
    """
    number = last_round(trace, round)
    slots = replay(trace, round, model)
    layers, heads = _rows(slots.state.shape[0], layer, "layer"), _rows(slots.state.shape[1], head, "head")
    slots = Slots(*(part[np.ix_(layers, heads)] for part in (slots.state, slots.bits_k, slots.bits_v)))
    whole = len(layers) * len(heads) <= ROWS and slots.state.shape[2] <= COLUMNS
    drawn, title = _each(slots, layers, heads, theme) if whole else _shares(slots, layers, heads)
    axes = {
        "xaxis": {"title": {"text": "position (tokens)"}},
        "yaxis": {"title": {"text": title}, "type": "category", "autorange": "reversed"},
        "showlegend": False,
    }
    counts = {name: int((slots.state == code).sum()) for code, name in enumerate(STATES) if code}
    known = ", ".join(f"{n} {name}" for name, n in counts.items() if n) or "nothing recorded"
    words = f"Cache of the {model} after round {number}, slots by state: {known}."
    notes = {} if drawn else {"annotations": [blank("no cache recorded")]}
    height = min(900, max(260, 130 + 16 * (len(drawn[0].y) if drawn else 0)))
    return figure("cache_map", trace.id, drawn, words, theme, height=height, **axes, **notes)


def _rows(n: int, chosen: int | None, name: str) -> list[int]:
    if chosen is None or n == 0:
        return list(range(n))
    if not 0 <= chosen < n:
        raise BadInput(f"{name} {chosen} is not in the cache; expected 0 to {n - 1}")
    return [chosen]


def _each(slots: Slots, layers: list[int], heads: list[int], theme: str | None) -> tuple[list[go.Heatmap], str]:
    """A row per layer and head, a cell per position."""
    rows, positions = len(layers) * len(heads), slots.state.shape[2]
    if not rows or not positions:
        return [], "layer · head"
    state = slots.state.reshape(rows, positions)
    k, v = (part.reshape(rows, positions) for part in (slots.bits_k, slots.bits_v))
    widths = positions <= WRITTEN
    mark = [[_mark(*cell, widths) for cell in zip(*row, strict=True)] for row in zip(state, k, v, strict=True)]
    facts = [[_fact(*cell) for cell in zip(*row, strict=True)] for row in zip(state, k, v, strict=True)]
    names = STATES[1:]
    common = {
        "x": list(range(positions)), "y": [f"{layer} · {head}" for layer in layers for head in heads], "zmin": 0.5,
        "zmax": len(names) + 0.5, "colorscale": _steps([_tint(name) for name in names]), "ygap": 1,
        "xgap": 1 if positions <= MARKED else 0,  # narrower cells would be all gap
        "text": mark, "texttemplate": "%{text}" if positions <= MARKED else None, "customdata": facts,
        "hovertemplate": "layer · head %{y}, position %{x}<br>%{customdata}<extra></extra>",
        "colorbar": {
            "title": {"text": "state"}, "tickvals": list(range(1, len(names) + 1)), "thickness": 14,
            "ticktext": [" ".join(filter(None, (MARKS[name], name))) for name in names],
        },
    }  # fmt: skip
    size = 10 if widths else 8
    parts = {"held": (state >= HOST, {"size": size}), "gone": (state < HOST, {"size": size, "color": ink(theme)})}
    drawn = [
        go.Heatmap(
            z=[[int(code) if code and shown else None for code, shown in zip(*row, strict=True)]
               for row in zip(state, mine, strict=True)],
            name=name, textfont=font, showscale=name == "held", **common,
        )
        for name, (mine, font) in parts.items()
    ]  # fmt: skip
    return drawn, "layer · head"


def _steps(colours: list[str]) -> list[list[Any]]:
    """A colour scale of equal steps."""
    n = len(colours)
    return [[edge / n, colour] for place, colour in enumerate(colours) for edge in (place, place + 1)]


def _tint(name: str) -> str:
    """The colour of a state; what is gone is pale."""
    red, green, blue = (int(PALETTE["slot"][name][place : place + 2], 16) for place in (1, 3, 5))
    return f"rgba({red},{green},{blue},{1 if STATES.index(name) >= HOST else 0.3})"


def _mark(code: int, k: float, v: float, widths: bool) -> str:
    if widths and code == KEPT and not np.isnan(k):
        return f"{k:g}" if k == v or np.isnan(v) else f"{k:g}/{v:g}"
    return MARKS[STATES[code]]


def _fact(code: int, k: float, v: float) -> str:
    widths = [f"{name} {width:g} bits" for name, width in (("keys", k), ("values", v)) if not np.isnan(width)]
    return ", ".join([STATES[code], *widths])


def _shares(slots: Slots, layers: list[int], heads: list[int]) -> tuple[list[go.Heatmap], str]:
    """A row per layer (per head where one layer was chosen), neighbouring positions together: the share still held."""
    by_head = len(layers) == 1 and len(heads) <= ROWS
    state = slots.state[0][:, None] if by_head else slots.state  # [rows, members, positions]
    step = -(-state.shape[2] // COLUMNS)
    starts = np.arange(0, state.shape[2], step)
    counts = {code: np.add.reduceat((state == code).sum(axis=1), starts, axis=1) for code in range(1, len(STATES))}
    known = sum(counts.values())
    held = sum(counts[code] for code in (HOST, INTO, KEPT))
    share = np.where(known > 0, held / np.maximum(known, 1), np.nan)
    facts = [
        [", ".join(f"{counts[c][i, j]} {STATES[c]}" for c in counts if counts[c][i, j]) for j in range(len(starts))]
        for i in range(len(share))
    ]
    heat = go.Heatmap(
        x=starts.tolist(), y=[str(row) for row in (heads if by_head else layers)],
        z=[[None if np.isnan(value) else float(value) for value in row] for row in share], zmin=0, zmax=1,
        colorscale=SEQUENTIAL, name="share of slots held",
        colorbar={"title": {"text": "share held"}, "tickformat": ".0%"}, customdata=facts,
        hovertemplate=f"%{{y}}, {step} positions from %{{x}}: %{{z:.0%}} held<br>%{{customdata}}<extra></extra>",
    )  # fmt: skip
    return [heat], f"head of layer {layers[0]}" if by_head else "layer"
