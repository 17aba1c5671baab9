"""Where the bytes of keys and values are: by layer over the rounds, and by kind."""

import pandas as pd
import plotly.graph_objects as go

from workbench.trace import Trace
from workbench.trace.schema import CACHE_KINDS
from workbench.views.figure import blank, figure, inert, unit_of
from workbench.views.palette import SEQUENTIAL, colours

__all__ = ["by_kind", "cache_footprint"]


def by_kind(cache: pd.DataFrame) -> pd.DataFrame:
    """Bytes per round (rows) of every kind that ever occurs (columns), over all layers and models."""
    totals = cache.groupby("round")[list(CACHE_KINDS)].sum()
    return totals.loc[:, (totals > 0).any()]


def cache_footprint(trace: Trace) -> go.Figure:
    """Bytes of every layer after every round (top, a row per layer and model) and their kinds, stacked (bottom)."""
    cache = trace.cache
    layers = cache.assign(row=cache["model"].astype(str) + " " + cache["layer"].astype(str))
    order = list(dict.fromkeys(layers["row"]))
    grid = layers.pivot_table(index="row", columns="round", values="bytes", aggfunc="sum").reindex(order)
    kinds = by_kind(cache)
    largest = float(grid.max().max()) if grid.size else 0.0
    scale, unit = unit_of(largest)
    total_scale, total_unit = unit_of(float(kinds.sum(axis=1).max()) if kinds.size else 0)
    heat = go.Heatmap(
        x=[int(number) for number in grid.columns], y=[inert(row) for row in order],
        z=(grid / scale).to_numpy().tolist(), zmin=0, zmax=largest / scale or 1, colorscale=SEQUENTIAL, yaxis="y",
        name="bytes by layer", colorbar={"title": {"text": unit}, "len": 0.55, "y": 0.75},
        hovertemplate=f"round %{{x}}, %{{y}}: %{{z:.2f}} {unit}<extra></extra>",
    )  # fmt: skip
    chosen = colours("kind", list(kinds.columns))
    stacked = [
        go.Scatter(
            x=kinds.index.tolist(), y=(kinds[kind] / total_scale).tolist(), name=kind, mode="lines+markers",
            yaxis="y2", stackgroup="kind", marker={"size": 3}, line={"shape": "hv", "width": 1, "color": chosen[kind]},
            hovertemplate=f"round %{{x}}: %{{y:.2f}} {total_unit}<extra>%{{fullData.name}}</extra>",
        )
        for kind in kinds.columns
    ]  # fmt: skip
    axes = {
        "xaxis": {"title": {"text": "round"}, "anchor": "y2"},
        "yaxis": {"title": {"text": "model, layer"}, "domain": [0.52, 1], "type": "category", "autorange": "reversed"},
        "yaxis2": {"title": {"text": f"all layers ({total_unit})"}, "domain": [0, 0.42], "rangemode": "tozero"},
    }
    notes = {} if len(cache) else {"annotations": [blank("no cache recorded")]}
    return figure("cache_footprint", trace.id, [heat, *stacked], height=520, **axes, **notes)
