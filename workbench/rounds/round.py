"""One round: its forwards, the distributions of their logits, the tokens it appends, and its record."""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from copy import copy
from types import MappingProxyType
from typing import Any, Protocol

import torch

from workbench.cache.protocol import CacheStore
from workbench.cache.splice import side_by_side
from workbench.control.gate import Reading
from workbench.engine.bundle import hub_here
from workbench.engine.distribution import Distribution
from workbench.engine.model import ForwardRequest, LanguageModel, Output
from workbench.engine.settings import holds
from workbench.engine.text import Detokenizer
from workbench.engine.vocabulary import readable
from workbench.rounds.costs import Reads, forward_costs, held_bytes, ledgers
from workbench.rounds.state import Contexts, Hypothesis, State
from workbench.trace.records import Step

PREFILL_CHUNK = 512


class Observer(Protocol):
    """Who is told what the target reads outside of rounds (see `Drafter.observe`): what it `needs` of that, `hidden`,
    `logits` and numbers of layers."""

    needs: frozenset

    def observe(self, state: State, r: "Round", start: int, out: Output) -> None: ...


class Round:
    """Runs one round's forwards and keeps its record; ends as a `Step`."""

    def __init__(
        self, state: State, mode: str, observer: Observer | None = None, inputs: Mapping = MappingProxyType({})
    ):
        """inputs: of the round that is done again, as they were recorded."""
        self.state, self.observer, self.inputs = state, observer, inputs
        self.settings = state.settings
        self.step = Step(mode)
        self.logging = state.settings.level != "off"
        self.phase: str | None = None  # of its forwards, where it is not their role
        self.waited = 0.0  # seconds for other sequences of a bundle
        self._shared: dict[tuple, tuple[int, list]] = {}  # forwards of several hypotheses -> row of the table, parts
        self._acts: dict[str, dict[str, list[int]]] = {}  # what maintenance did to the caches of a role
        self._start = self.now()

    # -- forwards -----------------------------------------------------------------------------------------------

    def forward(
        self,
        role: str,
        tokens: Sequence[int] | torch.Tensor,
        positions: Sequence[int],
        mask: torch.Tensor | None = None,
        logits_at: str | Sequence[int] = "all",
        phase: str | None = None,
        want: Sequence[str | int] = (),
        layers: Sequence[int] | None = None,
    ) -> Output:
        """A timed forward of one runner; `phase` defaults to the role's own, the rest is the model's."""
        runner, rows = self.state.runners[role], len(positions)
        model, store = runner.model, runner.store
        if role != "target" and not isinstance(tokens, torch.Tensor):
            tokens = readable(model, tokens)
        start = self._clock(model)
        asked, hub = (tokens, positions, store, mask, layers, logits_at, want), hub_here()
        out = model.forward(*asked) if hub is None else hub.ask(model, ForwardRequest(*asked))
        wall = (self._clock(model) - start) * 1000
        if out.wall_ms is not None:
            self.wait((wall - out.wall_ms) / 1000)
            wall = out.wall_ms
        reads = Reads(*store.read_stats(), {id(piece): piece[0].k.shape[1] for piece in store.trunk})
        reads = reads._replace(raw=reads.raw + store.staged - rows)
        ran = None if layers is None else len(layers)
        self.record_forward(role, rows, reads, wall, store.implementation, phase, ran, out)
        return out

    def record_forward(
        self,
        role: str,
        rows: int,
        reads: Reads,
        wall: float | None,
        implementation: str,
        phase: str | None = None,
        layers_run: int | None = None,
        out: Output | None = None,
    ) -> None:
        """Record a forward of `rows` rows; where another hypothesis shared it, with that one's. wall: its time in ms,
        None where it cannot be told from that of its round. layers_run: of the model's layers, all for None."""
        phase, table = phase or self.phase or role, self.step.forwards
        number, sequences = (None, None) if out is None else (out.number, out.sequences)
        place, parts = self._shared.get((number, role, phase), (None, []))
        if wall is not None and place is None:
            key = "draft" if phase == "draft" else "target"
            self.step.ms[key] = self.step.ms.get(key, 0.0) + wall
        parts.append((rows, reads))
        entry: dict[str, Any] = {"phase": phase, "model": role, "rows": sum(count for count, _ in parts)}
        if self.logging:
            entry |= forward_costs(self.state.runners[role].model, parts, layers_run)
            entry |= {"wall_ms": wall, "implementation": implementation, "sequences": sequences}
        if place is None:
            extend(table, {name: [value] for name, value in entry.items()})
            if number is not None:
                self._shared[number, role, phase] = len(table["phase"]) - 1, parts
        else:
            for name, value in entry.items():
                table[name][place] = value

    def input(self, name: str, make: Callable[[], Any]) -> Any:
        """What decides in this round and does not follow from the state and the seed, such as a time: made, and
        recorded; where the round is done again, what was recorded. A value that JSON holds exactly."""
        self.step.inputs[name] = value = self.inputs[name] if name in self.inputs else make()
        return value

    def out_of_time(self) -> bool:
        """Whether the run has decoded for `max_time`."""
        state = self.state
        spent = self.input("spent_us", lambda: state.spent_us + round((self.now() - self._start) * 1e6))
        state.spent_us = spent
        return spent >= self.settings.max_time * 1e6

    def wait(self, seconds: float) -> None:
        """Leave time out of the round's clock in which nothing of its own was at work."""
        self.waited += seconds

    def now(self) -> float:
        """Seconds on the round's clock, which stands still while other sequences of a bundle are at work."""
        return time.perf_counter() - self.waited

    @staticmethod
    def _clock(model: LanguageModel) -> float:
        if model.device.type == "cuda":
            torch.cuda.current_stream(model.device).synchronize()  # a device-wide wait would abort a graph capture
        return time.perf_counter()

    def prefill(self, roles: Sequence[str]) -> None:
        """Read all but the last token into the caches of these roles, as far as their contexts hold the text."""
        for role in filter(self.state.fits, roles):
            self.catch_up(role, len(self.state.tokens_of(role)) - 1)
        if prompt := self.step.prompt:
            text = Detokenizer(self.state.runners["target"].model.tokenizer, self.state.tokens[:1])
            prompt["text"] = [text.push(token) for token in prompt["token_id"]]
            prompt["text"][-1] += text.rest

    def catch_up(self, role: str, upto: int) -> None:
        """Prefill a runner's cache in chunks until it holds `upto` tokens."""
        runner, target = self.state.runners[role], role == "target"
        observer = self.observer if target else None
        needs = observer.needs if observer else frozenset()
        asked = target and self.settings.prompt_rows and self.logging and self.step.mode == "prefill"
        rows = "all" if asked or "logits" in needs else "last"
        want = [need for need in needs if need == "hidden" or isinstance(need, int)]
        tokens = self.state.tokens_of(role)
        while (start := runner.store.length) < upto:
            if (contexts := runner.contexts) and start == contexts.at:
                self._read_apart(role, contexts)
                continue
            end = min(upto, start + self._chunk(role))
            out = self.forward(role, tokens[start:end], range(start, end), None, rows, "prefill", want)
            if asked:
                began = self.now()
                self._keep_prompt(out.logits, start, end)
                self.record_time("recording", began)
            self._commit(runner.store, range(end - start))
            if observer:
                observer.observe(self.state, self, start, out)

    def _read_apart(self, role: str, contexts: Contexts) -> None:
        """Read each context on its own behind the same tokens, and put all of them behind these."""
        store, found = self.state.runners[role].store, []
        for ids in contexts.ids:
            one = copy(self)
            one.state, one.observer = self.state.fork(), None
            one.state.tokens[contexts.at :] = ids
            one.state.runners[role].contexts = None
            one.catch_up(role, contexts.at + len(ids))
            found.append(one.state.runners[role].store)
        scale = contexts.scale * contexts.temperature
        pieces = side_by_side(found, contexts.at, contexts.temperature, scale)
        store.attach(pieces, contexts.span, contexts.exact)

    def _chunk(self, role: str) -> int:
        runner = self.state.runners[role]
        start, contexts = runner.store.length, runner.contexts
        apart = contexts.at - start if contexts and start < contexts.at else PREFILL_CHUNK
        return min(PREFILL_CHUNK, runner.rows_left(start), apart)

    def _keep_prompt(self, logits: torch.Tensor, start: int, end: int) -> None:
        """Log the distributions after the prompt tokens start..end-1 with the tokens that came."""
        prompt = self.state.tokens
        dist = self.dist(logits, lambda row: prompt[: start + row + 1])
        ids = prompt[start + 1 : end + 1]
        extend(self.step.prompt, {"token_id": ids} | dist.statistics(ids))

    def approach(self, role: str) -> None:
        """Where one forward cannot hold all that a runner has not read, feed it all but the pending token."""
        count = len(self.state.tokens_of(role))
        if count - self.state.runners[role].store.length > self._chunk(role):
            self.catch_up(role, count - 1)

    def advance(self, role: str, logits_at: str = "last") -> Output:
        """Feed a runner all tokens up to the pending one, commit them, and return the last row's logits, or all."""
        self.approach(role)
        tokens, start = self.state.tokens_of(role), self.state.runners[role].store.length
        out = self.forward(role, tokens[start:], range(start, len(tokens)), logits_at=logits_at)
        self.commit(role, range(len(tokens) - start))
        return out

    # -- tokens -------------------------------------------------------------------------------------------------

    def dist(self, logits: torch.Tensor, prefixes=None) -> Distribution:
        """The distributions of rows of logits; `prefixes(i)` are the ids before row i's draw (default: all tokens)."""
        return self.settings.sampling.dist(logits, prefixes or (lambda row: self.state.tokens))

    def forced(self, position: int) -> int | None:
        """The id the user put at an absolute position, if any."""
        return self.settings.force.get(position - self.state.prompt_length)

    def choose(self, dist: Distribution, row: int, position: int) -> int:
        """What plain decoding takes at an absolute position: forced, argmax, or the seeded draw."""
        forced = self.forced(position)
        return dist.choose(row, self.settings.noise_seed, position) if forced is None else forced

    def append(
        self, dist: Distribution, rows: list[int], tokens: list[int], sources: list[str], model: str = "target"
    ) -> int:
        """Append tokens to the text, up to where the run ends; token i was drawn from row `rows[i]` of `dist`.

        Returns how many were kept.
        """
        kept = self.take(tokens)
        start = self.now()
        columns = {"token_id": tokens[:kept], "source": sources[:kept], "model": [model] * kept}
        if self.logging:
            columns |= dist.statistics(tokens[:kept], rows[:kept])
        self.log_tokens(columns)
        if self.settings.level == "full":
            places = range(len(self.state.tokens) - kept, len(self.state.tokens))
            self.keep_rows("target", dist.raw[rows[:kept]], {"position": list(places)})
        self.record_time("recording", start)
        return kept

    def decide(
        self,
        controller: str,
        reading: Reading | None,
        action: str,
        alternatives: list | None = None,
        cost: dict[str, Any] | None = None,
        **more: Any,
    ) -> None:
        """Record what a controller did, as a decision event: the one place where these are made.

        reading: of its gate, None where it read nothing. more: further columns of `decision` events.
        """
        event = {"controller": controller, "action": action, "alternatives": alternatives, "cost": cost, **more}
        if reading is not None:
            event |= {"signals": reading.signals, "threshold": reading.threshold}
        self.step.decisions.append({name: value for name, value in event.items() if value is not None})

    def take(self, tokens: Sequence[int]) -> int:
        """Put tokens behind the text, up to where the run ends; how many were kept."""
        state, step, kept = self.state, self.step, 0
        for token in tokens:
            if self.forced(len(state.tokens)) is not None:
                self.decide("user", None, "force", position=len(state.tokens))
            state.tokens.append(token)
            step.texts.append(state.text.push(token))
            kept += 1
            state.ended = self.ending()
            if state.ended:
                break
        return kept

    def log_tokens(self, columns: dict[str, list]) -> None:
        """Note the columns of the tokens that this round put behind the text."""
        self.step.tokens, self.step.emitted = columns, len(columns["token_id"])

    def ending(self) -> str | None:
        """Why the run ends with the last token, or None."""
        state, settings = self.state, self.settings
        if state.tokens[-1] in settings.eos_ids and self.forced(len(state.tokens) - 1) is None:
            return "eos"
        for entry in settings.stop:
            if holds(entry, state.new_tokens) if callable(entry) else state.text.completes(entry):
                return "stop"
        if settings.sampling.masks is not None and settings.sampling.masks.allowed(state.tokens) is None:
            return "grammar"
        count = len(state.tokens) - state.prompt_length
        return "length" if count >= settings.max_new_tokens or state.context_left <= 0 else None

    def keep_rows(self, role: str, raw: torch.Tensor, columns: dict[str, list], top: int = 64) -> None:
        """Level `full`: keep rows of log-probabilities [n, V], the largest ones and the mass of the rest.

        columns: what else is known of each row: `position`, that of the token it predicts; for a draft also `node`
        (−1 where it read committed text only) and `best`, what it would propose there, in order.
        """
        extend(self.step.rows.setdefault(role, {}), top_rows(raw, top) | columns)

    def log_hypotheses(self, hypotheses: Iterable[Hypothesis]) -> None:
        """Note hypotheses as they are."""
        for one in hypotheses if self.logging else ():
            last = one.known[0] if one.known else {}
            row = {"id": one.id, "parent": one.parent, "depth": len(one.state.tokens) - self.state.prompt_length,
                   "token_id": last.get("token_id"), "text": last.get("text"), "logp": one.logp, "score": one.score,
                   "role": one.role, "fate": one.fate, "reason": one.reason}  # fmt: skip
            extend(self.step.hypotheses, {name: [value] for name, value in row.items()})

    # -- the end of the round -----------------------------------------------------------------------------------

    def commit(self, role: str, rows: Sequence[int]) -> None:
        """Keep a runner's staged rows; the rest is dropped."""
        start, before = self.now(), self.step.ms.get("cache", 0.0)
        self._commit(self.state.runners[role].store, rows)
        self.record_time("commit", start + (self.step.ms.get("cache", 0.0) - before) / 1000)

    def _commit(self, store: CacheStore, rows: Sequence[int]) -> None:
        """Commit, and record what the cache's maintenance took of the time."""
        before = store.maintained_ms
        store.commit(rows)
        if spent := store.maintained_ms - before:
            self.step.ms["cache"] = self.step.ms.get("cache", 0.0) + spent

    def drain(self, one: Hypothesis | None = None, dropped: bool = False, bits: bool = True) -> None:
        """Note what maintenance did to the caches of the state, or of a hypothesis. dropped: it is only looked at, and
        counts for no cache. bits: note widths, too."""
        told = {} if one is None else {"hypothesis": one.id}
        for role, runner in (one.state if one else self.state).runners.items():
            acts = self._acts.setdefault(role, {})
            for name, column in runner.store.acts.items() if not dropped else ():
                acts[name] = [sum(pair) for pair in zip(acts.get(name, [0] * len(column)), column, strict=True)]
            events, found, reads = runner.store.drain()
            self.step.cache_events += [{"model": role, **told, **event} for event in events]
            if reads:
                extend(self.step.reads, reads | {"model": [role] * len(reads["layer"])})
            if found and bits:
                extend(self.step.bits, found | {"model": [role] * len(found["model"])})

    def record_time(self, phase: str, start: float) -> None:
        """Add the time since `start`, of `now`, to that of a phase."""
        self.step.ms[phase] = self.step.ms.get(phase, 0.0) + (self.now() - start) * 1000

    def finish(self) -> Step:
        """The record, with the ledgers of all runners and what their caches dropped, quantised and fetched."""
        step, state, start = self.step, self.state, self.now()
        self.log_hypotheses(state.hypotheses.values())
        state.hypotheses = {one.id: one for one in state.hypotheses.values() if one.fate in ("live", "finished")}
        for one in (None, *state.hypotheses.values()):
            self.drain(one)
        if self.logging:
            step.cache = ledgers(state)
            for role, acts in self._acts.items():
                step.cache[role] |= acts
            if held := held_bytes(state.memory):
                step.cache["memory"] = {"live_slots": [0], "logical_length": [0], "table": [held]}
        self.record_time("recording", start)
        step.context, step.rest = len(state.tokens), state.text.rest
        step.ms["total"] = (self.now() - self._start) * 1000
        state.rounds += 1
        return step


def top_rows(raw: torch.Tensor, top: int = 64) -> dict[str, list]:
    """Columns of the rows of log-probabilities [n, V]: the largest ones and the mass of the rest."""
    best = raw.topk(min(top, raw.shape[-1]))
    tail = (1 - best.values.exp().sum(-1)).clamp_min(0)
    kept = {"ids": best.indices.tolist(), "logp": [[round(v, 5) for v in row] for row in best.values.tolist()]}
    return kept | {"tail_mass": tail.tolist()}


def extend(columns: dict[str, list], more: dict[str, list]) -> None:
    """Append rows to columns."""
    for name, values in more.items():
        columns.setdefault(name, []).extend(values)
