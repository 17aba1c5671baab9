"""Does drafting pay? What a round costs in plain steps, against the tokens it emits."""

import textwrap
from dataclasses import dataclass

import numpy as np
import plotly.graph_objects as go

from workbench.trace import Trace
from workbench.trace.summary import layer_shares
from workbench.views.figure import figure, offered
from workbench.views.palette import PALETTE

DRAWN = 256  # most lengths on the line


@dataclass(frozen=True)
class BreakEven:
    """The costs and gains of drafting in one run; None where the trace does not hold what a number needs.

    Attributes
    ----------
    drafted, emitted: tokens per drafting round.
    plain_ms: one target pass over one row, the cost of a plain step; `extrapolated` where no such pass was recorded and
        the line through the passes over more rows gave it.
    score_ms: one target pass over a draft. draft_ms: the drafter, per round.
    draft_cost: c, time to draft one token over a plain step. score_cost: verify(K) over verify(1).
    chain: every draft was a chain.
    predicted: emitted / (drafted · c + verify(K) / verify(1)), the speed-up if nothing else took time.
    measured: tokens per second over those of a plain run.
    """

    drafted: float | None = None
    emitted: float | None = None
    plain_ms: float | None = None
    score_ms: float | None = None
    draft_ms: float | None = None
    draft_cost: float | None = None
    score_cost: float | None = None
    chain: bool = True
    extrapolated: bool = False
    predicted: float | None = None
    measured: float | None = None

    @property
    def cost(self) -> float | None:
        """Plain steps that a round costs: the tokens it must emit to break even."""
        return None if self.predicted is None else self.drafted * self.draft_cost + self.score_cost

    @property
    def why(self) -> str:
        """Why the run is faster or slower than plain decoding, in one sentence."""
        if self.drafted is None:
            return "Nothing was drafted, so there is nothing to gain or to lose."
        if self.predicted is None:
            return "The trace does not say what a plain step takes; give a plain run of the same model as the baseline."
        gain, how = (self.predicted, "predicted") if self.measured is None else (self.measured, "measured")
        drafting, scoring = self.drafted * self.draft_cost, self.score_cost
        word = "faster" if gain > 1 else "slower"
        parts = f"{drafting:.2f} to draft, {scoring:.2f} to score"
        facts = f"a round emits {self.emitted:.2f} tokens and costs as much as {self.cost:.2f} plain steps ({parts})"
        if gain > 1:
            gained = "it emits more than it costs"
            reason = gained if self.predicted > 1 else "the plain run spends more beside its forward passes"
        elif self.predicted > 1:
            reason = "what is beside the forward passes takes the gain away"
        elif self.drafted + 1 <= self.cost:
            largest = "drafting" if drafting > scoring - 1 else "scoring several rows at once"
            reason = f"{largest} is so dear here that even full acceptance would not repay it"
        else:
            reason = f"too few drafted tokens are accepted: it needs {self.cost:.2f}"
        return f"{gain:.2f} times the speed of plain decoding ({how}), so {word}: {facts}; {reason}."


def break_even_numbers(trace: Trace, baseline: Trace | None = None) -> BreakEven:
    """The numbers of `break_even`; `baseline`, a plain run of the same model, gives the plain step's cost and speed."""
    rounds, summary = trace.rounds, trace.summary()
    drafting = rounds[rounds["drafted"] > 0]
    if drafting.empty:
        return BreakEven(measured=summary["measured_speedup"])
    passes = _target_passes(trace)
    scoring = passes[passes["round"].isin(drafting["round"])].groupby("round")["wall_ms"].sum()
    score = float(scoring.median()) if len(scoring) else None
    plain, extrapolated = _plain_ms(passes, baseline)
    draft = _draft_ms(trace, drafting["round"])
    drafted, emitted = float(drafting["drafted"].mean()), float(drafting["emitted"].mean())
    known = None not in (score, plain, draft)
    c, v = (draft / drafted / plain, score / plain) if known else (None, None)
    measured = summary["measured_speedup"]
    if baseline is not None:
        own, other = summary["tokens_per_second"], baseline.summary()["tokens_per_second"]
        measured = own / other if own and other else None
    return BreakEven(
        drafted=drafted, emitted=emitted, plain_ms=plain, score_ms=score, draft_ms=draft, draft_cost=c, score_cost=v,
        chain=bool((drafting["depth"] == drafting["drafted"]).all()), extrapolated=extrapolated,
        predicted=emitted / (drafted * c + v) if known else None, measured=measured,
    )  # fmt: skip


def _target_passes(trace: Trace):
    """The target's forwards; not those shared with other prompts, whose time is not that of their own rows."""
    passes = trace.forwards
    passes = passes[(passes["phase"] == "target") & (passes["wall_ms"] > 0) & passes["sequences"].isna()]
    return passes.assign(share=layer_shares(trace.run, passes))


def _plain_ms(passes, baseline: Trace | None) -> tuple[float | None, bool]:
    """Time of a pass of one row through the whole target, and whether it had to be extrapolated."""
    sources = [passes] if baseline is None else [_target_passes(baseline), passes]
    for found in sources:
        found = found[found["share"] == 1]
        single = found["wall_ms"][found["rows"] == 1]
        if len(single):
            return float(single.median()), False
    known = passes.dropna(subset=["rows"]).assign(wall_ms=passes["wall_ms"] / passes["share"])
    if known["rows"].nunique() < 2:
        return None, False
    slope, start = np.polyfit(known["rows"], known["wall_ms"], 1)
    return (float(start + slope), True) if start + slope > 0 else (None, False)


def _draft_ms(trace: Trace, rounds) -> float | None:
    """Mean time of the drafter per drafting round: as recorded, else that of its forward passes."""
    recorded = trace.rounds["draft_ms"][trace.rounds["round"].isin(rounds)]
    if recorded.notna().any():
        return float(recorded.mean())
    passes = trace.forwards
    own = passes["wall_ms"][(passes["phase"] == "draft") & passes["round"].isin(rounds)]
    return float(own.sum() / len(rounds)) if own.notna().any() else None


@offered("break-even")
def break_even(trace: Trace, baseline: Trace | None = None, theme: str | None = None) -> go.Figure:
    """Speed-up over plain decoding against the length of the draft; above 1, drafting pays.

    Line: what these costs would give at other lengths, were every drafted token accepted with the same chance (chains
    only; the chance is the one that gives this run's tokens per round; the cost of scoring grows with the rows).
    Points: this run, predicted from its costs and, where a plain run is known, measured. `baseline` as for
    `break_even_numbers`; its costs and its `why` are the figure's description.
    """
    found = break_even_numbers(trace, baseline)
    signal, drawn = PALETTE["signal"], []
    if found.predicted is not None:
        longest = int(max(8, 2 * found.drafted))
        lengths = np.unique(np.linspace(0, longest, min(longest, DRAWN) + 1).astype(int))
        if found.chain:
            drawn.append(
                go.Scatter(
                    x=lengths.tolist(), y=_curve(found, lengths).tolist(), mode="lines",
                    name="predicted, other lengths", line={"color": signal["drafted"], "width": 2},
                    hovertemplate="%{x} tokens drafted: %{y:.2f} times<extra></extra>",
                )
            )  # fmt: skip
        drawn.append(_point(found.drafted, found.predicted, "predicted", signal["reference"], "circle-open"))
        if found.measured is not None:
            drawn.append(_point(found.drafted, found.measured, "measured", PALETTE["arm"]["b"], "diamond"))
        line = {"color": signal["reference"], "dash": "dash", "width": 1.5}
        even = {"mode": "lines", "name": "break-even", "line": line, "hoverinfo": "skip"}
        drawn.append(go.Scatter(x=[0, longest], y=[1, 1], **even))
    top = max([1.0, *(max(y for y in one.y) for one in drawn)])
    axes = {
        "xaxis": {"title": "drafted tokens per round", "rangemode": "tozero"},
        "yaxis": {"title": "speed-up over plain decoding (times)", "range": [0, 1.15 * top]},
    }
    words, note = (_costs(found), "") if drawn else (found.why, "<br>".join(textwrap.wrap(found.why, 34)))
    return figure("break_even", trace.id, drawn, words, theme, note, **axes)


def _point(x: float, y: float, name: str, color: str, symbol: str) -> go.Scatter:
    marker = {"size": 13, "color": color, "symbol": symbol, "line": {"width": 2.5, "color": color}}
    text = "%{y:.2f} times<extra>" + name + "</extra>"
    return go.Scatter(x=[x], y=[y], mode="markers", name=name, marker=marker, hovertemplate=text)


def _costs(found: BreakEven) -> str:
    how = ", extrapolated" if found.extrapolated else ""
    scoring = f"verify(1) = {found.plain_ms:.3g} ms{how}; verify(K) = {found.score_ms:.3g} ms"
    return f"{found.why} Costs: c = {found.draft_cost:.2f}; {scoring}."


def _curve(found: BreakEven, lengths: np.ndarray) -> np.ndarray:
    """Predicted gain at other draft lengths."""
    chance = _chance(found.drafted, found.emitted)
    emitted = np.array([_expected(chance, k) for k in lengths])
    return emitted / (lengths * found.draft_cost + 1 + (found.score_cost - 1) * lengths / found.drafted)


def _expected(chance: float, length: float) -> float:
    """Tokens per round: (1 − αᴷ⁺¹) / (1 − α), Leviathan et al., "Fast Inference from Transformers via Speculative
    Decoding", equation 1."""
    return length + 1 if chance >= 1 else (1 - chance ** (length + 1)) / (1 - chance)


def _chance(length: float, emitted: float) -> float:
    """The chance of acceptance that gives so many tokens per round, by bisection."""
    low, high = 0.0, 1.0
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if _expected(middle, length) < emitted else (low, middle)
    return (low + high) / 2
