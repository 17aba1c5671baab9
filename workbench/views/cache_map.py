"""Which positions a cache still holds: layer by KV head by position, at any round."""

from typing import Any

import numpy as np
import plotly.graph_objects as go

from workbench.errors import BadInput
from workbench.trace import Trace
from workbench.views.figure import figure, ink, offered
from workbench.views.palette import PALETTE, SEQUENTIAL
from workbench.views.slots import HOST, INTO, KEPT, STATES, Slots, last_round, replay, too_many

__all__ = ["cache_map"]

ROWS, COLUMNS = 48, 1024  # most rows and columns drawn one by one
WRITTEN, MARKED = 32, 96  # most columns whose cells carry their width in writing, and most that carry a mark
COUNT = np.uint8  # of the heads and positions in a cell, where they fit: figures are embedded in pages and notebooks
MARKS = {"absent": "", "evicted": "×", "merged away": "›", "host": "h", "merged into": "+", "kept": ""}


@offered("cache map and ledger", by_head=True)
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
    on the host (these are held: full colours), merged away or evicted (these are gone: pale). In a small map it also
    carries a mark, in a still smaller one its width in bits. In a map of several layers and many positions a cell is
    the share of its slots still held, the heads of a layer together, unless `by_head` asks for each; where there are
    too many even so, neighbouring positions are taken together, too.

    Raises BadInput for a round, layer or head that is not there.
    """
    number = last_round(trace, round)
    slots = replay(trace, round, model)
    layers, heads = _rows(slots.state.shape[0], layer, "layer"), _rows(slots.state.shape[1], head, "head")
    slots = Slots(*(part[np.ix_(layers, heads)] for part in (slots.state, slots.bits_k, slots.bits_v)))
    positions, rows = slots.state.shape[2], len(layers) * len(heads)
    if rows > ROWS or positions > COLUMNS or (positions > MARKED and len(layers) > 1 and not by_head):
        drawn, title = _shares(slots, layers, heads)
    elif positions > MARKED:
        drawn, title = _states(slots, layers, heads)
    else:
        drawn, title = _each(slots, layers, heads, theme)
    axes = {
        "xaxis": {"title": "position (tokens)"},
        "yaxis": {"title": title, "type": "category", "autorange": "reversed"},
        "showlegend": False,
    }
    counts = {name: int((slots.state == code).sum()) for code, name in enumerate(STATES) if code}
    many = too_many(trace, round, model)
    known = ", ".join(f"{n} {name}" for name, n in counts.items() if n) or many or "nothing recorded"
    words = f"Cache of the {model} after round {number}, slots by state: {known}."
    note = "" if drawn else many or "no cache recorded"
    height = min(900, max(260, 130 + 16 * (len(drawn[-1].y) if drawn else 0)))
    return figure("cache_map", trace.id, drawn, words, theme, note, height=height, **axes)


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
    common = {
        **_common(positions, layers, heads, MARKS), "xgap": 1, "text": mark, "texttemplate": "%{text}",
        "customdata": facts, "hovertemplate": "layer · head %{y}, position %{x}<br>%{customdata}<extra></extra>",
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


def _states(slots: Slots, layers: list[int], heads: list[int]) -> tuple[list[go.Heatmap], str]:
    """The same for many positions: a layer per state that occurs, in typed arrays, with its name where one points."""
    state = slots.state.reshape(len(layers) * len(heads), -1)
    widths = np.stack([slots.bits_k, slots.bits_v], -1).reshape(*state.shape, 2).astype(np.float32)
    drawn = []
    for code in np.unique(state[state > 0]):
        mine, said = state == code, {}
        if not np.isnan(widths[mine]).any():
            facts = np.where(mine[..., None], widths, np.float32(0))
            said = {"customdata": facts.astype(COUNT) if (facts % 1 == 0).all() else facts}
        fact = STATES[code] + (", keys %{customdata[0]} bits, values %{customdata[1]} bits" if said else "")
        drawn.append(
            go.Heatmap(
                z=np.where(mine, code, np.nan).astype(np.float32), name=STATES[code], showscale=not drawn,
                xgap=0, hoverongaps=False,  # a gap between narrow cells would be all there is
                hovertemplate=f"layer · head %{{y}}, position %{{x}}<br>{fact}<extra></extra>", **said,
                **_common(state.shape[1], layers, heads, {}),
            )
        )  # fmt: skip
    return drawn, "layer · head"


def _common(positions: int, layers: list[int], heads: list[int], marks: dict[str, str]) -> dict[str, Any]:
    """Rows, columns and the scale of states."""
    names = STATES[1:]
    return {
        "x": np.arange(positions, dtype=np.int16), "y": [f"{layer} · {head}" for layer in layers for head in heads],
        "zmin": 0.5, "zmax": len(names) + 0.5, "colorscale": _steps([_tint(name) for name in names]), "ygap": 1,
        "colorbar": {
            "title": "state", "tickvals": list(range(1, len(names) + 1)), "thickness": 14,
            "ticktext": [" ".join(filter(None, (marks.get(name), name))) for name in names],
        },
    }  # fmt: skip


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
    share = np.where(known > 0, held / np.maximum(known, 1), np.nan).astype(np.float32)
    present = [code for code in counts if counts[code].any()]
    facts = np.stack([counts[code] for code in present], -1)
    facts = facts.astype(COUNT if facts.max() <= np.iinfo(COUNT).max else np.int32)
    said = ", ".join(f"%{{customdata[{place}]}} {STATES[code]}" for place, code in enumerate(present))
    where = "position %{x}" if step == 1 else f"{step} positions from %{{x}}"
    heat = go.Heatmap(
        x=starts.astype(np.int32), y=[str(row) for row in (heads if by_head else layers)], z=share, zmin=0, zmax=1,
        xgap=0, colorscale=SEQUENTIAL, name="share of slots held",
        colorbar={"title": "share held", "tickformat": ".0%"}, customdata=facts,
        hovertemplate=f"%{{y}}, {where}: %{{z:.0%}} held<br>{said}<extra></extra>",
    )  # fmt: skip
    return [heat], f"head of layer {layers[0]}" if by_head else "layer"
