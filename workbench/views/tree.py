"""One round's draft as a tree: what was proposed, and what became of every node."""

from typing import Any

import pandas as pd
import plotly.graph_objects as go

from workbench.trace import Trace
from workbench.trace.schema import SOURCES
from workbench.trace.slots import last_round
from workbench.views.figure import figure, inert, ink, offered, shown
from workbench.views.palette import PALETTE, colour
from workbench.views.words import named

SYMBOLS = {
    "accepted": "circle", "rejected": "x", "sibling_won": "diamond-open", "parent_rejected": "circle-open",
    "pruned": "triangle-down-open", "after_end": "square-open",
}  # fmt: skip
LONGEST = 10  # letters of a label
NUMBERED, DEEP = 24, 8  # most nodes, and levels, that carry their p and q in writing
ROOT, LAST = 0, -1  # nodes that are not drafted: the pending token, and the one the target added
COLUMNS = ("token", "p", "q", "fate", "reason", "drafter", "kind", "rank", "u")


@offered("draft tree")
def draft_tree(trace: Trace, round: int | None = None, theme: str | None = None) -> go.Figure:
    """The draft of one round (default: the last) as a tree: depth to the right, siblings below each other.

    The fate of a node is its symbol, its colour and its name in the legend; the accepted path is a wide line, which
    ends in a star: the token that the target added (bonus or residual). Small trees carry p and q in writing, all of
    them in the hover text. Raises BadInput where the trace has no such round.
    """
    number = last_round(trace, round)
    nodes = trace.drafts[trace.drafts["round"] == number]
    if nodes.empty:
        return _nothing(trace, number, theme)
    parents = _parents(nodes)
    accepted = [int(node) for node in nodes["node"][nodes["fate"] == "accepted"]]
    depths = {ROOT: 0}
    for node, parent in parents.items():
        depths[node] = depths[parent] + 1
    added = _added(trace, number)
    if added is not None:
        parents[LAST] = max(accepted, key=depths.__getitem__, default=ROOT)
        depths[LAST] = depths[parents[LAST]] + 1
    heights = _heights(parents)
    places = {node: (depths[node], heights[node]) for node in depths}
    path = {*accepted, LAST}
    limit = max(3, min(LONGEST, 100 // (max(depths.values()) + 1)))
    fates = nodes["fate"].fillna("not recorded")
    drawn = [
        _edges([(places[p], places[n]) for n, p in parents.items() if n not in path], "drafted after", ink(theme), 1),
        _edges([(places[p], places[n]) for n, p in parents.items() if n in path], "accepted path",
               PALETTE["fate"]["accepted"], 4),
        *(_nodes(nodes[fates == fate], fate, places, limit) for fate in dict.fromkeys(fates)),
        _pending(trace, number, places[ROOT], limit, ink(theme)),
    ]  # fmt: skip
    if added is not None:
        drawn.append(_bonus(added, places[LAST], limit))
    if len(nodes) <= NUMBERED and max(depths.values()) <= DEEP:
        drawn.append(_written(nodes, places))
    leaves = max(heights.values()) + 1
    axes = {
        "xaxis": {
            "title": "depth in the draft (tokens)", "dtick": 1, "zeroline": False,
            "range": [-0.5, max(depths.values()) + 0.6],
        },
        "yaxis": {
            "title": "branch", "showticklabels": False, "showgrid": False, "zeroline": False,
            "range": [leaves - 0.2, -0.8],
        },
        "height": min(900, max(260, 200 + 58 * int(leaves))),
    }  # fmt: skip
    words = f"Draft of round {number}: {len(nodes)} node{'s' * (len(nodes) != 1)}, {len(accepted)} accepted"
    words += ", " + ", ".join(f"{n} {named(fate)}" for fate, n in fates.value_counts().items() if fate != "accepted")
    words = words.removesuffix(", ") + (f"; then the {named(added['source'])} token." if added else ".")
    return figure("draft_tree", trace.id, drawn, words, theme, **axes)


def _nothing(trace: Trace, number: int, theme: str | None) -> go.Figure:
    """A round without recorded nodes: a sentence, and nothing else."""
    drafted = int(trace.rounds.set_index("round")["drafted"].get(number, 0))
    note = f"round {number} drafted nothing" if number >= 0 else "no rounds yet"
    if drafted:
        note = f"round {number} drafted {drafted} tokens; this trace does not record them (level off)"
    axes = {"xaxis": {"title": "depth in the draft (tokens)"}, "yaxis": {"title": "branch"}}
    return figure("draft_tree", trace.id, [], f"{note}.", theme, note, height=260, **axes)


def _added(trace: Trace, number: int) -> dict[str, Any] | None:
    """The token of the round that the target gave after the accepted path; None where there is none."""
    tokens = trace.tokens[trace.tokens["round"] == number]
    last = tokens.iloc[-1] if len(tokens) else None
    return None if last is None or last["source"] not in SOURCES else last.to_dict()


def _parents(nodes: pd.DataFrame) -> dict[int, int]:
    """Parent of every node; the root where it is missing or unknown."""
    parents: dict[int, int] = {}
    for node, parent in zip(nodes["node"], nodes["parent"], strict=True):
        parents[int(node)] = int(parent) if not pd.isna(parent) and int(parent) in parents else ROOT
    return parents


def _heights(parents: dict[int, int]) -> dict[int, float]:
    """Leaves one below the other, every other node at the mean of its children; parents come before children."""
    children: dict[int, list[int]] = {node: [] for node in (ROOT, *parents)}
    for node, parent in parents.items():
        children[parent].append(node)
    order, waiting = [], [ROOT]
    while waiting:
        order.append(waiting.pop())
        waiting.extend(reversed(children[order[-1]]))
    leaves = [node for node in order if not children[node]]
    heights = {node: float(place) for place, node in enumerate(leaves)}
    for node in reversed(order):
        if children[node]:
            heights[node] = sum(heights[child] for child in children[node]) / len(children[node])
    return heights


def _edges(pairs: list[tuple], name: str, color: str, width: int) -> go.Scatter:
    return go.Scatter(
        x=[x for (a, _), (b, _) in pairs for x in (a, b, None)],
        y=[y for (_, a), (_, b) in pairs for y in (a, b, None)],
        mode="lines", name=name, line={"color": color, "width": width}, opacity=0.7, hoverinfo="skip",
        showlegend=width > 1 and bool(pairs),
    )  # fmt: skip


def _marks(spots: list[tuple], name: str, texts: list[str], where: str = "top center", **more: Any) -> go.Scatter:
    """Marks with texts at (depth, height)."""
    x, y = ([spot[axis] for spot in spots] for axis in (0, 1))
    return go.Scatter(x=x, y=y, mode="markers+text", name=name, text=texts, textposition=where, **more)


def _nodes(nodes: pd.DataFrame, fate: str, places: dict[int, tuple], limit: int) -> go.Scatter:
    columns = ("token_id", "text", "p", "q", "reason", "drafter", "kind", "rank", "u")
    labels, facts = [], []
    for token, text, p, q, reason, drafter, kind, rank, u in zip(*(nodes[c] for c in columns), strict=True):
        name = shown(text) or ("" if pd.isna(token) else f"id {int(token)}")
        labels.append(shown(text, limit) or name)
        who = (inert(named(part or "")) for part in (fate, reason, drafter, kind))
        facts.append([name, _number(p), _number(q), *who, _number(rank), _number(u)])
    color = colour("fate", fate)
    symbol = {"symbol": SYMBOLS.get(fate, "hexagon-open"), "line": {"width": 2, "color": color}}
    hover = (
        "%{customdata[0]}   rank %{customdata[7]}<br>p = %{customdata[1]}, q = %{customdata[2]}, u = %{customdata[8]}"
        f"<br>%{{customdata[5]}}, %{{customdata[6]}}<br>%{{customdata[4]}}<extra>{inert(named(fate))}</extra>"
    )
    facts = {"customdata": facts, "meta": list(COLUMNS), "hovertemplate": hover}
    spots = [places[int(node)] for node in nodes["node"]]
    return _marks(spots, inert(named(fate)), labels, marker={"color": color, "size": 13, **symbol}, **facts)


def _number(value: float) -> str:
    return "–" if pd.isna(value) else f"{value:.3g}"


def _short(value: float) -> str:
    return "–" if pd.isna(value) else f"{value:.2f}".removeprefix("0")


def _written(nodes: pd.DataFrame, places: dict[int, tuple]) -> go.Scatter:
    """p and q under every node that has them."""
    known = nodes[nodes["p"].notna() | nodes["q"].notna()]
    texts = [f"p {_short(p)}<br>q {_short(q)}" for p, q in zip(known["p"], known["q"], strict=True)]
    look = {"textfont": {"size": 10}, "marker": {"size": 13, "opacity": 0}, "hoverinfo": "skip", "showlegend": False}
    return _marks([places[int(node)] for node in known["node"]], "p and q", texts, "bottom center", **look)


def _pending(trace: Trace, number: int, place: tuple, limit: int, color: str) -> go.Scatter:
    before = trace.tokens["text"][trace.tokens["round"] < number]
    text = before.iloc[-1] if len(before) else ""
    facts = {"customdata": [[shown(text) or "pending"]], "meta": ["token"]}
    facts["hovertemplate"] = "%{customdata[0]}<extra>pending token</extra>"
    marker = {"color": color, "size": 10, "symbol": "square"}
    return _marks([place], "pending token", [shown(text, limit) or "pending"], marker=marker, **facts)


def _bonus(token: dict[str, Any], place: tuple, limit: int) -> go.Scatter:
    source, text = token["source"], token["text"]
    name, number = f"{named(source)} token", f"id {token['token_id']}"
    hover = f"%{{customdata[0]}}<br>p = %{{customdata[1]}}<extra>{name}, from the target</extra>"
    data = [[shown(text) or number, _number(token["p_sampled"])]]
    facts = {"meta": ["token", "p"], "customdata": data, "hovertemplate": hover}
    marker = {"color": colour("source", source), "size": 16, "symbol": "star"}
    return _marks([place], name, [shown(text, limit) or number], marker=marker, **facts)
