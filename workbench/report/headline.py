"""A run in ten figures: what the command line and the app say first."""

from typing import Any

from workbench.trace import Trace, tables

__all__ = ["badge", "headline", "run_line", "size"]

PROMISES = {  # of guarantees: the badge, and what it says
    "exact": ("exact", "the text is that of plain decoding, token by token"),
    "seeded": ("exact", "the text is that of plain decoding with the same seed, draw by draw"),
    "distribution": ("exact in distribution", "texts follow plain decoding's distribution, but not its draws"),
}
OWN = ("○ its own distribution", "this decoder promises no other decoder's text")


def size(count: float) -> str:
    """A number of bytes in the unit in which it reads well."""
    for power, unit in ((3, "GiB"), (2, "MiB"), (1, "KiB")):
        if count >= 1024**power:
            return f"{count / 1024**power:.2f} {unit}"
    return f"{count:.0f} B"


def headline(trace: Trace, summary: dict[str, Any] | None = None) -> dict[str, str]:
    """Label -> text of the main figures of a trace; `summary` saves computing it again. "–" where nothing is known."""
    known = summary or trace.summary()

    def shown(value: float | None, form: str) -> str:
        return "–" if value is None else format(value, form)

    drafted, accepted = known["num_draft_tokens"], known["num_accepted_tokens"]
    peak, entropy = known["cache_bytes"]["peak"], known["entropy_raw_nats"]["mean"]
    return {
        "decoder": str((trace.run.get("decoder") or {}).get("name") or "unnamed"),
        "guarantee": str(known["guarantee"] or "–"),
        "tokens": str(known["tokens"]),
        "rounds": str(known["rounds"]),
        "tokens / target forward": shown(known["tokens_per_target_forward"], ".2f"),
        "accepted": f"{accepted} of {drafted} ({accepted / drafted:.0%})" if drafted else "nothing drafted",
        "mean entropy": "–" if entropy is None else f"{entropy:.2f} nats",
        "cache": "–" if peak is None else size(peak),
        "bits / element": shown(known["bits_per_element"], ".3g"),
        "tokens / s": shown(known["tokens_per_second"], ".1f"),
        "end": str(known["end_reason"] or "not ended"),
    }


def run_line(trace: Trace) -> dict[str, Any]:
    """What the view of a run says above its text: `badge` and `line`, a sentence of its figures."""
    known = trace.summary()
    tokens, per = known["tokens"], known["tokens_per_target_forward"]
    drafted, accepted = known["num_draft_tokens"], known["num_accepted_tokens"]
    said = [f"{tokens} tokens" + (f" in {tokens / per:.0f} target forwards, {per:.2f} per forward" if per else "")]
    said += [f"{accepted / drafted:.0%} of {drafted} drafts accepted"] if drafted else []
    if known["tokens_per_second"]:
        said.append(f"{known['tokens_per_second']:.0f} tokens/s")
    if known["end_reason"]:
        said.append(f"Ended: {known['end_reason']}")
    return {"badge": badge(trace), "line": ". ".join(said) + "."}


def badge(trace: Trace) -> dict[str, Any]:
    """What a run promises of its text: {text, tip, caution}. A cache that keeps less than all makes it approximate."""
    run = trace.run
    guarantee, verified = run.get("guarantee"), ", ".join(run.get("verified") or ())
    checked = f"; checked by {verified}" if verified else "; not checked for this run"
    if guarantee not in PROMISES:
        text, tip = ("≈ lossy", "texts may differ from plain decoding's") if guarantee == "lossy" else OWN
        return {"text": text, "tip": tip + checked, "caution": guarantee == "lossy"}
    short, words = PROMISES[guarantee]
    if not run.get("cache"):
        return {"text": f"= {short}", "tip": words + checked, "caution": False}
    if not _cache_changed(trace):
        tip = f"the cache kept everything at full width in this run; {words}{checked}"
        return {"text": "○ cache never acted", "tip": tip, "caution": False}
    tip = f"under this cache, which keeps less than all, {words}{checked}; the full cache is not measured"
    return {"text": f"≈ {short} under its cache", "tip": tip, "caution": True}


def _cache_changed(trace: Trace) -> bool:
    """Whether keys or values were evicted, merged, moved or narrowed in a run."""
    for event in trace.log:
        if event["type"] == "cache" or (event["type"] == "round" and event.get("bits")):
            return True
    rounds = trace.rounds
    return bool((rounds["bits_per_element"].dropna() < 0.9 * _width(trace)).any())


def _width(trace: Trace) -> float:
    return tables.model(trace.run, "target").get("kv_bits") or 0
