"""What the command line draws: text made harmless, tables, and a run replayed in the terminal."""

import sys
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    import pandas as pd

    from workbench.trace import Trace

MARKS = {"accepted": ("[", "]"), "bonus": ("", "+"), "residual": ("", "!"), "target": ("", "")}
COLOURS = {"accepted": "32", "bonus": "36", "residual": "31", "rejected": "2;9", "note": "2"}
SHORT = {  # columns shown by `workbench show --table`, where the table has more than fit a line
    "tokens": ("index", "round", "text", "source", "entropy_raw_nats", "p_raw", "rank", "surprisal_nats", "cut_by"),
    "rounds": ("round", "mode", "drafted", "accepted", "emitted", "stop_reason", "total_ms", "context", "cache_bytes",
               "bits_per_element"),
    "drafts": ("round", "node", "parent", "depth", "text", "drafter", "q", "p", "fate", "reason"),
    "forwards": ("round", "phase", "model", "rows", "context", "wall_ms", "flops", "implementation"),
    "cache": ("round", "model", "layer", "live_slots", "bytes", "tier", "bits_effective"),
}  # fmt: skip
LONGEST = 3600.0  # seconds that a round may take when it is shown again


def escaped(text: str) -> str:
    """Text as it may be printed: all but new lines and tabs that a terminal would act on is written as an escape."""
    return "".join(c if c.isprintable() or c in "\n\t" else c.encode("unicode_escape").decode() for c in text)


def one_line(text: Any) -> str:
    """Text as it may be printed inside a line; everything but text as it is."""
    return repr(text)[1:-1] if isinstance(text, str) else text


def table(name: str, frame: "pd.DataFrame", rows: int) -> str:
    """A table of a trace for the terminal: its main columns, the first `rows` rows (all with 0), texts escaped."""
    short = frame[list(SHORT.get(name, frame.columns))]
    short = short.head(rows) if rows else short
    short = short.dropna(axis="columns", how="all") if len(short) else short
    short = short.map(one_line)
    whole = f"\n… {len(frame) - len(short)} more rows (--rows 0 shows all)" if len(short) < len(frame) else ""
    return short.to_string(index=False, float_format=lambda value: f"{value:.4g}", na_rep="") + whole


def replay(trace: "Trace", out: TextIO, by: str = "round", speed: float = 1.0, colour: bool | None = None) -> None:
    """Show a recorded run again, at `speed` times its own pace (infinite: at once), without the model.

    by: "round", a line per round with what was drafted, kept and refused; or "token", the text as it grew.
    colour: None follows the terminal; without colours the marks of `legend` carry the meaning.
    """
    colour = out.isatty() if colour is None else colour
    print(_paint(legend(by), "note", colour), file=out)
    if by == "token":
        print(_paint(escaped(trace.prompt), "note", colour), end="", file=out, flush=True)
    for event in trace.steps():
        time.sleep(min(max((event.get("ms") or {}).get("total") or 0.0, 0.0) / 1000 / speed, LONGEST))
        if by == "round":
            print(_round(event, colour), file=out, flush=True)
        else:
            print("".join(_tokens(event, colour, escaped)), end="", file=out, flush=True)
    if by == "token":
        print(file=out)


def legend(by: str) -> str:
    refused = "  ~refused~ drafted, not kept" if by == "round" else ""
    return f"[drafted] kept as drafted   token+ after a draft kept whole   token! in place of a refused one{refused}"


def _paint(text: str, kind: str, colour: bool) -> str:
    return f"\x1b[{COLOURS[kind]}m{text}\x1b[0m" if colour and kind in COLOURS and text else text


def _tokens(event: dict[str, Any], colour: bool, form) -> Iterator[str]:
    columns = event["tokens"]
    texts = columns.get("text", ())
    for source, text in zip(columns.get("source", [None] * len(texts)), texts, strict=True):
        kind = source if source in MARKS else "accepted"
        before, after = MARKS[kind]
        yield _paint(f"{before}{form(text or '')}{after}", kind, colour)


def _round(event: dict[str, Any], colour: bool) -> str:
    drafts = event["drafts"]
    fates = zip(drafts.get("text", ()), drafts.get("fate", ()), strict=False)
    refused = [one_line(text or "") for text, fate in fates if fate != "accepted"]
    counts = f"{event.get('accepted', 0)}/{event['drafted']}" if event.get("drafted") else ""
    entropies = [value for value in event["tokens"].get("entropy_raw_nats", ()) if value is not None]
    mean = f"H {sum(entropies) / len(entropies):5.2f}" if entropies else " " * 7
    kept = "".join(_tokens(event, colour, one_line))
    lost = _paint(" ".join(f"~{text}~" for text in refused), "rejected", colour)
    return f"{event['round']:4d} {event['mode']:7s} {counts:>5s}  {mean}  {kept}{'   ' if lost else ''}{lost}"


def stream(text: str) -> None:
    """Print a piece of the text as it comes."""
    sys.stdout.write(escaped(text))
    sys.stdout.flush()
