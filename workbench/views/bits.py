"""How wide each cached token is stored."""

import numpy as np
import plotly.graph_objects as go

from workbench.trace import Trace
from workbench.views.figure import blank, figure
from workbench.views.palette import SEQUENTIAL

__all__ = ["bit_map"]


def bit_map(trace: Trace, model: str = "target") -> go.Figure:
    """Bits of every layer (rows) at every position (columns) after the last round.

    A cell is the mean of key and value widths over the KV heads that still hold the position; it is empty where none
    does (evicted or dropped everywhere).
    """
    widths = _widths(trace, model)
    held = ~np.isnan(widths)
    counts = held.sum(axis=1)
    mean = np.where(counts > 0, np.nansum(widths, axis=1) / np.maximum(counts, 1), np.nan)
    z = [[None if np.isnan(value) else float(value) for value in row] for row in mean]
    heat = go.Heatmap(
        x=list(range(mean.shape[1])), y=list(range(mean.shape[0])), z=z, zmin=0, zmax=_top(mean), colorscale=SEQUENTIAL,
        colorbar={"title": {"text": "bits"}}, name="bits",
        hovertemplate="layer %{y}, position %{x}: %{z:.2f} bits<extra></extra>",
    )  # fmt: skip
    axes = {
        "xaxis": {"title": {"text": "position (tokens)"}},
        "yaxis": {"title": {"text": "layer"}, "autorange": "reversed", "tickformat": "d"},
    }
    notes = {} if held.any() else {"annotations": [blank("no bits recorded")]}
    return figure("bit_map", trace.id, [heat], **axes, **notes)


def _top(mean: np.ndarray) -> float:
    """The end of the colour scale: the next usual width, so that frames of a run can be compared."""
    widest = np.nanmax(mean) if np.isfinite(mean).any() else 0
    return next((float(width) for width in (8, 16, 32) if widest <= width), 64.0)


def _widths(trace: Trace, model: str) -> np.ndarray:
    """Mean of key and value widths, [layers, heads, positions]; NaN where nothing is held."""
    bits = trace.bits
    bits = bits[bits["model"] == model]
    if bits.empty:
        return np.full((0, 1, 0), np.nan)
    shape = bits["layer"].max() + 1, bits["head"].max() + 1, (bits["start"] + bits["length"]).max()
    widths = np.full(shape, np.nan)
    both = (bits["bits_k"].fillna(bits["bits_v"]) + bits["bits_v"].fillna(bits["bits_k"])) / 2
    columns = (bits["round"], bits["layer"], bits["head"], bits["start"], bits["length"], both)
    changes: list[tuple] = [
        (at, 0, layer, head, slice(start, start + length), width)
        for at, layer, head, start, length, width in zip(*columns, strict=True)
    ]
    for event in trace.log:
        if event["type"] == "cache" and event.get("op") in ("evict", "drop") and event.get("positions"):
            inside = [place for place in event["positions"] if place < shape[2]]
            changes.append((event["round"], 1, _all(event.get("layer")), _all(event.get("head")), inside, np.nan))
    for *_, layer, head, places, width in sorted(changes, key=lambda change: change[:2]):  # what left, left afterwards
        widths[layer, head, places] = width
    return widths


def _all(place: int | None) -> slice | int:
    return slice(None) if place is None else slice(place, place + 1)
