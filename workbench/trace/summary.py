"""The figures of one run, under the names the field uses (vLLM's, pooled over the run's drafts)."""

from collections import Counter
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from workbench.trace.tables import is_target

if TYPE_CHECKING:
    from workbench.trace.trace import Trace

__all__ = ["repeated_4gram_share", "summarize"]


def summarize(trace: "Trace") -> dict[str, Any]:
    """All figures of a trace; None where it does not hold what a figure needs (level `off`, no drafts, no baseline).

    - `num_drafts` counts rounds that drafted; `mean_acceptance_length` = 1 + accepted / drafts counts the token every
      round gets from the target, `mean_acceptance_length_no_bonus` leaves it out; `…_per_request` is the mean over
      requests, here of this one.
    - `acceptance_by_position[i]`: share of the drafts whose i-th token was accepted; `draft_acceptance_rate`: accepted
      over drafted tokens; `acceptance_tested`: accepted over tested ones, leaving out those behind a rejection.
    - `target_forwards`: target forward passes the tokens cost (a prefill counts only where its round emitted a token);
      `draft_forwards`: passes of the drafting phase.
    - `tokens_per_second` over the rounds that emitted; `time_to_first_token_ms` up to the end of the first such round.
    - `modelled_speedup`: see `modelled_speedup()`; `measured_speedup`: over the plain run in `run["baseline"]`.
    """
    tokens, rounds, drafts, forwards = trace.tokens, trace.rounds, trace.drafts, trace.forwards
    return {
        "rounds": len(rounds),
        "tokens": len(tokens),
        **_acceptance(rounds, drafts),
        **_forward_counts(tokens, forwards),
        "entropy_raw_nats": _spread(tokens["entropy_raw_nats"]),
        "repeated_4gram_share": repeated_4gram_share(trace.token_ids),
        "cache_bytes": {"last": _last(rounds["cache_bytes"], int), "peak": _last(rounds["peak_bytes"], int)},
        "bits_per_element": _last(rounds["bits_per_element"], float),
        **_speed(trace, rounds),
        "modelled_speedup": modelled_speedup(trace.run, rounds, forwards),
        "claim": trace.run.get("claim"),
        "verified": trace.run.get("verified"),
        "end_reason": (trace.end or {}).get("reason"),
    }


def _ratio(part: float, whole: float) -> float | None:
    return float(part / whole) if whole else None


def _last(column: pd.Series, kind: type) -> Any:
    known = column.dropna()
    return kind(known.iloc[-1]) if len(known) else None


def _spread(column: pd.Series) -> dict[str, float | None]:
    known = column.dropna()
    found = {"mean": float(known.mean()) if len(known) else None}
    for share in (0.05, 0.25, 0.5, 0.75, 0.95):
        found[f"q{100 * share:02.0f}"] = float(known.quantile(share)) if len(known) else None
    return found


def _acceptance(rounds: pd.DataFrame, drafts: pd.DataFrame) -> dict[str, Any]:
    drafting = rounds[rounds["drafted"] > 0]
    n, drafted, accepted = len(drafting), int(drafting["drafted"].sum()), int(drafting["accepted"].sum())
    deepest = int(drafting[["depth", "accepted"]].max().max()) if n else 0
    length = 1 + accepted / n if n else None
    fates = Counter(drafts["fate"])
    return {
        "num_drafts": n,
        "num_draft_tokens": drafted,
        "num_accepted_tokens": accepted,
        "mean_acceptance_length": length,
        "mean_acceptance_length_no_bonus": _ratio(accepted, n),
        "mean_acceptance_length_per_request": length,
        "mean_acceptance_length_per_request_no_bonus": _ratio(accepted, n),
        "draft_acceptance_rate": _ratio(accepted, drafted),
        "acceptance_by_position": _reached(drafting["accepted"], deepest),
        "acceptance_tested": _ratio(fates["accepted"], fates["accepted"] + fates["rejected"]),
    }


def _reached(accepted: pd.Series, deepest: int) -> list[float]:
    """Share of the rounds that accepted more than 0, 1, … `deepest` − 1 tokens."""
    more = len(accepted) - np.bincount(accepted, minlength=deepest).cumsum()
    return [float(count / len(accepted)) for count in more[:deepest]]


def _forward_counts(tokens: pd.DataFrame, forwards: pd.DataFrame) -> dict[str, Any]:
    if forwards.empty:
        return {"tokens_per_target_forward": None, "target_forwards": None, "draft_forwards": None}
    paid = int(tokens["target_forwards"].sum())
    return {
        "tokens_per_target_forward": _ratio(len(tokens), paid),
        "target_forwards": paid,
        "draft_forwards": int((forwards["phase"] == "draft").sum()),
    }


def repeated_4gram_share(ids: list[int]) -> float:
    """Share of the 4-grams of a text that occurred in it before; 0 where it has none."""
    grams = [tuple(ids[i : i + 4]) for i in range(len(ids) - 3)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def _speed(trace: "Trace", rounds: pd.DataFrame) -> dict[str, float | None]:
    emitting = rounds[rounds["emitted"] > 0]
    until_first = rounds.loc[: emitting.index[0], "total_ms"] if len(emitting) else pd.Series(dtype=float)
    per_second = _ratio(1000 * emitting["emitted"].sum(), emitting["total_ms"].sum())  # missing times sum to 0: None
    plain = (trace.run.get("baseline") or {}).get("tokens_per_second")
    return {
        "tokens_per_second": per_second,
        "time_to_first_token_ms": float(until_first.sum()) if until_first.notna().any() else None,
        "measured_speedup": per_second / plain if per_second and plain else None,
    }


def modelled_speedup(run: dict[str, Any], rounds: pd.DataFrame, forwards: pd.DataFrame) -> float | None:
    """Speed-up over plain decoding on a machine whose only limit is memory traffic.

    A forward pass takes time in proportion to the weights and cached keys and values it reads, whatever its number of
    rows. Recorded: all passes but those over the prompt. Plain: one target pass for every token they gave, reading what
    the target pass of its round read (in a round without one, the latest, or else the first). None where bytes were
    not recorded or the target never ran.
    """
    passes = forwards[forwards["phase"] != "prefill"]
    cost = passes["weight_bytes"] + passes["kv_read_bytes"].fillna(0)
    target = [is_target(run, phase, role) for phase, role in zip(passes["phase"], passes["model"], strict=True)]
    per_pass = cost[target].groupby(passes["round"][target]).mean()
    emitted = rounds.set_index("round")["emitted"]
    emitted = emitted[emitted.index.isin(passes["round"]) & (emitted > 0)]
    plain = (emitted * per_pass.reindex(rounds["round"]).ffill().bfill().reindex(emitted.index)).sum()
    return _ratio(plain, cost.sum()) if cost.notna().all() and plain else None
