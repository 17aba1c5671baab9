"""Two runs side by side: where they part, and why."""

from collections import deque
from dataclasses import dataclass
from typing import Any

import pandas as pd
import plotly.graph_objects as go

from workbench.trace import Trace
from workbench.views.figure import figure, inert, ink, numbers, shown
from workbench.views.palette import PALETTE, tint

CAUSES = ("other prompt", "forced token", "end of one run", "near tie", "other setting", "other random draw", "unknown")
TIE = 1e-3  # margin between the two likeliest tokens at and below which rounding may decide
SETTINGS = ("models", "decoder", "cache", "constraint", "sampling", "device")
BEFORE, AFTER = 4, 12  # tokens shown at first, around the first difference
COLUMNS = ("token_id", "text", "source", "entropy_raw_nats", "margin")


@dataclass(frozen=True)
class BranchDiff:
    """How two runs differ.

    Attributes
    ----------
    index: index of the first token that differs; None where all tokens are the same.
    cause: one of `CAUSES`; None where all tokens are the same.
    detail: the cause in one sentence.
    settings: what was set differently: name -> (of a, of b).
    tokens: a row per index: `index`, `same`, and `token_id`, `text`, `source`, `entropy_raw_nats`, `margin` of a and
        of b (`…_a`, `…_b`), missing where a run is shorter.
    """

    index: int | None
    cause: str | None
    detail: str
    settings: dict[str, tuple[Any, Any]]
    tokens: pd.DataFrame


def branch_diff(
    a: Trace, b: Trace, theme: str | None = None, names: tuple[str, str] = ("a", "b")
) -> tuple[BranchDiff, go.Figure]:
    """Where two runs part and why, as data and as a figure: entropies over each other, texts below each other.

    The cause is read from the traces, first match: other prompts; a token forced there; one run ended there; two
    likeliest tokens so close (0.001) that rounding decides, both runs being greedy; another setting; another seed.
    names: what the runs are called in the sentence.
    """
    diff = _compare(a, b, dict(zip("ab", names, strict=True)))
    return diff, _draw(a, b, diff, theme)


def _compare(a: Trace, b: Trace, names: dict[str, str]) -> BranchDiff:
    sides = [trace.tokens[["index", *COLUMNS]].set_index("index") for trace in (a, b)]
    tokens = sides[0].add_suffix("_a").join(sides[1].add_suffix("_b"), how="outer").sort_index()
    tokens.insert(0, "same", tokens["token_id_a"] == tokens["token_id_b"])
    tokens = tokens.reset_index()
    differs = tokens["index"][~tokens["same"]]
    settings = {key: pair for name in (*SETTINGS, "seed") for key, pair in _changes(name, a.run, b.run)}
    if differs.empty:
        n = len(tokens)
        return BranchDiff(None, None, f"All {n} tokens are the same.", settings, tokens)
    index = int(differs.iloc[0])
    cause, detail = _cause(a, b, index, tokens.set_index("index").loc[index], settings, names)
    return BranchDiff(index, cause, detail, settings, tokens)


def _cause(
    a: Trace, b: Trace, index: int, here: pd.Series, settings: dict, names: dict[str, str]
) -> tuple[str, str]:
    runs = {"a": a, "b": b}
    if a.run.get("prompt_ids") != b.run.get("prompt_ids"):
        return "other prompt", "The prompts differ."
    for side, run in runs.items():
        if _forced(run, index):
            return "forced token", f"Token {index} of {names[side]} was forced."
    for side in runs:
        if pd.isna(here[f"token_id_{side}"]):
            reason = (runs[side].end or {}).get("reason") or "no end recorded"
            return "end of one run", f"Run {names[side]} has only {index} tokens ({reason})."
    margins = [here[f"margin_{side}"] for side in runs if not pd.isna(here[f"margin_{side}"])]
    greedy = all((run.run.get("sampling") or {}).get("temperature") == 0 for run in runs.values())
    if greedy and margins and min(margins) <= TIE:
        return "near tie", f"The two likeliest tokens are {min(margins):.2g} apart in probability: rounding decides."
    others = [f"{key} {_short(x)} → {_short(y)}" for key, (x, y) in settings.items() if key != "seed"]
    if others:
        return "other setting", "Set differently: " + "; ".join(others[:4]) + ("; …" if len(others) > 4 else "") + "."
    if "seed" in settings:
        return "other random draw", "The seeds are {} and {}.".format(*settings["seed"])
    for side, run in runs.items():
        if index < (start := (run.run.get("parent") or {}).get("index", 0)):
            return "unknown", f"Run {names[side]} has its tokens before {start} from a run whose settings are missing."
    return "unknown", "Neither a setting, a seed, a forced token nor a near tie explains it."


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 40 else text[:39] + "…"


def _changes(name: str, a: Any, b: Any) -> list[tuple[str, tuple[Any, Any]]]:
    """What differs under a name of two run events, down to single values."""
    pairs = deque([(name, a.get(name), b.get(name))])
    found = []
    while pairs:
        key, x, y = pairs.popleft()
        if x == y:
            continue
        if isinstance(x, dict) and isinstance(y, dict):
            pairs += [(f"{key}.{part}", x.get(part), y.get(part)) for part in dict.fromkeys([*x, *y])]
        elif isinstance(x, list) and isinstance(y, list) and len(x) == len(y) and key == "models":
            pairs += [(f"{key}.{place}", *pair) for place, pair in enumerate(zip(x, y, strict=True))]
        else:
            found.append((key, (x, y)))
    return found


def _forced(trace: Trace, index: int) -> bool:
    if str(index) in (trace.run.get("forced") or {}):
        return True
    place = len(trace.run.get("prompt_ids") or ()) + index
    acts = (event for event in trace.log if event["type"] == "decision" and event.get("action") == "force")
    return any(event.get("position") == place for event in acts)


def _draw(a: Trace, b: Trace, diff: BranchDiff, theme: str | None) -> go.Figure:
    tokens = diff.tokens
    across = tokens["index"].tolist()
    text = {side: [shown(part, 6) for part in tokens[f"text_{side}"]] for side in "ab"}
    drawn: list[Any] = [
        go.Scatter(
            x=across, y=numbers(tokens[f"entropy_raw_nats_{side}"]), name=f"{side}: entropy", mode="lines+markers",
            line={"color": PALETTE["arm"][side], "dash": dash, "width": 1.5}, marker={"size": 6, "symbol": symbol},
            customdata=[[part] for part in text[side]], meta=["token"],
            hovertemplate="%{x} %{customdata[0]}<br>%{y:.3f} nats<extra>" + side + "</extra>",
        )
        for side, dash, symbol in (("a", "solid", "circle"), ("b", "dot", "diamond"))
    ]  # fmt: skip
    if across:
        differs = (~tokens["same"]).astype(float)
        present = [numbers(differs.where(tokens[f"token_id_{side}"].notna())) for side in "ab"]
        drawn.append(
            go.Heatmap(
                x=across, y=["a", "b"], z=present, text=[text["a"], text["b"]], texttemplate="%{text}", yaxis="y2",
                name="tokens", zmin=0, zmax=1, showscale=False, xgap=2, ygap=2,
                colorscale=[[0, tint(PALETTE["arm"]["b"], 0.1)], [1, tint(PALETTE["arm"]["b"], 0.3)]],
                textfont={"color": ink(theme), "size": 11}, colorbar={"title": "differs (1 = yes)"},
                hovertemplate="%{y} %{x}: %{text}<extra></extra>",
            )
        )  # fmt: skip
    layout: dict[str, Any] = {
        "xaxis": {"title": "token index", "anchor": "y2", "tickformat": "d"},
        "yaxis": {"title": "entropy (nats)", "domain": [0.34, 1], "rangemode": "tozero"},
        "yaxis2": {"title": "run", "domain": [0, 0.24], "type": "category", "autorange": "reversed"},
        "height": 440,
    }
    if diff.index is not None:
        start = max(-0.5, diff.index - BEFORE - 0.5)
        layout["xaxis"]["range"] = [start, min(start + BEFORE + AFTER, tokens["index"].max() + 0.5)]
        line = {"color": ink(theme), "width": 1.5, "dash": "dash"}
        x = diff.index - 0.5
        ends = {"xref": "x", "x0": x, "x1": x, "yref": "paper", "y0": 0, "y1": 1}
        layout["shapes"] = [{"type": "line", "line": line, **ends}]
        first = {"text": f"first difference: {diff.cause}", "x": x, "y": 1, "yref": "paper", "xanchor": "left",
                "yanchor": "top", "showarrow": False, "xshift": 4, "hovertext": inert(diff.detail)}  # fmt: skip
        layout["annotations"] = [first]
    note = "" if across else "no tokens yet"
    where = "" if diff.index is None else f"The runs part at token {diff.index}: {diff.cause}. "
    return figure("branch_diff", f"{a.id}:{b.id}", drawn, where + diff.detail, theme, note, **layout)
