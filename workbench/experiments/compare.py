"""Several decoders on the same prompts, interleaved in one process, as one table."""

from collections.abc import Mapping, Sequence
from statistics import mean, median
from typing import Any

import pandas as pd
from tqdm.auto import tqdm

from workbench.decoders import Decoder
from workbench.engine.model import LanguageModel
from workbench.engine.prompt import Prompt
from workbench.errors import BadInput
from workbench.session import Session, check_decoder
from workbench.trace import Trace

__all__ = ["compare"]


def compare(
    lm: LanguageModel,
    prompts: Prompt | Sequence[Prompt],
    arms: Mapping[str, Decoder | None],
    *,
    repeats: int = 1,
    progress: bool = True,
    **settings: Any,
) -> pd.DataFrame:
    """Decode every prompt under every arm, one after the other, and return a row per arm.

    Parameters
    ----------
    prompts: one prompt or several. arms: name -> decoder (None is plain decoding); the first is the baseline.
    repeats: runs of each prompt and arm; the fastest counts for the time.
    settings: as for `workbench.decode`.

    Columns: `claim`, `prompts`, `tokens`, `tokens_per_target_forward`, `draft_acceptance_rate`,
    `entropy_raw_nats`, `cache_bytes` (peak of a run), `bits_per_element`, `repeated_4gram_share`, `same_text` (share of
    prompts with the baseline's tokens), `ms_per_token` (median over prompts) and `speedup` (median over prompts of
    baseline time over arm time per token, both measured here, interleaved). The traces are in `.attrs["traces"]`.

    Ctrl-C ends the comparison and returns the prompts finished by then. Raises BadInput before any work where a prompt,
    an arm or a setting does not fit.
    """
    prompts = [prompts] if _single(prompts) else list(prompts)
    if not prompts or not arms:
        raise BadInput("compare: expected at least one prompt and one arm")
    decoders = {name: check_decoder(decoder) for name, decoder in arms.items()}
    for decoder in decoders.values():  # everything is checked before anything runs
        for prompt in prompts:
            Session(lm, prompt, decoder, **settings)
    runs: dict[str, list[Trace]] = {name: [] for name in arms}
    try:
        bar = tqdm(total=len(prompts) * len(arms) * repeats, disable=not progress, desc="compare", unit="run")
        with bar:
            for prompt in prompts:
                found = {name: _best(lm, prompt, decoder, repeats, bar, settings) for name, decoder in decoders.items()}
                for name, trace in found.items():
                    runs[name].append(trace)
    except KeyboardInterrupt:
        if not next(iter(runs.values())):
            raise
    first = next(iter(runs.values()))
    table = pd.DataFrame([{"arm": name, **_row(traces, first)} for name, traces in runs.items()]).set_index("arm")
    table.attrs["traces"] = runs
    return table


def _single(prompts: Any) -> bool:
    """True for one prompt: text, ids, or chat messages."""
    return (
        isinstance(prompts, str)
        or hasattr(prompts, "tolist")
        or isinstance(prompts[0] if prompts else "", int | Mapping)
    )


def _best(lm, prompt, decoder, repeats: int, bar: tqdm, settings: dict) -> Trace:
    """The fastest of `repeats` runs."""
    best = None
    for _ in range(repeats):
        session = Session(lm, prompt, decoder, **settings)
        for _ in session:
            pass
        bar.update()
        if best is None or _decode_ms(session.trace) < _decode_ms(best):
            best = session.trace
    return best


def _decode_ms(trace: Trace) -> float:
    """Milliseconds per new token after the prefill."""
    spent = sum(event["ms"]["total"] for event in trace.log if event["type"] == "round" and event["mode"] != "prefill")
    return spent / max(1, len(trace.token_ids))


def _row(traces: list[Trace], baseline: list[Trace]) -> dict[str, Any]:
    summaries = [trace.summary() for trace in traces]

    def pooled(numerator: str, denominator: str) -> float | None:
        below = sum(s[denominator] or 0 for s in summaries)
        return sum(s[numerator] or 0 for s in summaries) / below if below else None

    def average(values: list) -> float | None:
        known = [value for value in values if value is not None]
        return mean(known) if known else None

    times = [_decode_ms(trace) for trace in traces]
    ratios = [_decode_ms(base) / time for base, time in zip(baseline, times, strict=True)]
    return {
        "claim": traces[0].run["claim"],
        "prompts": len(traces),
        "tokens": sum(s["tokens"] for s in summaries),
        "tokens_per_target_forward": pooled("tokens", "target_forwards"),
        "draft_acceptance_rate": pooled("num_accepted_tokens", "num_draft_tokens"),
        "entropy_raw_nats": average([(s["entropy_raw_nats"] or {}).get("mean") for s in summaries]),
        "cache_bytes": max((s["cache_bytes"] or {}).get("peak") or 0 for s in summaries),
        "bits_per_element": average([s["bits_per_element"] for s in summaries]),
        "repeated_4gram_share": average([s["repeated_4gram_share"] for s in summaries]),
        "same_text": mean(t.token_ids == b.token_ids for t, b in zip(traces, baseline, strict=True)),
        "ms_per_token": median(times),
        "speedup": median(ratios),
    }
