"""A run in ten figures: what the command line and the app say first."""

from typing import Any

from workbench.trace import Trace, tables

CLAIMS = {  # what a guarantee, kept or found, makes of a text: the badge, and what it says
    "exact": ("= exact", "the text is that of plain decoding, token by token"),
    "seeded": ("= exact", "the text is that of plain decoding with the same seed, draw by draw"),
    "numeric": ("= exact up to near-ties", "the text is that of plain decoding but for near-ties, decided by rounding"),
    "distribution": ("= exact in distribution", "texts follow plain decoding's distribution, but not its draws"),
    "lossy": ("≈ lossy", "texts may keep tokens that plain decoding would not"),
    "own": ("≈ own distribution", "samples from a distribution of its own"),
}
LOSING = ("evict", "merge", "narrow", "drop")  # what a cache stack does that attention can tell


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
        "end": _end(trace, known) or "not ended",
    }


def _end(trace: Trace, known: dict[str, Any]) -> str:
    """Why a run is over, and what its text lacks."""
    reason, note = str(known["end_reason"] or ""), (trace.end or {}).get("message")
    return f"{reason} ({note})" if note and reason != "error" else reason


def run_line(trace: Trace) -> dict[str, Any]:
    """What the view of a run says above its text: `badge` and `line`, a sentence of its figures."""
    known = trace.summary()
    tokens, per = known["tokens"], known["tokens_per_target_forward"]
    drafted, accepted = known["num_draft_tokens"], known["num_accepted_tokens"]
    said = [f"{tokens} tokens" + (f" in {tokens / per:.0f} target forwards, {per:.2f} per forward" if per else "")]
    said += [f"{accepted / drafted:.0%} of {drafted} drafts accepted"] if drafted else []
    if known["tokens_per_second"]:
        said.append(f"{known['tokens_per_second']:.0f} tokens/s")
    if kept := (trace.run.get("edited") or {}).get("kept"):
        said.append(f"Edited: {sum(count for _, count, _ in kept)} tokens of the cache kept")
    if contexts := (trace.run.get("attached") or {}).get("contexts"):
        said.append(f"{len(contexts)} contexts read apart")
    if end := _end(trace, known):
        said.append(f"Ended: {end}")
    return {"badge": badge(trace), "line": ". ".join(said) + "."}


def badge(trace: Trace) -> dict[str, Any]:
    """What a run promises of its text, as `claim` says it."""
    run = trace.run
    return claim(run.get("guarantee"), bool(run.get("cache")), acted(trace), ", ".join(run.get("verified") or ()))


def claim(
    guarantee: str | None, cache: bool, acted: bool, verified: str, differs: bool = False, apart: str = "not measured"
) -> dict[str, Any]:
    """What a text is to plain decoding's over the full cache, as the parts of a badge: {text, tip, caution}.

    A cache stack that acted makes an exact decoder approximate; one that did not says nothing about itself. verified:
    what has checked the guarantee. differs: texts were seen to differ. apart: how far it is from the full cache.
    """
    text, tip = CLAIMS.get(guarantee, CLAIMS["own"])
    if text.startswith("=") and acted:
        text, tip = "≈ exact under its cache", f"under this cache, itself lossy, {tip}; against the full cache {apart}"
    elif text.startswith("=") and differs:
        text, tip = "≠ texts differ", f"{tip}; yet some differ: near-ties decided by rounding, or a fault; Verify tells"
    elif text.startswith("=") and cache:
        text, tip = "○ cache never acted", f"it left out and rounded nothing, so nothing is said about it; {tip}"
    checked = f"checked by {verified}" if verified else "not checked"
    return {"text": text, "tip": f"{tip}; {checked}", "caution": text[0] in "≈≠"}


def acted(trace: Trace) -> bool:
    """Whether a run's cache stack left something out or unread, or stored it in fewer bits than the model does; or its
    cache was read for another text.

    True, too, where the trace does not tell: recorded at level `off`, or damaged.
    """
    if trace.run.get("inexact") is not None:
        return True
    if not trace.run.get("cache"):
        return False
    if trace.run.get("level") == "off" or trace.dropped:
        return True
    width = tables.model(trace.run, "target").get("kv_bits")

    def lossy(event: dict[str, Any]) -> bool:
        narrow = (event.get("bits") or width) < width if width else event.get("op") == "quantize"
        return event.get("op") in LOSING or narrow

    seen = any(
        event["type"] == "cache" and (event.get("model") or "target") == "target" and lossy(event)
        for event in trace.log
    )
    reads = trace.reads
    seen = seen or bool(((reads["read"] < reads["held"]) & (reads["model"] != "draft")).any())
    return seen or bool((trace.rounds["bits_per_element"].dropna() < 0.9 * (width or 0)).any())
