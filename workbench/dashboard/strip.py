"""The token strip in Gradio: one ES module, wrapped; and the JSON text it draws."""

import json
from functools import cache
from pathlib import Path
from typing import Any

import gradio as gr
import pandas as pd

from workbench.trace import Trace
from workbench.trace.schema import SOURCES
from workbench.views.palette import colours

__all__ = ["payload", "script", "token_strip"]

WEB = Path(__file__).parent.parent / "web"
PROMPT_TAIL = 600  # characters of the prompt shown before the tokens
# name -> column, label, unit, lower and upper end of the scale (None: of the data)
SIGNALS = {
    "entropy": ("entropy_raw_nats", "entropy", "nats", 0, None),
    "sampled": ("entropy_sampled_nats", "sampled entropy", "nats", 0, None),
    "surprisal": ("surprisal_nats", "surprisal", "nats", 0, None),
    "p": ("p_raw", "probability", "", 0, 1),
    "cache": ("cache_bytes", "cache", "bytes", None, None),
    "bits": ("bits_per_element", "bits / element", "bits", 0, None),
}


@cache
def script() -> str:
    """The module as the body of a function: its `export` words removed, then mounted on the component's element."""
    module = (WEB / "strip.js").read_text(encoding="utf-8").replace("export ", "")
    return f"""{module}
const strip = mount(element, {{ onPick: (index) => trigger('pick', {{ index }}) }});
watch('value', () => strip.update(props.value));
strip.update(props.value);
"""


def token_strip() -> gr.HTML:
    """The component; its value is what `payload` returns, its `pick` event carries the index of a token."""
    return gr.HTML(
        value="", html_template="", js_on_load=script(), apply_default_css=False, padding=False, elem_id="strip"
    )


def payload(trace: Trace, cursor: int, selected: int | None, follow: bool = False) -> str:
    """The strip's data as JSON text: columns over the tokens. `follow` scrolls to the cursor."""
    tokens = trace.tokens
    known = tokens.merge(trace.rounds[["round", "drafted", "cache_bytes", "bits_per_element"]], on="round", how="left")
    sources = [source or "unknown" for source in tokens["source"]]
    tail = trace.prompt[-PROMPT_TAIL:]
    data: dict[str, Any] = {
        "prompt": tail if tail == trace.prompt else f"…{tail}",
        "cursor": cursor,
        "selected": selected,
        "follow": follow,
        "text": tokens["text"].fillna("").tolist(),
        "source": sources,
        "kind": list(map(kind, sources, known["drafted"])),
        "round": tokens["round"].tolist(),
        "sources": colours("source", list(dict.fromkeys(sources))),
        "signals": {
            name: {"label": label, "unit": unit, "low": low, "high": high, "values": numbers(known[column])}
            for name, (column, label, unit, low, high) in SIGNALS.items()
        },
    }
    return json.dumps(data, separators=(",", ":"))


def kind(source: str, drafted: int) -> str:
    """How the strip underlines a token: by its source; in a round that drafted, any other name is a drafter's."""
    return source if source in SOURCES else "drafted" if drafted else "plain"


def numbers(column: pd.Series) -> list[float | None]:
    return [None if pd.isna(value) else round(value, 4) for value in column.tolist()]
