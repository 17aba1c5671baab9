"""A session: decode step by step, look back, branch off. Works for every decoder, with no code of the decoder's own.

Rounds are computed, recorded, and only then taken for done: what the session knows of its rounds follows from the
record, which grows a round at a time, whole or not at all. So an error, a full disk or Ctrl-C, wherever it falls,
leaves a session that can go on, with no token lost or shown twice.

Going back moves a cursor over the record, in which every round is a place, also one that appends nothing; anything else
from there (another token, another setting) is a fork: a session and a trace of its own. States are snapshotted before
every round, which copies nothing (a store's fork records lengths); beyond `SNAPSHOTS` of them every second one is
dropped, and what is missing is made again from the nearest earlier one, which gives the same result, since decoding is
deterministic.
"""

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from workbench import conditions
from workbench.cursor import Cursor, Place
from workbench.decoders import Autoregressive, Decoder
from workbench.editing import Edits, refuse_reading, restore
from workbench.engine.prompt import Prompt, encode_prompt, need_tokenizer, single_token
from workbench.engine.settings import Settings, make_settings, with_keywords
from workbench.engine.settings import keywords as keywords
from workbench.engine.text import token_text
from workbench.errors import BadInput, shown
from workbench.models.loading import Model, as_model
from workbench.provenance import run_event
from workbench.rounds import State
from workbench.trace import Recorder, Trace
from workbench.trace.tables import expand, final, rest
from workbench.values import bounded

SNAPSHOTS = 512
TEXTS = frozenset({"text", "bytes"})  # columns that a tokenizer fills
Until = str | Callable[[Mapping[str, Any]], bool]


@with_keywords
class Session(Edits, Cursor):
    """Decoding one prompt under one decoder, at the reader's pace.

    Parameters
    ----------
    lm: a `LanguageModel` from `workbench.load`, the name of one, or a transformers model (prompts are ids then).
    prompt: text, token ids or chat messages.
    decoder: a decoder; plain decoding by default.
    out: file that the trace is written to as it happens.
    overwrite: allow `out` to exist.
    cached: file of `save_cache`; what it holds of the prompt is not read again.
    settings: by keyword, of
        KEYWORDS

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
        cached: str | Path | None = None,
        **settings: Any,
    ):
        self.decoder = check_decoder(decoder)
        self.lm = lm = as_model(lm)
        self.settings = make_settings(lm, **settings)
        self.prompt_ids, self.prompt = encode_prompt(lm, prompt)
        state = self.decoder.start(lm, self.prompt_ids, self.settings)
        run = run_event(state, self.decoder, self.prompt)
        if cached is not None:
            refuse_reading(self.decoder, self.settings, "cached")
            run |= restore(state, cached)
        self._begin(state, Recorder(run, out, self.settings.level, overwrite=overwrite), parent=None)

    def _begin(self, state: State, recorder: Recorder, parent: "Session | None") -> None:
        Cursor.__init__(self)
        self.parent = parent
        self._recorder = recorder
        self._origin = self.rounds  # rounds copied from the parent
        self._tips = {self.rounds: state}  # rounds recorded -> the state behind them
        self._first = state
        self._given = self.settings.force if parent is None else parent._given
        self._snapshots: dict[int, State] = {}
        self._stride = 1
        self._place = self._before(self.rounds)
        self._pause = threading.Event()

    # -- what there is ------------------------------------------------------------------------------------------

    @property
    def trace(self) -> Trace:
        """The trace so far; grows with the session."""
        return self._recorder.trace

    @property
    def text(self) -> str:
        """The new text up to the cursor."""
        return self.text_from(0) + self.unfinished

    def text_from(self, start: int, stop: int | None = None) -> str:
        """The new text from new token `start` up to `stop`, by default the cursor; for whoever shows it as it grows,
        and `unfinished` at the end."""
        texts: list[str] = []
        index, stop = self.trace.index, self.cursor if stop is None else stop
        for number in range(index.at(start), min(index.at(stop - 1) + 1, len(index))):
            before = index.start(number)
            found = index.event(number).get("tokens", {}).get("text", ())
            texts += found[max(start - before, 0) : stop - before]
        return "".join(texts)

    @property
    def reader(self) -> Callable[[int], str] | None:
        """What gives the text of a token id; None where the model has no tokenizer."""
        tokenizer = getattr(self.lm, "tokenizer", None)
        return None if tokenizer is None else partial(token_text, tokenizer)

    @property
    def prompt_again(self) -> Prompt:
        """What gives this prompt's ids again: the prompt itself where it does, else the ids."""
        try:
            same = encode_prompt(self.lm, self.prompt)[0] == self.prompt_ids
        except BadInput:
            same = False
        return self.prompt if same else self.prompt_ids

    @property
    def unfinished(self) -> str:
        """What the end of the run adds to the last token's text, where the cursor is there: a character cut short."""
        return rest(final(self._recorder)) if self.cursor == self.length else ""

    @property
    def ended(self) -> str | None:
        """Why the run is over (`eos`, `length`, `stop`), or None."""
        return self.state.ended

    @property
    def state(self) -> State:
        """The state at the tip; treat it as read-only."""
        return self._tips[self.rounds]

    def __repr__(self) -> str:
        where = "" if self.at_tip else f", at {self.cursor}"
        ended = f", ended: {self.ended}" if self.ended else ""
        return f"Session({self.decoder.declared_name}, {self.length} tokens in {self.rounds} rounds{where}{ended})"

    # -- forward ------------------------------------------------------------------------------------------------

    def _ahead(self) -> int | None:
        """The round that the next step goes on in, computed where need be; None at the end of the run.

        Ctrl-C, bad numbers and lack of memory leave the session at the end of the last complete round.
        """
        return super()._ahead() if not self.at_tip or self._compute() else None

    def _compute(self) -> bool:
        """One round at the tip (and the prefill before the first); False at the end of the run."""
        while not (tip := self.state).ended:
            self._keep(tip)
            state, rounds = tip.fork(), self.rounds
            try:
                step = self.decoder.step(state)
                self._tips = {rounds: tip, rounds + 1: state}
                self._recorder.round(step, state.ended)  # once it is in the log, and not before, the tip has moved
            except Exception as error:
                self._failed(error)
                raise
            if self.trace.index.is_place(rounds):
                return True
        return False

    def read_prompt(self, others: "Sequence[Session]" = ()) -> None:
        """Read the prompt, for other sessions as well that have just begun with the same: they share its cache."""
        tip = self.state
        if self.rounds or len(tip.tokens) < 2:
            return
        self._keep(tip)
        state = tip.fork()
        try:
            step = self.decoder.step(state)
            if "sequences" in step.forwards:
                step.forwards["sequences"] = [len(others) + 1 if others else None] * len(step.forwards["phase"])
            for runner in state.runners.values() if state.strategy.name == "stock" else ():
                runner.store.share()
            for session in (self, *others):
                own, begun = state.fork(), session.state
                own.settings, own.strategy = begun.settings, begun.strategy
                session._tips = {0: begun, 1: own}
                session._recorder.round(step, state.ended)
        except Exception as error:
            self._failed(error)
            raise

    def _failed(self, error: Exception) -> None:
        """Name the error in the trace, as far as that can still be written, and hand the trace over with it."""
        with suppress(BadInput):
            self._recorder.end("error", str(error).splitlines()[0] if str(error) else type(error).__name__)
        error.trace = self.trace

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return iter(self.step, None)

    def run(self, until: Until | None = None, rounds: int | None = None) -> dict[str, Any] | None:
        """Step until the run ends, `until` holds, `rounds` rounds were done, or `pause` is called.

        until: a condition on the columns of the tokens and rounds tables, such as `"entropy > 3 and rank > 1"`, or a
            callable on such a row (a mapping). The cursor stops right after the token that fulfils it. A round without
            tokens is asked once, by its columns of the rounds table alone, and the cursor stops right after the round.
        rounds: those without tokens count, too.

        Returns the row that fulfilled the condition, else None. Ctrl-C pauses the run and is raised again.
        """
        holds = until if until is None or callable(until) else conditions.parse(until)
        if TEXTS & getattr(holds, "names", frozenset()):
            need_tokenizer(self.lm, "until", holds.text)
        rounds = None if rounds is None else bounded("rounds", rounds, 0)

        def stops(row: Mapping[str, Any]) -> bool:
            """Whether the condition holds; if so, it is on record before the cursor moves."""
            if found := holds(row):
                index = self.cursor if row["index"] is None else row["index"]
                place = {"index": index, "round": row["round"]}
                self._recorder.mark("breakpoint", place, getattr(holds, "text", "callable"))
            return found

        self._pause.clear()
        done = 0
        while not self._pause.is_set() and (rounds is None or done < rounds):
            number, row = self.advance("round", None if holds is None else stops)
            if number is None or row is not None:
                return row
            done += 1
        return None

    def pause(self) -> None:
        """Make a `run` in another thread stop after its current round."""
        self._pause.set()

    # -- back and sideways --------------------------------------------------------------------------------------

    def _moved(self, place: Place) -> None:
        self._recorder.mark("cursor", {"index": place.token, "round": place.round})

    def replay(self) -> Iterator[dict[str, Any]]:
        """The recorded rounds from the start, the cursor moving along; nothing is computed."""
        for number in range(self.rounds):
            self._place = self._before(number + 1)
            yield expand(self.trace.index.event(number), final(self._recorder))

    def fork(
        self,
        at: int | None = None,
        token: int | str | None = None,
        *,
        decoder: Decoder | None = None,
        out: str | Path | None = None,
        **changes: Any,
    ) -> "Session":
        """A branch from the cursor, or from where `jump(at)` goes: another token there, another setting, or both.

        at: new tokens before the place. token: id or text of one token, forced at `at`. decoder, changes: another
        decoder or settings from there on. Where `at` is inside a round, its tokens before `at` are forced in the
        branch; without any change the round is simply done again. A change never meets a hypothesis longer than `at`
        tokens: the branch leaves before the round that had one, and the tokens from there to `at` are forced. Shares
        all caches with this session until one of the two writes.

        Raises BadInput where `at` is outside the record, the text is not one token, or a setting does not fit.
        """
        decoder = self.decoder if decoder is None else check_decoder(decoder)
        settings = make_settings(self.lm, self.settings, **changes)
        with self._lock:
            place = self._place
            if at is not None:
                place = self._behind(bounded("fork", at, 0, self.length, "a token number"))
            at, index = place.token, self.trace.index
            if at >= settings.max_new_tokens:
                most = settings.max_new_tokens
                raise BadInput(f"fork: token {at} lies beyond max_new_tokens={most}; raise it to go on")
            chosen = None if token is None else single_token(self.lm, token, self.prompt_ids, self.trace.token_ids, at)
            number = self._passing(place.round)
            owner = self._owner(number)
            branch = object.__new__(Session)
            branch.lm, branch.prompt, branch.prompt_ids = self.lm, self.prompt, self.prompt_ids
            branch.decoder = decoder
            given = settings.force if "force" in changes else self._given
            again = (
                (chosen is None or index.ids(at, at + 1) == [chosen])
                and (branch.decoder, given) == (owner.decoder, owner._given)
                and replace(settings, force={}) == replace(owner.settings, force={})
            )
            if not again:
                while index.reach(number) > at:
                    number -= 1
                owner, start = self._owner(number), index.start(number)
                forced = dict(enumerate(index.ids(start, at), start)) | ({} if chosen is None else {at: chosen})
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
        if getattr(state.runners["target"].store, "kept", ()):
            refuse_reading(decoder, settings, "fork")
        caches = before.caches(state.settings), decoder.caches(settings)
        if decoder == before and caches[0] == caches[1]:
            return decoder.adopt(state, settings)
        fresh = decoder.start(self.lm, self.prompt_ids, settings)
        fresh.tokens, fresh.text = state.tokens, state.text
        fresh.rounds, fresh.spent_us = state.rounds, state.spent_us
        for role, runner in state.runners.items():
            other = fresh.runners.get(role)
            same = caches[0].get(role) == caches[1].get(role)
            if same and other and (other.model, other.prompt) == (runner.model, runner.prompt):
                fresh.runners[role] = runner
            elif runner.contexts is not None:
                raise BadInput("fork: contexts are attached, and another cache would read one text; keep the cache")
        return decoder.adopt(fresh, settings)

    def _keep(self, state: State) -> None:
        """Snapshot the state before its next round; thin them out beyond the cap."""
        if state.rounds % self._stride == 0:
            self._snapshots[state.rounds] = state
        if len(self._snapshots) > SNAPSHOTS:
            wider = 2 * self._stride
            self._snapshots = {r: s for r, s in self._snapshots.items() if r % wider == 0}
            self._stride = wider

    def _state_before(self, number: int) -> State:
        """A state of its own as it was before round `number`, one that this session computed or will compute."""
        if number >= self.rounds:
            return self.state.fork()
        earlier = [r for r in self._snapshots if r <= number]
        state = (self._snapshots[max(earlier)] if earlier else self._first).fork()
        while state.rounds < number:
            self.decoder.step(state, self.trace.index.event(state.rounds).get("inputs", {}))
        return state

    def widget(self):
        """The session as a Jupyter widget with buttons; see `workbench.widgets.SessionWidget`."""
        from workbench.widgets import SessionWidget

        return SessionWidget(self)

    def open_in_app(self, browser: bool | None = None) -> str:
        """Serve the app on this session, to this machine alone, until this process ends; gives its address.

        Both hands stay on it: whoever steps it waits for the round that the other has begun. browser: open one; by
        default where there is a screen.
        """
        import workbench  # its lazy names: a session knows no front-end

        return workbench.launch(port=0, browser=browser, wait=False, trace=self).address

    def end(self, reason: str = "interrupted", message: str = "") -> None:
        """Close the trace of a run that is not going on."""
        for name, text in (("reason", reason), ("message", message)):
            if not isinstance(text, str):
                raise BadInput(f"end: {name}: expected text, got {shown(text)}")
        with self._lock:
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
