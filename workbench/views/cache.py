"""Where the bytes of keys and values are: by layer over the rounds, and by kind."""

import plotly.graph_objects as go

from workbench.trace import Trace
from workbench.views.figure import figure, inert, numbers, offered, unit_of
from workbench.views.palette import PALETTE, scale
from workbench.views.stacked import by_kind, stacked


@offered("cache by kind")
def ledger_over_time(trace: Trace, theme: str | None = None) -> go.Figure:
    """Bytes after every round by kind, stacked, both tiers together, and two lines to compare them with.

    The lines: what lies on the device (drawn where anything lies on the host), and what the full cache would take.
    """
    kinds, rounds = by_kind(trace.cache), trace.rounds.set_index("round")
    plain = rounds["full_cache_bytes"].dropna()
    totals = kinds.sum(axis=1)
    size, unit = unit_of(max([0.0, *totals.tolist(), *plain.tolist()]))
    device = rounds["cache_bytes"] if rounds["host_bytes"].max() > 0 else rounds["cache_bytes"].iloc[:0]
    lines = [
        go.Scatter(
            x=part.index.tolist(), y=numbers(part / size), name=name, mode="lines+markers",
            line={"color": PALETTE["signal"][color], "shape": "hv", "width": 2.5}, marker={"size": 5, "symbol": symbol},
            hovertemplate=f"round %{{x}}: %{{y:.2f}} {unit}<extra>{name}</extra>",
        )
        for part, name, color, symbol in (
            (device, "on the device", "drafted", "square"), (plain, "full cache", "reference", "diamond")
        ) if len(part)
    ]  # fmt: skip
    axes = {
        "xaxis": {"title": "round", "tickformat": "d"},
        "yaxis": {"title": f"KV cache ({unit})", "rangemode": "tozero"},
    }
    words = "No cache was recorded."
    if len(totals):
        words = f"Bytes of keys and values over {len(totals)} rounds: {totals.iloc[-1] / size:.3g} {unit} at the end"
        words += f", {rounds['host_bytes'].iloc[-1] / size:.3g} {unit} of it on the host" if len(device) else ""
        words += f"; the full cache would take {plain.iloc[-1] / size:.3g} {unit}." if len(plain) else "."
    note, drawn = "" if len(totals) else "no cache recorded", [*stacked(kinds, size, unit, "y"), *lines]
    return figure("ledger_over_time", trace.id, drawn, words, theme, note, **axes)


@offered("cache by layer")
def cache_footprint(trace: Trace, theme: str | None = None) -> go.Figure:
    """Bytes of every layer after every round (top, a row per layer and model) and their kinds, stacked (bottom)."""
    cache = trace.cache
    layers = cache.assign(row=cache["model"].astype(str) + " " + cache["layer"].astype(str))
    order = list(dict.fromkeys(layers["row"]))
    grid = layers.pivot_table(index="row", columns="round", values="bytes", aggfunc="sum").reindex(order)
    kinds = by_kind(cache)
    largest = float(grid.max().max()) if grid.size else 0.0
    size, unit = unit_of(largest)
    total = float(kinds.sum(axis=1).max()) if kinds.size else 0.0
    total_size, total_unit = unit_of(total)
    heat = go.Heatmap(
        x=[int(number) for number in grid.columns], y=[inert(row) for row in order],
        z=(grid / size).to_numpy().tolist(), zmin=0, zmax=largest / size or 1, yaxis="y",
        colorscale=scale(PALETTE["slot"]["kept"]), name="bytes by layer",
        colorbar={"title": unit, "len": 0.55, "y": 0.75},
        hovertemplate=f"round %{{x}}, %{{y}}: %{{z:.2f}} {unit}<extra></extra>",
    )  # fmt: skip
    axes = {
        "xaxis": {"title": "round", "anchor": "y2"},
        "yaxis": {"title": "model, layer", "domain": [0.52, 1], "type": "category", "autorange": "reversed"},
        "yaxis2": {"title": f"all layers ({total_unit})", "domain": [0, 0.42], "rangemode": "tozero"},
    }
    words = f"Bytes of keys and values by layer and by kind; together at most {total / total_size:.3g} {total_unit}."
    note, drawn = "" if len(cache) else "no cache recorded", [heat, *stacked(kinds, total_size, total_unit, "y2")]
    return figure("cache_footprint", trace.id, drawn, words, theme, note, height=520, **axes)
