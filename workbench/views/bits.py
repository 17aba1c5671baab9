"""How wide each cached token is stored."""

import numpy as np
import plotly.graph_objects as go

from workbench.trace import Trace
from workbench.trace.slots import last_round, replay
from workbench.views.figure import figure, offered
from workbench.views.palette import PALETTE, scale

COLUMNS = 1024  # more positions than this are drawn several to a cell


@offered("bit map")
def bit_map(trace: Trace, round: int | None = None, model: str = "target", theme: str | None = None) -> go.Figure:
    """Bits of keys (top) and values (bottom), every layer (rows) at every position (columns), after a round.

    `round` is the last one where it is None. A cell is the mean width over the KV heads that still hold the position;
    it is empty where none does (evicted, or merged into another). Raises BadInput for a round that is not there.
    """
    number = last_round(trace, round)
    slots = replay(trace, round, model)
    means = {"keys": _mean(slots.bits_k), "values": _mean(slots.bits_v)}
    step = -(-slots.state.shape[2] // COLUMNS) or 1
    widest = max((np.nanmax(mean) for mean in means.values() if np.isfinite(mean).any()), default=0.0)
    top = _top(widest)
    ticks = [width for width in (1, 2, 4, 8, 16, 32, 64) if width <= top]
    drawn = [
        go.Heatmap(
            x=(step * np.arange(mean.shape[1])).tolist(), y=list(range(mean.shape[0])),
            z=[[None if np.isnan(value) else float(value) for value in row] for row in mean], name=name,
            zmin=0, zmax=top, colorscale=_scale(top), yaxis=axis, showscale=axis == "y",
            colorbar={"title": "bits", "tickvals": ticks[-5:]},
            hovertemplate=f"{name} of layer %{{y}}, position %{{x}}: %{{z:.2f}} bits<extra></extra>",
        )
        for (name, mean), axis in zip(means.items(), ("y", "y2"), strict=True)
    ]  # fmt: skip
    layers = {"autorange": "reversed", "tickformat": "d"} | ({"dtick": 1} if len(means["keys"]) <= 16 else {})
    axes = {
        "xaxis": {"title": "position (tokens)", "anchor": "y2"},
        "yaxis": {"title": "layer (keys)", "domain": [0.53, 1], **layers},
        "yaxis2": {"title": "layer (values)", "domain": [0, 0.47], **layers},
        "showlegend": False,
    }
    known = {name: mean[np.isfinite(mean)] for name, mean in means.items()}
    words = f"Bits per stored element of the {model} after round {number}: " + (
        "; ".join(f"{name} {found.min():.3g} to {found.max():.3g}" for name, found in known.items() if found.size)
        or "none recorded"
    )
    none = slots.excess or "no bits recorded"
    note = "" if any(found.size for found in known.values()) else none
    return figure("bit_map", trace.id, drawn, words + ".", theme, note, **axes)


def _mean(widths: np.ndarray) -> np.ndarray:
    """[layers, heads, positions] to the mean over what is known, [layers, columns]; NaN where nothing is."""
    step = -(-widths.shape[2] // COLUMNS) or 1
    starts = np.arange(0, widths.shape[2], step)
    if not starts.size:
        return np.full((widths.shape[0], 0), np.nan)
    known = np.add.reduceat((~np.isnan(widths)).sum(axis=1), starts, axis=1)
    total = np.add.reduceat(np.nansum(widths, axis=1), starts, axis=1)
    return np.where(known > 0, total / np.maximum(known, 1), np.nan)


def _scale(top: float) -> list[list]:
    """The shades at equal ratios of 1 + bits, so that 2, 4 and 8 bits differ as visibly as 16 and 32."""
    shades = scale(PALETTE["signal"]["bits"])
    n = len(shades) - 1
    return [[((1 + top) ** (place / n) - 1) / top, shade] for place, shade in enumerate(shades)]


def _top(widest: float) -> float:
    """The end of the colour scale: the next usual width, so that frames of a run can be compared."""
    return next((float(width) for width in (8, 16, 32) if widest <= width), 64.0)
