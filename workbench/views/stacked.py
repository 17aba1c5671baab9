"""Bytes of a cache by kind or model, stacked: what several views draw."""

import pandas as pd
import plotly.graph_objects as go

from workbench.trace.schema import CACHE_KINDS
from workbench.views.figure import inert, numbers
from workbench.views.palette import colours
from workbench.views.words import named


def by_kind(cache: pd.DataFrame) -> pd.DataFrame:
    """Bytes per round (rows) of every kind that ever occurs (columns), over all layers and models."""
    totals = cache.groupby("round")[list(CACHE_KINDS)].sum()
    return totals.loc[:, (totals > 0).any()]


def stacked(
    parts: pd.DataFrame, scale: float, unit: str, axis: str, shape: str = "hv", of: str = "kind", name: str = ""
) -> list[go.Scatter]:
    """Bytes over the index, the columns on top of each other. of: the palette's group of their colours."""
    chosen = colours(of, [str(part) for part in parts.columns])
    hover = f"{'round ' if shape == 'hv' else ''}%{{x}}: %{{y:.2f}} {unit}<extra>%{{fullData.name}}</extra>"
    return [
        go.Scatter(
            x=parts.index.tolist(), y=numbers(parts[part] / scale), name=name + inert(named(str(part))),
            mode="lines+markers", yaxis=axis, stackgroup=of, marker={"size": 3}, hovertemplate=hover,
            line={"shape": shape, "width": 1, "color": chosen[str(part)]},
        )
        for part in parts.columns
    ]  # fmt: skip
