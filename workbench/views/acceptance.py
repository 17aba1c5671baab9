"""How much of what was drafted was accepted, by position, drafter and entropy; how far the two distributions differ."""

from collections.abc import Sequence
from statistics import mean
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from workbench.errors import BadInput, shown
from workbench.trace import Trace
from workbench.trace.summary import behind
from workbench.views.figure import figure, inert, ink, offered
from workbench.views.palette import PALETTE
from workbench.views.words import named

BANDS = (0.0, 0.5, 1.0, 2.0, 3.0, 4.0, float("inf"))  # nats
TITLES = {
    "position": "position in the draft (tokens)",
    "drafter": "drafter",
    "entropy": "entropy of the draft's distribution (nats)",
}
DISTANCES = (
    ("tv", "total variation", "y", "diamond", "entropy_raw"),
    ("kl_nats", "KL divergence", "y2", "circle", "entropy_sampled"),
)
HATCH = {"size": 6, "solidity": 0.2, "fillmode": "overlay"}
Traces = Trace | Sequence[Trace]


def _pooled(traces: Traces) -> tuple[list[Trace], str, pd.DataFrame]:
    """The traces as a list, a name for them, and all their draft nodes but those behind the end of a text."""
    runs = [traces] if isinstance(traces, Trace) else list(traces)
    frames = [(drafts := run.drafts)[~behind(run.rounds, drafts)] for run in runs]
    drafts = pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(columns=["depth", "fate"])
    return runs, "+".join(run.id for run in runs), drafts


@offered("acceptance by depth")
@offered("acceptance by drafter", by="drafter")
@offered("acceptance by entropy", by="entropy")
def acceptance(traces: Traces, by: str = "position", theme: str | None = None) -> go.Figure:
    """Share of drafted tokens that were accepted, pooled over the traces, with the number at risk.

    by: `position` (depth in the draft), `drafter`, or `entropy` (bands of the proposal row's entropy; of the target's
    where the drafter has no distribution). Bars: among the tokens that were tested (those behind a rejection never
    were). Points: among all drafted. Raises BadInput for another `by`.
    """
    if not isinstance(by, str) or by not in TITLES:
        raise BadInput(f"by: expected one of {', '.join(TITLES)}, got {shown(by)}")
    _, name, drafts = _pooled(traces)
    known = drafts[drafts["fate"].notna()]
    groups = _groups(known, by)
    known, groups = known[groups.notna()], groups[groups.notna()]
    accepted = (known["fate"] == "accepted").groupby(groups, sort=False).sum()
    tested = known["fate"].isin(["accepted", "rejected"]).groupby(groups, sort=False).sum()
    drafted = known.groupby(groups, sort=False).size()
    order = list(dict.fromkeys(groups)) if by == "drafter" else sorted(drafted.index)
    accepted, tested, drafted = (counts.reindex(order) for counts in (accepted, tested, drafted))
    across = [int(depth) for depth in order] if by == "position" else [_label(group, by) for group in order]
    share = [float(a / t) if t else None for a, t in zip(accepted, tested, strict=True)]
    bars = go.Bar(
        x=across, y=share, name="of those tested", marker={"color": PALETTE["fate"]["accepted"]},
        text=[f"n = {n}" for n in tested], textposition="inside", insidetextanchor="start",
        textfont={"color": "white"}, customdata=[[n] for n in tested], meta=["tested"],
        hovertemplate="%{x}: %{y:.1%} of %{customdata[0]} tested<extra></extra>",
    )  # fmt: skip
    points = go.Scatter(
        x=across, y=(accepted / drafted).tolist(), name="of all drafted", mode="markers", meta=["drafted"],
        marker={"color": ink(theme), "size": 11, "symbol": "diamond",
                "line": {"color": "white", "width": 1}}, customdata=[[n] for n in drafted],
        hovertemplate="%{x}: %{y:.1%} of %{customdata[0]} drafted<extra></extra>",
    )  # fmt: skip
    counted = {"tickformat": "d", "dtick": 1} if by == "position" else {"type": "category"}
    up = {"title": "accepted (share)", "range": [0, 1.05], "tickformat": ".0%"}
    words = f"Accepted share by {by}: {int(accepted.sum())} of {int(drafted.sum())} drafted tokens were accepted"
    if order:
        tested = (f"{s:.0%} at {x}" for s, x in zip(share, across, strict=True) if s is not None)
        words += f", of those tested {', '.join(tested)}"
    note, across = "" if order else "no drafted tokens recorded", {"title": TITLES[by], **counted}
    return figure("acceptance", name, [bars, points], f"{words}.", theme, note, xaxis=across, yaxis=up)


def _groups(drafts: pd.DataFrame, by: str) -> pd.Series:
    if by == "position":
        return drafts["depth"]
    if by == "drafter":
        return drafts["drafter"].fillna("unknown").astype(object)
    entropy = drafts["entropy_draft_nats"].fillna(drafts["entropy_target_nats"])
    return pd.Series(pd.cut(entropy, BANDS, right=False, labels=False), index=drafts.index)


def _label(group: Any, by: str) -> str:
    if by == "drafter":
        return inert(named(group))
    low, high = BANDS[int(group)], BANDS[int(group) + 1]
    return f"{low:g} to {high:g}" if np.isfinite(high) else f"{low:g} and more"


@offered("acceptance by depth")
def acceptance_length(traces: Traces, theme: str | None = None) -> go.Figure:
    """Mean tokens per draft over one or several requests: pooled over all drafts, and the mean over requests.

    Each with and without the tokens of the target's own. Pooled, long requests weigh more; the mean
    over requests weighs each alike. Points: the single requests.
    """
    runs, name, _ = _pooled(traces)
    found = [summary for run in runs if (summary := run.summary())["num_drafts"]]
    drafts = sum(s["num_drafts"] for s in found)
    names = ("mean_acceptance_length", "mean_acceptance_length_no_bonus")
    single = [[s[name] for s in found] for name in names]
    pooled = [sum(s[name] * s["num_drafts"] for s in found) / max(1, drafts) for name in names]
    across = ["pooled", "per request"]
    values = [[pooled[kind], mean(single[kind])] if drafts else [] for kind in range(2)]
    kinds = (
        (0, "with the target's token", PALETTE["source"]["bonus"], ""),
        (1, "accepted alone", PALETTE["fate"]["accepted"], "/"),
    )
    bars = [
        go.Bar(
            x=across[: len(values[kind])], y=values[kind], name=label, text=[f"{value:.2f}" for value in values[kind]],
            textposition="outside", cliponaxis=False, hovertemplate="%{x}: %{y:.3f} tokens<extra>" + label + "</extra>",
            marker={"color": color, "pattern": {"shape": shape, **HATCH}},
        )
        for kind, label, color, shape in kinds
    ]  # fmt: skip
    points = go.Scatter(
        x=["per request"] * len(found), y=single[0], mode="markers", name="single requests",
        marker={"symbol": "line-ew-open", "size": 18, "color": ink(theme), "line": {"width": 2}},
        hovertemplate="%{y:.3f} tokens, with the target's<extra>one request</extra>", showlegend=len(found) > 1,
    )  # fmt: skip
    across = {"title": "mean over", "type": "category"}
    up = {"title": "acceptance length (tokens per draft)", "rangemode": "tozero"}
    words = "No drafts were made."
    if drafts:
        (whole, each), (alone, each_alone) = values
        words = f"Mean acceptance length over {drafts} drafts of {len(found)} requests: pooled {whole:.2f} tokens"
        words += f", per request {each:.2f}; without the target's token {alone:.2f} and {each_alone:.2f}."
    note, drawn = "" if drafts else "no drafts were made", [*bars, points]
    return figure("acceptance_length", name, drawn, words, theme, note, barmode="group", xaxis=across, yaxis=up)


@offered("draft against target")
def divergence(traces: Traces, theme: str | None = None) -> go.Figure:
    """Total variation (top) and KL divergence (bottom) of the draft's distribution from the target's, by position.

    Lines: mean over the nodes. Bars: from the lower to the upper quartile. One minus the total variation is the share
    that exact rejection accepts of a token drawn from the draft's distribution.
    """
    _, name, drafts = _pooled(traces)
    drawn, found = [], {}
    for column, label, axis, symbol, color in DISTANCES:
        known = drafts[drafts[column].notna() & drafts["depth"].notna()] if column in drafts else drafts.iloc[:0]
        parts = [(int(depth), mine[column]) for depth, mine in known.groupby("depth")]
        means = [float(part.mean()) for _, part in parts]
        low, high = ([float(part.quantile(share)) for _, part in parts] for share in (0.25, 0.75))
        found[label] = means
        drawn.append(
            go.Scatter(
                x=[depth for depth, _ in parts], y=means, name=label, mode="lines+markers", yaxis=axis,
                line={"color": PALETTE["signal"][color], "width": 2}, marker={"symbol": symbol, "size": 9},
                error_y=_bars(means, low, high), customdata=[[len(part)] for _, part in parts], meta=["nodes"],
                hovertemplate="position %{x}: %{y:.4g} over %{customdata[0]} nodes<extra>" + label + "</extra>",
            )
        )  # fmt: skip
    axes = {
        "xaxis": {"title": TITLES["position"], "tickformat": "d", "dtick": 1, "anchor": "y2"},
        "yaxis": {"title": "total variation", "domain": [0.54, 1], "range": [0, 1]},
        "yaxis2": {"title": "KL divergence (nats)", "domain": [0, 0.46], "rangemode": "tozero"},
    }
    ends = "{0:.3g} at the first to {1:.3g} at the last position"
    words = "; ".join(f"{label} {ends.format(means[0], means[-1])}" for label, means in found.items() if means)
    words = f"Draft against target by position, means: {words}." if words else "No divergences were recorded."
    note = "" if any(found.values()) else "no divergences recorded"
    return figure("divergence", name, drawn, words, theme, note, height=440, **axes)


def _bars(means: list[float], low: list[float], high: list[float]) -> dict[str, Any]:
    """Error bars from the lower to the upper quartile; none on the side where the mean lies outside of them."""
    above = [max(h - m, 0.0) for h, m in zip(high, means, strict=True)]
    below = [max(m - b, 0.0) for b, m in zip(low, means, strict=True)]
    return {"type": "data", "symmetric": False, "array": above, "arrayminus": below, "thickness": 1}
