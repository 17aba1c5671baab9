"""A run in ten figures: what the command line and the app say first."""

from typing import Any

from workbench.trace import Trace

__all__ = ["headline", "size"]


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
