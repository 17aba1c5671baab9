"""The figures of one run, under the names the field uses (vLLM's, pooled over the run's drafts)."""

from collections import Counter
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from workbench.trace.tables import is_target, model

if TYPE_CHECKING:
    from workbench.trace.trace import Trace


def summarize(trace: "Trace") -> dict[str, Any]:
    """All figures of a trace; None where it does not hold what a figure needs (level `off`, no drafts, no baseline).

    - `num_drafts` counts rounds that drafted; `num_draft_tokens` what they drafted, without what lies behind the end of
      the text; `mean_acceptance_length`: tokens that these rounds emitted over their number, the target's own included;
      `mean_acceptance_length_no_bonus` leaves the target's out; `…_per_request` is the mean over requests, here of this
      one.
    - `acceptance_by_position[i]`: share of the drafts whose i-th token was accepted, without one that the end of the
      text cut before; `draft_acceptance_rate`: accepted over drafted tokens; `acceptance_tested`: accepted over tested
      ones, leaving out those behind a rejection.
    - `target_forwards`: target forward passes the tokens cost (a prefill counts only where its round emitted a token);
      `draft_forwards`: passes of the drafting phase.
    - `tokens_per_second` over the same rounds; `time_to_first_token_ms` up to the end of the first that emitted.
    - `recording_ms`: what logging cost, over all rounds; `full_cache_bytes`: of the last round, as in the rounds table.
    - `modelled_speedup`: see `modelled_speedup()`; `measured_speedup`: over the plain run in `run["baseline"]`.
    """
    tokens, rounds, drafts, forwards = trace.tokens, trace.rounds, trace.drafts, trace.forwards
    return {
        "rounds": len(rounds),
        "tokens": len(tokens),
        **_acceptance(rounds, drafts),
        **_forward_counts(trace.run, rounds, forwards),
        "entropy_raw_nats": _spread(tokens["entropy_raw_nats"]),
        "repeated_4gram_share": repeated_4gram_share(trace.token_ids),
        "cache_bytes": {"last": _last(rounds["cache_bytes"], int), "peak": _last(rounds["peak_bytes"], int)},
        "full_cache_bytes": _last(rounds["full_cache_bytes"], int),
        "bits_per_element": _last(rounds["bits_per_element"], float),
        **_speed(trace, rounds),
        "modelled_speedup": modelled_speedup(trace.run, rounds, forwards),
        "guarantee": trace.run.get("guarantee"),
        "verified": trace.run.get("verified"),
        "end_reason": (trace.end or {}).get("reason"),
    }


def _ratio(part: float, whole: float) -> float | None:
    return float(part / whole) if whole else None


def _last(column: pd.Series, kind: type) -> Any:
    known = column.dropna()
    return kind(known.iloc[-1]) if len(known) else None


def _spread(column: pd.Series) -> dict[str, float | None]:
    shares = (0.05, 0.25, 0.5, 0.75, 0.95)
    found = {"mean": column.mean(), **{f"q{100 * share:02.0f}": column.quantile(share) for share in shares}}
    return {name: None if pd.isna(value) else float(value) for name, value in found.items()}


def _acceptance(rounds: pd.DataFrame, drafts: pd.DataFrame) -> dict[str, Any]:
    drafting = rounds[rounds["drafted"] > 0]
    n, accepted = len(drafting), int(drafting["accepted"].sum())
    drafted = int(drafting["drafted"].sum()) - behind_the_end(rounds, drafts)
    deepest = int(drafting[["depth", "accepted"]].max().max()) if n else 0
    length, alone = _ratio(drafting["emitted"].sum(), n), _ratio(accepted, n)
    fates = Counter(drafts["fate"][~behind(rounds, drafts)])
    cut = drafting["emitted"].iloc[-1] if _cut(rounds) else deepest
    return {
        "num_drafts": n,
        "num_draft_tokens": drafted,
        "num_accepted_tokens": accepted,
        "mean_acceptance_length": length,
        "mean_acceptance_length_no_bonus": alone,
        "mean_acceptance_length_per_request": length,
        "mean_acceptance_length_per_request_no_bonus": alone,
        "draft_acceptance_rate": _ratio(accepted, drafted),
        "acceptance_by_position": _reached(drafting["accepted"], deepest, cut),
        "acceptance_tested": _ratio(fates["accepted"], fates["accepted"] + fates["rejected"]),
    }


def _cut(rounds: pd.DataFrame) -> bool:
    """Whether the text ended within a draft: nothing of the target's followed what was accepted in the last round."""
    return len(rounds) > 0 and 0 < rounds["emitted"].iloc[-1] == rounds["accepted"].iloc[-1]


def behind(rounds: pd.DataFrame, drafts: pd.DataFrame) -> pd.Series:
    """Which drafted nodes lie behind the end of the text, where neither their acceptance nor rejection counts."""
    if not _cut(rounds):
        return pd.Series(False, index=drafts.index)
    last = rounds.iloc[-1]
    return (drafts["round"] == last["round"]) & (drafts["depth"] > last["emitted"])


def behind_the_end(rounds: pd.DataFrame, drafts: pd.DataFrame) -> int:
    """How many drafted tokens lie behind the end of the text; of a tree, where its nodes were recorded."""
    if _cut(rounds) and rounds["mode"].iloc[-1] == "chain":
        return int(rounds["drafted"].iloc[-1] - rounds["emitted"].iloc[-1])
    return int(behind(rounds, drafts).sum())


def _reached(accepted: pd.Series, deepest: int, cut: int) -> list[float]:
    """Share of the rounds that accepted more than 0, 1, … `deepest` − 1 tokens; the last round counts up to `cut`."""
    more = len(accepted) - np.bincount(accepted, minlength=deepest).cumsum()
    counted = [len(accepted) - (place >= cut) for place in range(deepest)]
    return [float(count / rounds) for count, rounds in zip(more[:deepest], counted, strict=True) if rounds]


def _paying(rounds: pd.DataFrame) -> pd.DataFrame:
    """The rounds that tokens have to pay for: all but a prefill that emitted nothing."""
    return rounds[(rounds["mode"] != "prefill") | (rounds["emitted"] > 0)]


def _forward_counts(run: dict[str, Any], rounds: pd.DataFrame, forwards: pd.DataFrame) -> dict[str, Any]:
    if forwards.empty:
        return {"tokens_per_target_forward": None, "target_forwards": None, "draft_forwards": None}
    passes = forwards[forwards["round"].isin(_paying(rounds)["round"])]
    paid = sum(is_target(run, phase, role) for phase, role in zip(passes["phase"], passes["model"], strict=True))
    return {
        "tokens_per_target_forward": _ratio(rounds["emitted"].sum(), paid),
        "target_forwards": paid,
        "draft_forwards": int((forwards["phase"] == "draft").sum()),
    }


def repeated_4gram_share(ids: list[int]) -> float:
    """Share of the 4-grams of a text that occurred in it before; 0 where it has none."""
    grams = [tuple(ids[i : i + 4]) for i in range(len(ids) - 3)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def _speed(trace: "Trace", rounds: pd.DataFrame) -> dict[str, float | None]:
    emitting, paying = rounds[rounds["emitted"] > 0], _paying(rounds)
    until_first = rounds.loc[: emitting.index[0], "total_ms"] if len(emitting) else pd.Series(dtype=float)
    per_second = _ratio(1000 * emitting["emitted"].sum(), paying["total_ms"].sum())  # missing times sum to 0: None
    plain = (trace.run.get("baseline") or {}).get("tokens_per_second")
    return {
        "tokens_per_second": per_second,
        "time_to_first_token_ms": float(until_first.sum()) if until_first.notna().any() else None,
        "recording_ms": float(rounds["recording_ms"].sum()) if rounds["recording_ms"].notna().any() else None,
        "measured_speedup": per_second / plain if per_second and plain else None,
    }


def modelled_speedup(run: dict[str, Any], rounds: pd.DataFrame, forwards: pd.DataFrame) -> float | None:
    """Speed-up over plain decoding on a machine whose only limit is memory traffic.

    A forward pass takes time in proportion to the weights and cached keys and values it reads, whatever its number of
    rows. Recorded: all passes but those over the prompt. Plain: for every token they gave one pass of one row through
    the whole model, over the cache that the target pass of its round met and the tokens the round gave before it (in a
    round without one, the latest, or else the first). None where bytes were not recorded or the target never ran.
    """
    passes = forwards[forwards["phase"] != "prefill"]
    cost = passes["weight_bytes"] + passes["kv_read_bytes"].fillna(0)
    of_target = [is_target(run, phase, role) for phase, role in zip(passes["phase"], passes["model"], strict=True)]
    target = passes[pd.Series(of_target, passes.index, dtype=bool)]
    share = layer_shares(run, target)
    row = (target["kv_write_bytes"] / share / target["rows"]).fillna(0)
    weights = _facts(run, target, "row_bytes").fillna(target["weight_bytes"] / share)
    whole = weights + target["kv_read_bytes"].fillna(0) / share - row * (target["rows"].fillna(1) - 1)
    emitted = rounds.set_index("round")["emitted"]
    emitted = emitted[emitted.index.isin(passes["round"]) & (emitted > 0)]

    def at_rounds(values: pd.Series) -> pd.Series:
        known = values.groupby(target["round"]).mean()
        return known.reindex(rounds["round"]).ffill().bfill().reindex(emitted.index)

    plain = (emitted * at_rounds(whole) + emitted * (emitted - 1) / 2 * at_rounds(row)).sum()
    return _ratio(plain, cost.sum()) if cost.notna().all() and plain else None


def layer_shares(run: dict[str, Any], passes: pd.DataFrame) -> pd.Series:
    """The share of its model that every pass ran: of its layers, or where that was not recorded, of its weights."""
    of_weights = passes["weight_bytes"] / _facts(run, passes, "weight_bytes")
    return (passes["layers_run"] / _facts(run, passes, "layers")).fillna(of_weights).clip(upper=1).fillna(1.0)


def _facts(run: dict[str, Any], passes: pd.DataFrame, name: str) -> pd.Series:
    """What the run says about the model of every pass."""
    return passes["model"].map(lambda role: model(run, role).get(name)).astype(float)
