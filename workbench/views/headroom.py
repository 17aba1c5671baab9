"""What other draft shapes would have given on a run's own text, against the best that any lengths could."""

import pandas as pd
import plotly.graph_objects as go

from workbench.views.figure import figure, inert, offered
from workbench.views.palette import PALETTE


@offered("headroom of other drafts")
def headroom(table: pd.DataFrame, theme: str | None = None) -> go.Figure:
    """The table of `workbench.headroom` as bars: modelled speed-up by shape; the oracle's is a line.

    The hover text and the data table add tokens per target forward and the part of the oracle's gain.
    """
    shapes, oracle = table.iloc[:-1], table.iloc[-1]
    names = [inert(f"{row.shape} {row.setting}") for row in shapes.itertuples(index=False)]
    signal = PALETTE["signal"]
    rows = shapes[["tokens_per_target_forward", "oracle_share"]].to_numpy().tolist()
    bars = go.Bar(
        x=names, y=shapes["modelled_speedup"].tolist(), name="shape", customdata=rows,
        text=shapes["modelled_speedup"].map("{:.2f}".format).tolist(),
        meta=["tokens per target forward", "part of the oracle's gain"], textposition="outside", cliponaxis=False,
        marker={"color": signal["drafted"]},
        hovertemplate="%{x}: %{y:.2f} times plain decoding, %{customdata[0]:.2f} tokens per target forward, "
        "%{customdata[1]:.0%} of the oracle's gain<extra></extra>",
    )  # fmt: skip
    ends = [names[0], names[-1]] if names else []

    def line(height: float, name: str, dash: str, color: str) -> go.Scatter:
        return go.Scatter(
            x=ends, y=[height] * len(ends), mode="lines", name=name, line={"color": color, "dash": dash, "width": 2},
            hovertemplate=f"{name}: %{{y:.2f}} times<extra></extra>",
        )  # fmt: skip

    best = float(oracle["modelled_speedup"])
    axes = {
        "xaxis": {"title": "draft shape", "type": "category", "tickangle": -45},
        "yaxis": {
            "title": "modelled speed-up (times)",
            "range": [0, 1.15 * max(best, 1.0, *shapes["modelled_speedup"])],
        },
    }
    drawn = [bars, line(best, "oracle", "solid", PALETTE["arm"]["b"]), line(1.0, "plain", "dash", signal["reference"])]
    return figure("headroom", "", drawn, table.attrs.get("note", ""), theme, height=440, **axes)
