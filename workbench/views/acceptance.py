"""What was drafted and what became of it: by position, and one draft as a tree."""

import pandas as pd
import plotly.graph_objects as go

from workbench.errors import BadInput
from workbench.trace import Trace
from workbench.views.figure import blank, figure, inert, shown
from workbench.views.palette import PALETTE, colour

__all__ = ["acceptance", "draft_tree"]

FATE_SYMBOLS = {"accepted": "circle", "rejected": "x", "sibling_won": "diamond", "pruned": "triangle-down"}


def acceptance(trace: Trace) -> go.Figure:
    """Share of accepted tokens at each depth of the draft, with the number at risk.

    Bars: among the tokens that were tested (those behind a rejection never were). Points: among all drafted there.
    """
    drafts = trace.drafts
    known = drafts[drafts["depth"].notna() & drafts["fate"].notna()]
    accepted = (known["fate"] == "accepted").groupby(known["depth"]).sum()
    tested = known["fate"].isin(["accepted", "rejected"]).groupby(known["depth"]).sum()
    drafted = known.groupby("depth").size()
    depths = [int(depth) for depth in drafted.index]
    share = [a / t if t else None for a, t in zip(accepted, tested, strict=True)]
    bars = go.Bar(
        x=depths, y=share, name="of those tested", marker={"color": PALETTE["fate"]["accepted"]},
        text=[f"n = {n}" for n in tested], textposition="inside", customdata=tested.tolist(),
        hovertemplate="depth %{x}: %{y:.1%} of %{customdata} tested<extra></extra>",
    )  # fmt: skip
    points = go.Scatter(
        x=depths, y=(accepted / drafted).tolist(), name="of all drafted", mode="markers",
        marker={"color": PALETTE["source"]["draft"], "size": 9, "symbol": "diamond"}, customdata=drafted.tolist(),
        hovertemplate="depth %{x}: %{y:.1%} of %{customdata} drafted<extra></extra>",
    )  # fmt: skip
    axes = {
        "xaxis": {"title": {"text": "depth in the draft (tokens)"}, "tickformat": "d", "dtick": 1},
        "yaxis": {"title": {"text": "accepted (share)"}, "range": [0, 1.05], "tickformat": ".0%"},
    }
    notes = {} if depths else {"annotations": [blank("nothing was drafted")]}
    return figure("acceptance", trace.id, [bars, points], **axes, **notes)


def draft_tree(trace: Trace, round: int) -> go.Figure:
    """The draft of one round as a tree: depth to the right, siblings below each other, colour and symbol by fate.

    Raises BadInput where the trace has no such round.
    """
    if round not in set(trace.rounds["round"]):
        raise BadInput(f"round {round} is not in the trace; expected 0 to {len(trace.rounds) - 1}")
    nodes = trace.drafts[trace.drafts["round"] == round]
    parents = _parents(nodes)
    heights = _heights(parents)
    depths = {0: 0}
    for node, parent in parents.items():
        depths[node] = depths[parent] + 1
    edges = [(depths[p], heights[p], depths[n], heights[n]) for n, p in parents.items()]
    lines = go.Scatter(
        x=[x for a, _, b, _ in edges for x in (a, b, None)], y=[y for _, a, _, b in edges for y in (a, b, None)],
        mode="lines", name="drafted after", line={"color": "#b0b0b0", "width": 1}, hoverinfo="skip", showlegend=False,
    )  # fmt: skip
    root = go.Scatter(
        x=[0], y=[heights[0]], mode="markers+text", name="pending token", text=["pending"],
        textposition="bottom center", marker={"color": "#1b1b1b", "size": 10, "symbol": "square"}, hoverinfo="skip",
    )  # fmt: skip
    fates = nodes["fate"].fillna("not recorded")
    marks = [_nodes(nodes[fates == fate], fate, depths, heights) for fate in dict.fromkeys(fates)]
    span = [-0.5, max(depths.values()) + 0.7]
    axes = {
        "xaxis": {"title": {"text": "depth in the draft (tokens)"}, "dtick": 1, "range": span},
        "yaxis": {
            "title": {"text": "branch"},
            "showticklabels": False,
            "showgrid": False,
            "autorange": "reversed",
            "zeroline": False,
        },
    }
    notes = {} if len(nodes) else {"annotations": [blank(f"round {round} drafted nothing")]}
    return figure("draft_tree", trace.id, [lines, root, *marks], **axes, **notes)


def _parents(nodes: pd.DataFrame) -> dict[int, int]:
    """Parent of every node; the root where it is missing or unknown."""
    parents: dict[int, int] = {}
    for node, parent in zip(nodes["node"], nodes["parent"], strict=True):
        parents[int(node)] = int(parent) if not pd.isna(parent) and int(parent) in parents else 0
    return parents


def _heights(parents: dict[int, int]) -> dict[int, float]:
    """Leaves one below the other, every other node at the mean of its children; parents come before children."""
    children: dict[int, list[int]] = {node: [] for node in (0, *parents)}
    for node, parent in parents.items():
        children[parent].append(node)
    order, waiting = [], [0]
    while waiting:
        order.append(waiting.pop())
        waiting.extend(reversed(children[order[-1]]))
    leaves = [node for node in order if not children[node]]
    heights = {node: float(place) for place, node in enumerate(leaves)}
    for node in reversed(order):
        if children[node]:
            heights[node] = sum(heights[child] for child in children[node]) / len(children[node])
    return heights


def _nodes(nodes: pd.DataFrame, fate: str, depths: dict[int, int], heights: dict[int, float]) -> go.Scatter:
    columns = [nodes[name].tolist() for name in ("token_id", "text", "drafter", "kind", "q", "p", "u", "reason")]
    facts = []
    for token, text, drafter, kind, q, p, u, reason in zip(*columns, strict=True):
        label = shown(text) or ("" if pd.isna(token) else f"id {int(token)}")
        numbers = (f"{name} = {value:.4g}" for name, value in (("q", q), ("p", p), ("u", u)) if not pd.isna(value))
        origin = " ".join(inert(part) for part in (drafter, kind) if part)
        facts.append((label, "<br>".join([origin, *numbers, inert(reason)])))
    return go.Scatter(
        x=[depths[int(node)] for node in nodes["node"]], y=[heights[int(node)] for node in nodes["node"]],
        mode="markers+text", name=inert(fate), text=[label for label, _ in facts], textposition="top center",
        customdata=[fact for _, fact in facts],
        hovertemplate="%{text}<br>%{customdata}<extra>" + inert(fate) + "</extra>",
        marker={"color": colour("fate", fate), "size": 12, "symbol": FATE_SYMBOLS.get(fate, "circle-open")},
    )  # fmt: skip
