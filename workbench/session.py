"""A session: decode step by step, look back, branch off. Works for every decoder, with no code of the decoder's own.

Rounds are computed and recorded; going back moves a cursor over the record; anything else from there (another token,
another setting) is a fork: a session and a trace of its own. States are snapshotted before every round, which copies
nothing (a store's fork records lengths); beyond `SNAPSHOTS` of them every second one is dropped, and what is missing
is made again from the nearest earlier one, which gives the same result, since decoding is deterministic.
"""

import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from workbench import conditions
from workbench.cache import as_stack
from workbench.decoders import Autoregressive, Decoder, State
from workbench.engine.loading import Model, as_model
from workbench.engine.model import LanguageModel
from workbench.engine.prompt import Prompt, encode_prompt, single_token
from workbench.engine.sampling import Sampling
from workbench.engine.settings import Settings, read_force
from workbench.errors import BadInput, shown
from workbench.provenance import run_event
from workbench.trace import Recorder, Trace
from workbench.trace.tables import expand

__all__ = ["Session", "make_settings"]

SNAPSHOTS = 512
SAMPLING = tuple(f.name for f in fields(Sampling))
Until = str | Callable[[Mapping[str, Any]], bool]


def make_settings(lm: LanguageModel, base: Settings | None = None, **options: Any) -> Settings:
    """`Settings` from the keywords that `decode` and `Session` share, on top of `base`.

    Raises BadInput for an unknown keyword or a value out of bounds.
    """
    base = base or Settings(eos_ids=lm.eos_ids)
    options = dict(options)
    if "cache" in options:
        options["cache"] = as_stack(options["cache"])
    if "ignore_eos" in options:
        ignored = options.pop("ignore_eos")
        if not isinstance(ignored, bool):
            raise BadInput(f"ignore_eos: expected True or False, got {shown(ignored)}")
        options["eos_ids"] = frozenset() if ignored else lm.eos_ids
    forced = options.get("force")
    if "force" in options:
        options["force"] = read_force(forced, lm.vocab_size)
        if not isinstance(forced, Mapping) and options["force"]:
            options.setdefault("max_new_tokens", len(options["force"]))
    chosen = {k: options.pop(k) for k in SAMPLING if k in options}
    known = {f.name for f in fields(Settings)}
    unknown = set(options) - known
    if unknown:
        raise BadInput(
            f"unknown setting {sorted(unknown)[0]!r}; known: {', '.join(sorted({*known, *SAMPLING, 'ignore_eos'}))}"
        )
    sampling = options.pop("sampling", base.sampling)
    if chosen and isinstance(sampling, Sampling):
        sampling = replace(sampling, **chosen)
    settings = replace(base, sampling=sampling, **options)
    read_force(forced, lm.vocab_size, settings.max_new_tokens)  # what was asked for here must be able to happen
    return settings


class Session:
    """Decoding one prompt under one decoder, at the reader's pace.

    Parameters
    ----------
    lm: a `LanguageModel` from `workbench.load`, the name of one, or a transformers model (prompts are ids then).
    prompt: text, token ids or chat messages.
    decoder: a decoder; plain decoding by default.
    out: file that the trace is written to as it happens.
    overwrite: allow `out` to exist.
    settings: temperature, top_k, top_p, min_p, typical_p, processors, cache, max_new_tokens, stop, ignore_eos, seed,
        sample, level, force, prompt_rows; as for `workbench.decode`.

    Raises BadInput, before any work, where something does not fit.
    """

    def __init__(
        self,
        lm: Model,
        prompt: Prompt,
        decoder: Decoder | None = None,
        *,
        out: str | Path | None = None,
        overwrite: bool = False,
        **settings: Any,
    ):
        self.decoder = check_decoder(decoder)
        self.lm = lm = as_model(lm)
        self.settings = make_settings(lm, **settings)
        self.prompt_ids, self.prompt = encode_prompt(lm, prompt)
        state = self.decoder.start(lm, self.prompt_ids, self.settings)
        run = run_event(state, self.decoder, self.prompt)
        self._begin(state, Recorder(run, out, self.settings.level, overwrite=overwrite), parent=None)

    def _begin(self, state: State, recorder: Recorder, parent: "Session | None") -> None:
        self.parent = parent
        self._tip = state
        self._recorder = recorder
        self._first = state
        self._given = self.settings.force if parent is None else parent._given
        self._snapshots: dict[int, State] = {}
        self._stride = 1
        self._events = [event for event in recorder if event["type"] == "round"]
        self._origin = len(self._events)  # rounds copied from the parent
        self._ends: list[int] = []  # tokens committed by the end of each recorded round
        for event in self._events:
            self._ends.append(self.length + event["emitted"])
        self._cursor = self._ends[-1] if self._ends else 0
        self._lock = threading.RLock()
        self._pause = threading.Event()

    # -- what there is ------------------------------------------------------------------------------------------

    @property
    def trace(self) -> Trace:
        """The trace so far; grows with the session."""
        return self._recorder.trace

    @property
    def text(self) -> str:
        """The new text up to the cursor."""
        texts = [text for event in self._events for text in event.get("tokens", {}).get("text", ())]
        return "".join(texts[: self._cursor])

    @property
    def cursor(self) -> int:
        """How many new tokens lie before the cursor."""
        return self._cursor

    @property
    def length(self) -> int:
        """New tokens recorded."""
        return self._ends[-1] if self._ends else 0

    @property
    def rounds(self) -> int:
        """Rounds recorded, the prefill included."""
        return len(self._ends)

    @property
    def ended(self) -> str | None:
        """Why the run is over (`eos`, `length`, `stop`), or None."""
        return self._tip.ended

    @property
    def state(self) -> State:
        """The state at the tip; treat it as read-only."""
        return self._tip

    def round_at(self, index: int) -> int:
        """The round that produced (or, at the tip, will produce) new token `index`."""
        return next((r for r, end in enumerate(self._ends) if index < end), len(self._ends))

    def __repr__(self) -> str:
        where = f", at {self._cursor}" if self._cursor < self.length else ""
        ended = f", ended: {self.ended}" if self.ended else ""
        return f"Session({self.decoder.declared_name}, {self.length} tokens in {self.rounds} rounds{where}{ended})"

    # -- forward ------------------------------------------------------------------------------------------------

    def step(self, by: str = "round") -> dict[str, Any] | None:
        """One round (or one token) forward: over the record where the cursor is behind, else computed.

        Returns the round's event, or None at the end of the run. Ctrl-C, bad numbers and lack of memory leave the
        session at the end of the last complete round.
        """
        if by not in ("round", "token"):
            raise BadInput(f"step(by=…): expected 'round' or 'token', got {by!r}")
        with self._lock:
            if self._cursor >= self.length and (self.ended or not self._compute()):
                return None
            number = self.round_at(self._cursor)
            self._cursor = self._cursor + 1 if by == "token" else self._ends[number]
            return self._event(number)

    def _compute(self) -> bool:
        """One emitting round at the tip (and the prefill before the first)."""
        while not self._tip.ended:
            self._keep(self._tip)
            state = self._tip.fork()
            try:
                step = self.decoder.step(state)
            except Exception as error:
                self._recorder.end("error", str(error).splitlines()[0] if str(error) else type(error).__name__)
                error.trace = self.trace
                raise
            self._tip = state
            self._events.append(self._recorder.round(step))
            self._ends.append(self.length + step.emitted)
            if state.ended:
                self._recorder.end(state.ended)
            if step.emitted:
                return True
        return False

    def _event(self, number: int) -> dict[str, Any]:
        return expand(self._events[number])

    def __iter__(self) -> Iterator[dict[str, Any]]:
        while (event := self.step()) is not None:
            yield event

    def run(self, until: Until | None = None, rounds: int | None = None) -> dict[str, Any] | None:
        """Step until the run ends, `until` holds, `rounds` rounds were done, or `pause` is called.

        until: a condition on the columns of the tokens and rounds tables, such as `"entropy > 3 and rank > 1"`, or a
            callable on such a row (a mapping). The cursor stops right after the token that fulfils it.

        Returns the row that fulfilled the condition, else None. Ctrl-C pauses, and is raised on.
        """
        holds = conditions.parse(until) if isinstance(until, str) else until
        self._pause.clear()
        done = 0
        while not self._pause.is_set() and (rounds is None or done < rounds):
            before = self._cursor
            event = self.step()
            if event is None:
                return None
            done += 1
            if holds is None:
                continue
            for row in self._rows(event):
                if row["index"] >= before and holds(row):
                    with self._lock:
                        self._cursor = row["index"] + 1
                        self._recorder.mark("breakpoint", {"index": row["index"]}, getattr(holds, "text", "callable"))
                    return row
        return None

    def _rows(self, event: dict[str, Any]) -> list[dict[str, Any]]:
        """Rows of the tokens of one round, with the columns of its round."""
        if event["round"] == self.rounds - 1:
            return self.trace.last_rows()
        tokens, rounds = self.trace.tokens, self.trace.rounds
        whole = rounds[rounds["round"] == event["round"]].iloc[0].to_dict()
        return [{**whole, **row} for row in tokens[tokens["round"] == event["round"]].to_dict("records")]

    def pause(self) -> None:
        """Make a `run` in another thread stop after its current round."""
        self._pause.set()

    # -- back and sideways --------------------------------------------------------------------------------------

    def back(self, steps: int = 1, by: str = "round") -> int:
        """Move the cursor back by rounds or tokens; returns the new cursor. Nothing recorded is lost."""
        if steps < 0 or by not in ("round", "token"):
            raise BadInput(f"back: expected a number of steps and by='round' or 'token', got {steps!r}, {by!r}")
        with self._lock:
            target = self._cursor
            for _ in range(steps):
                earlier = [end for end in (0, *self._ends) if end < target]
                target = max(target - 1, 0) if by == "token" else max(earlier, default=0)
            return self.jump(target)

    def jump(self, to: int) -> int:
        """Put the cursor behind the first `to` new tokens (0 to `length`); returns it."""
        if isinstance(to, bool) or not isinstance(to, int) or not 0 <= to <= self.length:
            raise BadInput(f"jump: expected a token number in [0, {self.length}], got {to!r}")
        with self._lock:
            if to != self._cursor:
                self._cursor = to
                self._recorder.mark("cursor", {"index": to})
            return to

    def replay(self) -> Iterator[dict[str, Any]]:
        """The recorded rounds from the start, the cursor moving along; nothing is computed."""
        for number in range(self.rounds):
            self._cursor = self._ends[number]
            yield self._event(number)

    def fork(
        self,
        at: int | None = None,
        token: int | str | None = None,
        *,
        decoder: Decoder | None = None,
        out: str | Path | None = None,
        **changes: Any,
    ) -> "Session":
        """A branch from before new token `at` (default: the cursor): another token there, another setting, or both.

        token: id or text of one token, forced at `at`. decoder, changes: another decoder or settings from there on.
        Where `at` is inside a round, its tokens before `at` are forced in the branch; without any change the round is
        simply done again. Shares all caches with this session until one of the two writes.

        Raises BadInput where `at` is outside the record, the text is not one token, or a setting does not fit.
        """
        at = self._cursor if at is None else at
        if isinstance(at, bool) or not isinstance(at, int) or not 0 <= at <= self.length:
            raise BadInput(f"fork: expected a token number in [0, {self.length}], got {at!r}")
        chosen = None if token is None else single_token(self.lm, token)
        if decoder is not None:
            check_decoder(decoder)
        settings = make_settings(self.lm, self.settings, **changes)
        if at >= settings.max_new_tokens:
            raise BadInput(f"fork: token {at} lies beyond max_new_tokens={settings.max_new_tokens}; raise it to go on")
        with self._lock:
            number = self.round_at(at)
            owner = self._owner(number)
            ids = self.trace.token_ids
            start = self._ends[number - 1] if number else 0
            branch = object.__new__(Session)
            branch.lm, branch.prompt, branch.prompt_ids = self.lm, self.prompt, self.prompt_ids
            branch.decoder = decoder or self.decoder
            given = settings.force if "force" in changes else self._given
            again = (
                (chosen is None or ids[at : at + 1] == [chosen])
                and (branch.decoder, given) == (owner.decoder, owner._given)
                and replace(settings, force={}) == replace(owner.settings, force={})
            )
            if not again:
                forced = {i: ids[i] for i in range(start, at)} | ({} if chosen is None else {at: chosen})
                settings = replace(settings, force={**given, **forced})
            branch.settings = settings
            state = self._refit(owner._state_before(number), owner.decoder, branch.decoder, settings)
            run = run_event(state, branch.decoder, self.prompt)
            recorder = Recorder.branch(self.trace, number, run, out, settings.level, index=at)
            branch._begin(state, recorder, parent=self)
            branch._given = given
            return branch

    def _owner(self, number: int) -> "Session":
        """The session that computed round `number`: this one, or the ancestor it was copied from."""
        session = self
        while session.parent is not None and number < session._origin:
            session = session.parent
        return session

    def _refit(self, state: State, before: Decoder, decoder: Decoder, settings: Settings) -> State:
        """The state under other settings or another decoder; caches of models both use are kept."""
        decoder.check(self.lm, settings)
        caches = before.caches(state.settings), decoder.caches(settings)
        if decoder == before and caches[0] == caches[1]:
            state.settings, state.ended = settings, None
            return state
        fresh = decoder.start(self.lm, self.prompt_ids, settings)
        fresh.tokens, fresh.text, fresh.rounds = state.tokens, state.text, state.rounds
        for role, lane in state.lanes.items():
            same = caches[0].get(role) == caches[1].get(role)
            if same and role in fresh.lanes and fresh.lanes[role].model is lane.model:
                fresh.lanes[role] = lane
        return fresh

    def _keep(self, state: State) -> None:
        """Snapshot the state before its next round; thin them out beyond the cap."""
        if state.rounds % self._stride == 0:
            self._snapshots[state.rounds] = state
        if len(self._snapshots) > SNAPSHOTS:
            self._stride *= 2
            self._snapshots = {r: s for r, s in self._snapshots.items() if r % self._stride == 0}

    def _state_before(self, number: int) -> State:
        """A state of its own as it was before round `number`, one that this session computed or will compute."""
        if number >= self._tip.rounds:
            return self._tip.fork()
        earlier = [r for r in self._snapshots if r <= number]
        state = (self._snapshots[max(earlier)] if earlier else self._first).fork()
        while state.rounds < number:
            self.decoder.step(state)
        return state

    def widget(self):
        """The session as a Jupyter widget with buttons; see `workbench.widgets.SessionWidget`."""
        from workbench.widgets import SessionWidget

        return SessionWidget(self)

    def end(self, reason: str = "interrupted", message: str = "") -> None:
        """Close the trace of a run that is not going on."""
        self._recorder.end(reason, message)


def check_decoder(decoder: Decoder | None) -> Decoder:
    """The decoder, plain decoding by default; BadInput where it is none."""
    if decoder is None:
        return Autoregressive()
    if isinstance(decoder, str):
        from workbench.declare import build

        return build("decoder", decoder)
    if not isinstance(decoder, Decoder):
        raise BadInput(f"decoder: expected one such as workbench.Speculative(), got {shown(decoder)}")
    return decoder
