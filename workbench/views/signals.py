"""The four signals of a run on one token axis, and entropy by itself."""

from typing import Any

import pandas as pd
import plotly.graph_objects as go

from workbench.trace import Trace
from workbench.trace.schema import SOURCES
from workbench.trace.summary import behind_the_end
from workbench.views.figure import figure, inert, ink, numbers, offered, shown, unit_of
from workbench.views.palette import PALETTE, colours
from workbench.views.stacked import by_kind, stacked
from workbench.views.words import named

SYMBOLS = {"target": "square", "bonus": "star", "residual": "x"}  # any drafter: circle
# rows from top to bottom: axis, share of the height, title
ROWS = (("y", (0.77, 1.0), "entropy (nats)"), ("y2", (0.52, 0.73), "token in round"),
        ("y3", (0.26, 0.48), "cache"), ("y4", (0.0, 0.22), "bits / element"))  # fmt: skip


def signals(trace: Trace, cursor: int | None = None, theme: str | None = None) -> go.Figure:
    """Entropy, acceptance, cache bytes and bits per element over the index of the token.

    Rows, top to bottom: entropy of the next-token distribution and of the sampled one; every token at its place in its
    round, coloured by who produced it, with the drafted and accepted tokens of the round; bytes of keys and values
    after the token's round, stacked by model (one model: by kind); bits per element of the target's cache. `cursor`
    marks a token.
    """
    tokens, rounds = trace.tokens, trace.rounds
    joined = tokens[["index", "round"]].merge(rounds, on="round", how="left")
    unit, cached = _cache(trace, tokens)
    traces = [
        *_entropy(tokens),
        *_acceptance(tokens, joined),
        *cached,
        _step(joined, "bits_per_element", "bits per element", PALETTE["signal"]["bits"], "y4"),
    ]
    widest = joined["bits_per_element"].max()
    layout: dict[str, Any] = {
        "xaxis": {"title": "token index", "anchor": "y4", "range": _span(len(tokens)), "showspikes": True},
        "height": 640,
        "hovermode": "closest",
    }
    for axis, domain, title in ROWS:
        title = f"{title} ({unit})" if axis == "y3" else title
        layout[axis.replace("y", "yaxis")] = {"domain": domain, "title": title, "rangemode": "tozero"}
    highest = tokens[["entropy_raw_nats", "entropy_sampled_nats"]].max(axis=None)
    layout["yaxis"]["range"] = [0, 1.1 * highest if highest > 0 else 1]
    layout["yaxis4"]["range"] = [0, 1.15 * widest if widest > 0 else 32]
    if cursor is not None:
        line = {"color": ink(theme), "width": 1, "dash": "dot"}
        ends = {"x0": cursor, "x1": cursor, "xref": "x", "y0": 0, "y1": 1, "yref": "paper"}
        layout["shapes"] = [{"type": "line", "name": "cursor", "line": line, **ends}]
    words = f"The four signals over {len(tokens)} tokens: {_mean(tokens['entropy_raw_nats'], 'nats of entropy')}"
    drafted = int(rounds["drafted"].sum()) - behind_the_end(rounds, trace.drafts)
    accepted = int(rounds["accepted"].sum())
    words += f", {accepted} of {drafted} drafted tokens accepted" if drafted else ", nothing drafted"
    words += f", {_mean(joined['bits_per_element'], 'bits per element of the cache')}."
    return figure("signals", trace.id, traces, words, theme, "" if len(tokens) else "no tokens yet", **layout)


@offered("entropy and surprisal")
def entropy(trace: Trace, theme: str | None = None) -> go.Figure:
    """Entropy of the next-token and of the sampled distribution, and the surprisal of the chosen token."""
    tokens = trace.tokens
    chosen = go.Scatter(
        x=tokens["index"].tolist(), y=numbers(tokens["surprisal_nats"]), name="surprisal of the token", mode="markers",
        marker={"color": PALETTE["signal"]["reference"], "size": 5, "symbol": "diamond"},
        customdata=_labels(tokens), hovertemplate="%{x} %{customdata}<br>surprisal %{y:.3f} nats<extra></extra>",
    )  # fmt: skip
    axes = {
        "xaxis": {"title": "token index", "range": _span(len(tokens))},
        "yaxis": {"title": "nats", "rangemode": "tozero"},
    }
    note = "no entropies recorded" if tokens["entropy_raw_nats"].isna().all() else ""
    words = f"Entropy and surprisal of {len(tokens)} tokens: "
    words += _mean(tokens["entropy_raw_nats"], "nats, next-token distribution")
    words += f", {_mean(tokens['entropy_sampled_nats'], 'nats, sampled distribution')}."
    return figure("entropy", trace.id, [*_entropy(tokens), chosen], words, theme, note, **axes)


def _mean(column: pd.Series, what: str) -> str:
    return f"unknown {what}" if column.isna().all() else f"mean {column.mean():.3g} {what}"


def _span(n: int) -> list[float]:
    return [-0.5, max(n, 1) - 0.5]


def _labels(tokens: pd.DataFrame) -> list[str]:
    return [shown(text) for text in tokens["text"]]


def _entropy(tokens: pd.DataFrame) -> list[go.Scatter]:
    """Lines of both entropies; that of the sampled distribution says nothing where the likeliest token is taken."""
    kinds = (("entropy_raw", "next-token distribution", "solid"), ("entropy_sampled", "sampled distribution", "dot"))
    return [
        go.Scatter(
            x=tokens["index"].tolist(), y=numbers(tokens[f"{column}_nats"]), name=f"entropy, {name}",
            mode="lines+markers", line={"color": PALETTE["signal"][column], "dash": dash, "width": 1.5},
            marker={"size": 4}, customdata=_labels(tokens), yaxis="y",
            hovertemplate="%{x} %{customdata}<br>%{y:.3f} nats<extra>" + name + "</extra>",
        )
        for column, name, dash in kinds if column == "entropy_raw" or tokens[f"{column}_nats"].any()
    ]  # fmt: skip


def _step(joined: pd.DataFrame, column: str, name: str, color: str, axis: str, **line: Any) -> go.Scatter:
    """A figure of the round, held over its tokens."""
    return go.Scatter(
        x=joined["index"].tolist(), y=numbers(joined[column]), name=name, mode="lines+markers", yaxis=axis,
        line={"color": color, "shape": "hvh", "width": 1.5, **line}, marker={"size": 3},
        customdata=joined["round"].tolist(), hovertemplate="round %{customdata}: %{y}<extra>" + name + "</extra>",
    )  # fmt: skip


def _acceptance(tokens: pd.DataFrame, joined: pd.DataFrame) -> list[go.Scatter]:
    place = tokens.groupby("round").cumcount() + 1
    sources = tokens["source"].fillna("unknown")
    traces = [
        _step(joined, "drafted", "drafted in the round", PALETTE["signal"]["drafted"], "y2", dash="dot"),
        _step(joined, "accepted", "accepted in the round", PALETTE["signal"]["accepted"], "y2"),
    ]
    for source, color in colours("source", list(dict.fromkeys(sources))).items():
        mine, name = tokens[sources == source], inert(named(source))
        traces.append(
            go.Scatter(
                x=mine["index"].tolist(), y=place[mine.index].tolist(), mode="markers", yaxis="y2",
                name=f"{name} token" if source in SOURCES else f"from {name}",
                marker={"color": color, "size": 7, "symbol": SYMBOLS.get(source, "circle")},
                customdata=_labels(mine), hovertemplate="%{x} %{customdata}<extra>%{fullData.name}</extra>",
            )
        )  # fmt: skip
    return traces


def _cache(trace: Trace, tokens: pd.DataFrame) -> tuple[str, list[go.Scatter]]:
    """Bytes after each token's round, stacked by model or, with one model, by kind; and their unit."""
    cache = trace.cache
    if cache["model"].nunique() > 1:
        parts, group = cache.pivot_table(index="round", columns="model", values="bytes", aggfunc="sum"), "model"
        parts = parts.reindex(columns=list(dict.fromkeys(cache["model"])))
    else:
        parts, group = by_kind(cache), "kind"
    at_token = parts.reindex(tokens["round"].to_numpy()).set_index(tokens["index"].to_numpy())
    scale, unit = unit_of(at_token.sum(axis=1).max() if len(at_token) else 0)
    return unit, stacked(at_token, scale, unit, "y3", "hvh", group, "cache, ")
