"""The trace: an event log and the tables derived from it."""

import html
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd

from workbench.trace import distributions, perfetto, storage, tables
from workbench.trace.files import write_whole
from workbench.trace.forms import writable
from workbench.trace.index import RoundIndex
from workbench.trace.summary import summarize

Event = dict[str, Any]


def _table(name: str, text: str) -> property:
    def derive(trace: "Trace") -> pd.DataFrame:
        """The table, built again only when the log has grown; a copy, so that writing into it harms nothing."""
        size = len(trace.log)
        if trace._tables.get(name, (0, None))[0] != size:
            trace._tables[name] = size, tables.table(name, trace.log[:size])
        return trace._tables[name][1].copy()

    return property(derive, doc=text)


class Trace:
    """What one run did: its text, its figures (`summary()`) and its tables.

    `tokens`, `rounds`, `drafts`, `hypotheses`, `canvas`, `forwards`, `cache`, `bits`, `reads`, `requests` and `events`
    are DataFrames, always with the columns of `workbench.trace.schema.TABLES`.

    Attributes
    ----------
    log: the events as recorded, the `run` event first; append-only (a live trace grows).
    dropped: one line per thing that could not be read from a damaged file.
    index: where its rounds lie and what they have reached, for whoever follows a run.
    """

    def __init__(self, log: list[Event], dropped: list[str] | None = None):
        self.log = log
        self.dropped = dropped or []
        self.index = RoundIndex(log)
        self._tables: dict[str, tuple[int, pd.DataFrame]] = {}

    @classmethod
    def load(cls, path: str | Path, limit: int | None = None) -> "Trace":
        """Read a trace file or a capsule; see `dropped`. limit: the most bytes that a trace may have, unpacked.

        BadInput where there is none, BadTrace where it is no trace or too new.
        """
        return cls(*storage.read(path, limit))

    def save(self, path: str | Path) -> None:
        """Write the trace as gzipped JSON lines, all or nothing, and press it onto the disk; conventionally `run.wb`.

        BadInput where that is impossible; a file that was there before then still is.
        """
        storage.write(path, self.log)

    def to_parquet(self, folder: str | Path) -> None:
        """Write every table as a Parquet file into a folder, made if needed."""
        storage.write_tables(folder, {name: getattr(self, name) for name in tables.TABLES})

    def to_perfetto(self, path: str | Path) -> None:
        """Write the run's timeline in the Trace Event format, which ui.perfetto.dev and chrome://tracing open.

        BadInput where that is impossible. See `workbench.trace.perfetto` for what it holds.
        """
        write_whole(path, storage.encode(perfetto.events(self)))

    def capsule(self, path: str | Path, title: str | None = None, note: str = "") -> Path:
        """Write the run as one offline HTML file that shows it to anyone and that `Trace.load` reads back.

        title: its heading, by default decoder and start of the prompt; note: what to look for, said below it.
        BadInput where it cannot be written.
        """
        import workbench  # its lazy names: a trace knows no front-end

        return workbench.write_capsule(self, path, title=title, note=note)

    def widget(self):
        """The view of the trace as a Jupyter widget; see `workbench.widgets.TraceWidget`."""
        import workbench

        return workbench.TraceWidget(self)

    @staticmethod
    def tables_from_parquet(folder: str | Path) -> dict[str, pd.DataFrame]:
        """The tables written by `to_parquet`, by name."""
        return storage.read_tables(folder)

    tokens = _table("tokens", "One row per committed token.")
    prompt_tokens = _table("prompt_tokens", "One row per prompt token but the first, where `prompt_rows` asked.")
    rounds = _table("rounds", "One row per round, the prefill included.")
    drafts = _table("drafts", "One row per drafted tree node.")
    hypotheses = _table("hypotheses", "One row per round and hypothesis.")
    canvas = _table("canvas", "One row per round and place of a diffusion canvas.")
    forwards = _table("forwards", "One row per forward pass, in the order they ran.")
    cache = _table("cache", "One row per round, model and layer: slots and bytes by kind.")
    bits = _table("bits", "One row per layer, head and run of positions whose width changed.")
    reads = _table("reads", "One row per round and layer (and head) where a reader chose what to read.")
    requests = _table("requests", "One row per request of a serving replay.")
    events = _table("events", "The cache, decision and mark events, flat.")

    @property
    def run(self) -> dict[str, Any]:
        """The `run` event: what ran, on what, with which settings."""
        return self.log[0]

    @property
    def id(self) -> str:
        """The name of the trace."""
        return str(self.run.get("id") or "")

    @property
    def prompt(self) -> str:
        """The text of the prompt."""
        return self.run.get("prompt_text") or ""

    @property
    def text(self) -> str:
        """The new text: the texts of the tokens, joined."""
        return "".join(text or "" for event in self.steps() for text in event["tokens"].get("text", ()))

    @property
    def token_ids(self) -> list[int]:
        """The ids of the new tokens."""
        return [token for event in self.steps() for token in event["tokens"].get("token_id", ())]

    @property
    def end(self) -> dict[str, Any] | None:
        """The `end` event; None while the run goes on or where it was cut off."""
        for event in reversed(self.log):
            if event["type"] in ("end", "round"):
                return event if event["type"] == "end" else None
        return None

    def steps(self) -> Iterator[Event]:
        """The round events in order, every column a full list: a replay without the model."""
        last = tables.final(self.log)
        return (tables.expand(event, last) for event in self.log if event["type"] == "round")

    def rows_of(self, number: int, empty: bool = False) -> list[dict[str, Any]]:
        """The tokens of a round as plain mappings (columns of tokens and rounds); costs the same in a long run.

        empty: a round without tokens is one row, of the columns of rounds alone.
        """
        return tables.rows([self.run, *self.index.events(number)], self.index.peak(number), empty)

    def last_rows(self) -> list[dict[str, Any]]:
        """The tokens of the last round as plain mappings; an empty list where there is none."""
        return self.rows_of(len(self.index) - 1) if len(self.index) else []

    def summary(self) -> dict[str, Any]:
        """The figures of the run by name; see `workbench.trace.summary`."""
        return summarize(self)

    def divergence(self, reference: "Trace") -> float:
        """Mean KL divergence, nats per token, of this run's distributions from a reference's on the same text.

        Both recorded at level `full`, this one with `force=reference.token_ids`; see `workbench.trace.distributions`.
        """
        return distributions.divergence(self, reference)

    def _headline(self) -> str:
        rounds = sum(event["type"] == "round" for event in self.log)
        name = (self.run.get("decoder") or {}).get("name") or "unnamed decoder"
        state = f"ended: {self.end.get('reason')}" if self.end else "not ended"
        lost = f", {len(self.dropped)} lines dropped" if self.dropped else ""
        return f"{name}, {len(self.token_ids)} tokens in {rounds} rounds, {state}{lost}"

    def __repr__(self) -> str:
        return f"Trace({self._headline()})"

    def _repr_mimebundle_(self, include=None, exclude=None) -> dict[str, str]:
        prompt, text = (html.escape(part) for part in (self.prompt, self.text))
        body = f'<pre style="white-space:pre-wrap"><span style="opacity:.6">{prompt}</span>{text}</pre>'
        whole = f"<div><b>{html.escape(self._headline())}</b>{body}</div>"
        return {"text/plain": repr(self), "text/html": writable(whole)}
