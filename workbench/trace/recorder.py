"""The recorder: turns the `Step` of each round into events, kept in memory and, with `out`, in a file as it happens."""

import hashlib
import os
import weakref
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from workbench.errors import BadInput
from workbench.trace import storage
from workbench.trace.packing import DIGITS, clean, number, pack, pack_layers
from workbench.trace.records import Step
from workbench.trace.schema import COUNTS, KEYS, LEVELS, SCHEMA
from workbench.trace.tables import model
from workbench.trace.trace import Trace

__all__ = ["Recorder"]

Event = dict[str, Any]
# columns left at level off
OFF = {"tokens": ("token_id", "source"), "prompt": (), "drafts": (), "forwards": (), "bits": ()}


class Recorder(Sequence):
    """An append-only event log; read, it is the list of its events.

    Parameters
    ----------
    run: content of the `run` event; `type`, `schema`, `time`, `id` and `level` are added where they are missing.
    out: file to write as the run goes on, one write of whole lines per round. BadInput where it exists already
        (unless `overwrite`) or cannot be written.
    level: `off` keeps tokens, sources, counts and times; `default` all but kept rows; `full` everything.
    """

    def __init__(self, run: Event, out: str | Path | None = None, level: str = "default", overwrite: bool = False):
        self._start(run, [], out, level, overwrite)

    @classmethod
    def branch(
        cls,
        parent: Trace,
        rounds: int,
        run: Event,
        out: str | Path | None = None,
        level: str = "default",
        index: int | None = None,
        overwrite: bool = False,
    ) -> "Recorder":
        """A new log that continues `parent` from before its round number `rounds`.

        The parent's rounds before that one are copied, with their cache, decision and rows events; marks and the end
        stay behind. `run["parent"]` names the place: trace, round, and token index (`index`, or else that of the first
        token not copied).
        """
        kept = [e for e in parent.log if e["type"] in ("round", "cache", "decision", "rows") and e["round"] < rounds]
        copied = sum(e.get("emitted", 0) for e in kept)
        place = {"trace": parent.id, "round": rounds, "index": copied if index is None else index}
        recorder = cls.__new__(cls)
        recorder._start({**run, "parent": place}, kept, out, level, overwrite)
        return recorder

    def _start(self, run: Event, copied: list[Event], out: str | Path | None, level: str, overwrite: bool) -> None:
        if level not in LEVELS:
            raise BadInput(f"level: expected one of {', '.join(LEVELS)}, got {level!r}")
        self.level = level
        head = {"type": "run", "schema": SCHEMA, "time": datetime.now(UTC).isoformat(), "level": level}
        head |= clean(run, "run", [])
        head.setdefault("id", hashlib.sha256(storage.encode(head)).hexdigest()[:12])
        self._log: list[Event] = [head, *copied]
        self._rounds = sum(event["type"] == "round" for event in copied)
        self._tokens = sum(event.get("emitted", 0) for event in copied)
        self._ended = False
        self.out = None if out is None else Path(out)
        self._file = None if out is None else _open(self.out, overwrite)
        self._closing = None if self._file is None else weakref.finalize(self, os.close, self._file)
        self._trace = Trace(self._log)
        self._write(self._log)

    def round(self, step: Step) -> Event:
        """Record one round and the events raised in it; returns the round event.

        Raises BadInput where a decoder's columns disagree.
        """
        event = self._event(step)
        number, extra = event["round"], []
        if self.level != "off":
            for kind, found in (("decision", step.decisions), ("cache", step.cache_events)):
                extra += [{"type": kind, "round": number, **clean(content, kind, event["flags"])} for content in found]
        if self.level == "full" and step.rows:
            extra.append({"type": "rows", "round": number, **clean(step.rows, "rows", event["flags"])})
        event["flags"] = list(dict.fromkeys(event["flags"]))
        if not event["flags"]:
            del event["flags"]
        self._rounds += 1
        self._tokens += len(step.texts)
        self._ended = False
        self._append(event, *extra)
        return event

    def _event(self, step: Step) -> Event:
        groups = {name: getattr(step, name) for name in KEYS}
        if self.level == "off":
            groups = {name: {c: v for c, v in groups[name].items() if c in kept} for name, kept in OFF.items()}
        emitted = len(groups["tokens"].get("token_id", ()))
        if not emitted == len(step.texts) == step.emitted:
            found = f"{emitted} token ids, {len(step.texts)} texts, emitted={step.emitted}"
            raise BadInput(f"round {self._rounds} has {found}; expected the same number three times")
        if step.texts:
            groups["tokens"] = {**groups["tokens"], "text": step.texts}
        rest = {"rest": step.rest} if step.texts and step.rest else {}
        flags = list(step.flags)
        event = {"type": "round", "round": self._rounds, "index": self._tokens, "mode": step.mode, **rest}
        for name in COUNTS:
            if (value := getattr(step, name)) is not None and value is not False:
                event[name] = clean(value, name, flags)
        event["ms"] = clean(step.ms, "ms", flags, DIGITS["wall_ms"])
        for name, columns in groups.items():
            event[name] = pack(name, columns, flags)
        if self.level != "off":
            for role, columns in step.cache.items():
                facts = model(self._log[0], role)
                event.setdefault("cache", {})[role] = pack_layers(columns, facts, f"cache.{role}", flags)
            event["figures"] = clean(step.figures, "figures", flags)
        return {**{name: value for name, value in event.items() if value != {}}, "flags": flags}

    def mark(self, kind: str, place: Any = None, note: str = "") -> Event:
        """Record that the person or a breakpoint did something: its kind, where, and a note."""
        event = {"type": "mark", "round": self._rounds, "kind": kind, "place": clean(place, "place", []), "note": note}
        self._append(event)
        return event

    def end(self, reason: str, message: str = "") -> Event:
        """Record why the run ended, with totals. Saying so again changes nothing until another round is recorded."""
        if not self._ended:
            found = [event for event in self._log if event["type"] == "round"]
            totals: dict[str, Any] = {"rounds": len(found), "tokens": self._tokens}
            totals |= {name: sum(event.get(name, 0) for event in found) for name in ("drafted", "accepted")}
            totals["total_ms"] = number(sum(event.get("ms", {}).get("total") or 0.0 for event in found))
            self._append({"type": "end", "reason": reason, "message": message, "totals": totals})
            self._ended = True
        return next(event for event in reversed(self._log) if event["type"] == "end")

    @property
    def trace(self) -> Trace:
        """The trace so far; it grows with the log."""
        return self._trace

    def close(self) -> None:
        """Let go of the file; what is recorded later stays in memory. Happens by itself when the recorder is gone."""
        if self._closing:
            self._closing()
        self._file = None

    def _append(self, *events: Event) -> None:
        self._log.extend(events)
        self._write(events)

    def _write(self, events: Sequence[Event]) -> None:
        if self._file is None:
            return
        lines = b"".join(map(storage.encode, events))
        while lines:
            lines = lines[os.write(self._file, lines) :]

    def __len__(self) -> int:
        return len(self._log)

    def __getitem__(self, place):
        return self._log[place]

    def __iter__(self) -> Iterator[Event]:
        return iter(self._log)


def _open(path: Path, overwrite: bool) -> int:
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | getattr(os, "O_BINARY", 0)
    flags |= os.O_TRUNC if overwrite else os.O_EXCL
    try:
        return os.open(path, flags, 0o666)
    except FileExistsError:
        raise BadInput(f"{path} exists already; choose another file, or allow it to be overwritten") from None
    except OSError as error:
        raise BadInput(f"cannot write {path}: {error.strerror}; choose an existing folder you may write to") from None
