"""The recorder: turns the `Step` of each round into events, kept in memory and, with `out`, in a file as it happens."""

import hashlib
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from workbench.errors import BadInput
from workbench.trace import storage
from workbench.trace.columns import DIGITS, clean, listed, number, pack_layers
from workbench.trace.files import RunFile
from workbench.trace.index import Reached
from workbench.trace.records import Step
from workbench.trace.schema import COUNTS, KEYS, LEVELS, SCHEMA
from workbench.trace.tables import model
from workbench.trace.trace import Trace

Event = dict[str, Any]
OFF = ("token_id", "source")  # columns of tokens that are left at level off, and of nothing else


class Recorder(Sequence):
    """An append-only event log; read, it is the list of its events.

    Every call records all its events or none: they go to the file first, as whole lines, then to the log in one piece,
    and a call that fails or is interrupted changes neither for good. What is in the log is in the file.

    Parameters
    ----------
    run: content of the `run` event; `type`, `schema`, `time`, `id` and `level` are added where they are missing.
    out: file to write as the run goes on, one write of whole lines per round; nobody else may write it meanwhile.
        BadInput where it cannot be written, is being written, or exists already, unless `overwrite`: the old file is
        then replaced once there is a round to put in its place.
    level: `off` keeps tokens, sources, counts and times; `default` all but kept rows; `full` everything.
    copied: events of another run that this one goes on from.
    """

    def __init__(
        self,
        run: Event,
        out: str | Path | None = None,
        level: str = "default",
        overwrite: bool = False,
        copied: Sequence[Event] = (),
    ):
        if level not in LEVELS:
            raise BadInput(f"level: expected one of {', '.join(LEVELS)}, got {level!r}")
        self.level = level
        head = {"type": "run", "schema": SCHEMA, "time": datetime.now(UTC).isoformat(), "level": level}
        head |= clean(run, "run", [])
        head.setdefault("id", hashlib.sha256(storage.encode(head)).hexdigest()[:12])
        self._log: list[Event] = []
        self._trace = Trace(self._log)
        self._sizes = {0: 0}  # events in the log -> bytes in the file that hold them
        self._written = 0.0  # ms that the last round took on its way to the file
        self._file = None if out is None else RunFile(out, overwrite)
        try:
            self._append(head, *copied)
        except BaseException:
            if self._file is not None:
                self._file.remove()
            raise

    @classmethod
    def branch(
        cls,
        parent: Trace,
        rounds: int,
        run: Event,
        out: str | Path | None = None,
        level: str = "default",
        index: int | None = None,
    ) -> "Recorder":
        """A new log that continues `parent` from before its round number `rounds`.

        The parent's rounds before that one are copied, with their cache, decision and rows events; marks and the end
        stay behind. `run["parent"]` names the place: trace, round, and token index (`index`, or else that of the first
        token not copied).
        """
        kept = [e for e in parent.log if e["type"] in ("round", "cache", "decision", "rows") and e["round"] < rounds]
        copied = sum(e.get("emitted", 0) for e in kept)
        place = {"trace": parent.id, "round": rounds, "index": copied if index is None else index}
        return cls({**run, "parent": place}, out, level, copied=kept)

    def round(self, step: Step, ended: str | None = None) -> Event:
        """Record one round, the events raised in it and, where the run `ended` with it, its end; returns the event.

        Raises BadInput where a decoder's columns disagree, or the file cannot be written.
        """
        start = time.perf_counter()
        event, extra = self._event(step), []
        place = {"round": event["round"]}
        if self.level != "off":
            for kind, found in (("decision", step.decisions), ("cache", step.cache_events)):
                extra += [{"type": kind, **place, **clean(content, kind, event["flags"])} for content in found]
        if self.level == "full" and step.rows:
            extra.append({"type": "rows", **place, **clean(step.rows, "rows", event["flags"])})
        event["flags"] = list(dict.fromkeys(event["flags"]))
        if not event["flags"]:
            del event["flags"]
        if ended:
            extra.append(self._end(ended, step.note, event["round"] + 1, self._trace.index.after(event)))
        if step.ms:
            spent = step.ms.get("recording", 0.0) + self._written + (time.perf_counter() - start) * 1000
            event["ms"]["recording"] = number(spent, DIGITS["wall_ms"])
        start = time.perf_counter()
        self._append(event, *extra)
        self._written = (time.perf_counter() - start) * 1000
        return event

    def _event(self, step: Step) -> Event:
        rounds, reached = len(self._trace.index), self._trace.index.last
        groups = {name: columns for name in KEYS if (columns := getattr(step, name))}
        if self.level == "off":
            groups = {"tokens": {name: step.tokens[name] for name in OFF if name in step.tokens}}
        emitted = len(step.tokens.get("token_id", ()))
        if not emitted == len(step.texts) == step.emitted:
            found = f"{emitted} token ids, {len(step.texts)} texts, emitted={step.emitted}"
            raise BadInput(f"round {rounds} has {found}; expected the same number three times")
        if step.texts:
            groups["tokens"] = {**groups.get("tokens", {}), "text": step.texts}
        rest = {"rest": step.rest} if step.texts and step.rest else {}
        flags = list(step.flags)
        event = {"type": "round", "round": rounds, "index": reached.tokens, "mode": step.mode, **rest}
        for name in COUNTS:
            if (value := getattr(step, name)) is not None and value is not False:
                event[name] = clean(value, name, flags)
        event["inputs"] = clean(step.inputs, "inputs", flags)
        event["ms"] = clean(step.ms, "ms", flags, DIGITS["wall_ms"])
        for name, columns in groups.items():
            event[name] = listed(name, columns, flags)
        if self.level != "off":
            for role, columns in step.cache.items():
                facts = model(self._log[0], role)
                event.setdefault("cache", {})[role] = pack_layers(columns, facts, f"cache.{role}", flags)
            event["figures"] = clean(step.figures, "figures", flags)
        return {**{name: value for name, value in event.items() if value != {}}, "flags": flags}

    def mark(self, kind: str, place: Any = None, note: str = "") -> Event:
        """Record that the person or a breakpoint did something: its kind, where, and a note."""
        rounds, place = len(self._trace.index), clean(place, "place", [])
        event = {"type": "mark", "round": rounds, "kind": kind, "place": place, "note": note}
        self._append(event)
        return event

    def end(self, reason: str, message: str = "") -> Event:
        """Record why the run ended, with totals. Saying so again changes nothing until another round is recorded."""
        if self._trace.end is None:
            index = self._trace.index
            self._append(self._end(reason, message, len(index), index.last))
        return self._trace.end

    @staticmethod
    def _end(reason: str, message: str, rounds: int, reached: Reached) -> Event:
        totals = {"rounds": rounds, "tokens": reached.tokens, "drafted": reached.drafted, "accepted": reached.accepted}
        totals["total_ms"] = number(reached.ms)
        return {"type": "end", "reason": reason, "message": message, "totals": totals}

    @property
    def trace(self) -> Trace:
        """The trace so far; it grows with the log."""
        return self._trace

    def close(self) -> None:
        """Let go of the file; what is recorded later stays in memory. Happens by itself when the recorder is gone."""
        if self._file is not None:
            self._file.close()
        self._file = None

    def _append(self, *events: Event) -> None:
        begun = len(self._trace.index) or any(event["type"] == "round" for event in events)
        if self._file is not None and (begun or not self._file.waits):  # an older file goes when there is a round
            size = self._sizes.get(len(self._log), 0)
            lines = b"".join(map(storage.encode, events if size else (*self._log, *events)))
            self._sizes = {len(self._log): size, len(self._log) + len(events): size + len(lines)}
            self._file.put(lines, size, last=events[-1]["type"] == "end")
        self._log.extend(events)  # one step, on which all else that is known of the run depends

    def __len__(self) -> int:
        return len(self._log)

    def __getitem__(self, place):
        return self._log[place]

    def __iter__(self) -> Iterator[Event]:
        return iter(self._log)
