"""What every decoder shares: the state it works on, the round, and the step around it.

A decoder is a validated dataclass with one method, `decode_round(state, r)`: run forwards through the round, choose
tokens, `append` them, commit the cache rows that belong to them. All it knows between rounds lies in the state."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch

from workbench.cache import CacheStore, Stack
from workbench.declare import Declared
from workbench.device import round as device
from workbench.device.forward import DeviceTree
from workbench.engine.distribution import Distribution
from workbench.engine.model import LanguageModel, Output
from workbench.engine.sampling import Sampling
from workbench.engine.settings import Settings, holds
from workbench.engine.text import Detokenizer
from workbench.engine.vocabulary import ids_read, readable
from workbench.errors import BadInput
from workbench.trace.records import Step

if TYPE_CHECKING:
    from workbench.speculation.drafters.base import Drafter

__all__ = ["Decoder", "Runner", "Round", "State"]

PREFILL_CHUNK = 512
MANY = 2**62


@dataclass(slots=True)
class Runner:
    """A model and its cache. The cache holds a prefix of the state's tokens, never more."""

    model: LanguageModel
    store: CacheStore

    def fork(self) -> "Runner":
        return Runner(self.model, self.store.fork())

    def rows_left(self, length: int) -> int:
        """How many rows from a committed length on may go into one forward: up to the cache's next maintenance."""
        return self.store.rows_left(length) if hasattr(self.store, "rows_left") else MANY

    def reads(self, token: int) -> bool:
        """Whether the model knows an id (see `vocabulary.readable`)."""
        return token < ids_read(self.model)

    def read_stats(self) -> tuple[int, int, int]:
        """What a forward reads of the cache: raw slots, coded slots, bytes of the coded ones."""
        return self.store.read_stats() if hasattr(self.store, "read_stats") else (self.store.length, 0, 0)


@dataclass(slots=True)
class State:
    """All that a decoder knows between rounds; `fork` copies nothing heavy.

    tokens: prompt and new ids. runners: role ("target", "draft") -> model and cache. memory: the decoder's and
    drafter's own figures; its values are replaced, never changed in place. ended: why the run is over, or None.
    """

    tokens: list[int]
    prompt_length: int
    settings: Settings
    runners: dict[str, Runner]
    text: Detokenizer
    memory: dict[str, Any] = field(default_factory=dict)
    rounds: int = 0
    ended: str | None = None

    def fork(self) -> "State":
        runners = {role: runner.fork() for role, runner in self.runners.items()}
        return replace(self, tokens=list(self.tokens), runners=runners, text=self.text.fork(), memory=dict(self.memory))

    @property
    def new_tokens(self) -> list[int]:
        return self.tokens[self.prompt_length :]

    @property
    def pending(self) -> int:
        """The last token: committed as text, its keys not yet in the cache."""
        return self.tokens[-1]

    @property
    def context_left(self) -> int:
        """How many more tokens fit the target's context."""
        return self.runners["target"].model.context - len(self.tokens)

    def fits(self, role: str) -> bool:
        """True while a runner's context still holds all tokens."""
        return len(self.tokens) <= self.runners[role].model.context


class Round:
    """Runs one round's forwards and keeps its record; ends as a `Step`.

    observer: a drafter that is told what the target reads outside of rounds (see `Drafter.observe`).
    """

    def __init__(self, state: State, mode: str, observer: "Drafter | None" = None):
        self.state, self.observer = state, observer
        self.settings = state.settings
        self.step = Step(mode)
        self.logging = state.settings.level != "off"
        self._start = time.perf_counter()

    def forward(
        self,
        role: str,
        tokens: Sequence[int],
        positions: Sequence[int],
        mask: torch.Tensor | None = None,
        logits_at: str | Sequence[int] = "all",
        phase: str | None = None,
        want: Sequence[str | int] = (),
        layers: Sequence[int] | None = None,
    ) -> Output:
        """A timed forward of one runner; `phase` defaults to the role's own, the rest is the model's."""
        runner = self.state.runners[role]
        model = runner.model
        if role != "target" and not isinstance(tokens, torch.Tensor):
            tokens = readable(model, tokens)
        raw, coded, packed = runner.read_stats()
        start = self._clock(model)
        out = model.forward(tokens, positions, runner.store, mask, layers, logits_at, want)
        wall = (self._clock(model) - start) * 1000
        raw += runner.store.staged - len(positions)
        kernel = getattr(runner.store, "implementation", "sdpa")
        share = 1.0 if layers is None else len(layers) / model.layers
        self.record_forward(role, len(positions), raw, wall, kernel, phase, coded, packed, share)
        return out

    def record_forward(
        self,
        role: str,
        rows: int,
        raw: int,
        wall: float | None,
        implementation: str,
        phase: str | None = None,
        coded: int = 0,
        packed: int = 0,
        share: float = 1.0,
    ) -> None:
        """Record a forward of `rows` rows that read `raw` and `coded` slots, the latter of `packed` bytes.

        wall: its time in ms, None where it cannot be told from that of its round. share: of the model's layers that
        ran; operations and bytes are counted in proportion.
        """
        model, context = self.state.runners[role].model, raw + coded
        phase = phase or role
        if wall is not None:
            key = "draft" if phase == "draft" else "target"
            self.step.ms[key] = self.step.ms.get(key, 0.0) + wall
        if self.logging:
            entry = {
                "phase": phase,
                "model": role,
                "rows": rows,
                "context": context,
                "wall_ms": wall,
                "flops": round(share * model.forward_flops(rows, context + rows)),
                "weight_bytes": round(share * _weights_read(model, rows)),
                "kv_read_bytes": round(share * (model.kv_bytes() * (raw + rows) + packed)),
                "kv_write_bytes": round(share * model.kv_bytes() * rows),
                "share": share,
                "implementation": implementation,
            }
        else:
            entry = {"phase": phase, "model": role, "rows": rows}
        for name, value in entry.items():
            self.step.forwards.setdefault(name, []).append(value)

    @staticmethod
    def _clock(model: LanguageModel) -> float:
        if model.device.type == "cuda":
            torch.cuda.current_stream(model.device).synchronize()  # waiting for all streams breaks captures off
        return time.perf_counter()

    def catch_up(self, role: str, upto: int) -> None:
        """Feed a runner the tokens it has not seen, up to `upto` of them in its cache, in chunks."""
        runner = self.state.runners[role]
        while runner.store.length < upto:
            start = runner.store.length
            end = min(upto, start + min(PREFILL_CHUNK, runner.rows_left(start)))
            asked = self.settings.prompt_rows and self.logging and role == "target" and self.step.mode == "prefill"
            observer = self.observer if role == "target" else None
            rows = "all" if asked or (observer and observer.wants_logits) else "last"
            want = (*(("hidden",) if observer.wants_hidden else ()), *observer.wants_states) if observer else ()
            out = self.forward(role, self.state.tokens[start:end], range(start, end), None, rows, "prefill", want)
            if asked:
                self._keep_prompt(out.logits, start, end)
            runner.store.commit(range(end - start))
            if observer:
                observer.observe(self.state, self, start, out)

    def _keep_prompt(self, logits: torch.Tensor, start: int, end: int) -> None:
        """Log the distributions after the prompt tokens start..end-1 with the tokens that came."""
        prompt = self.state.tokens
        dist = self.dist(logits, lambda row: prompt[: start + row + 1])
        columns = {"token_id": prompt[start + 1 : end + 1]}
        for name, values in (columns | dist.statistics(0, columns["token_id"])).items():
            self.step.prompt.setdefault(name, []).extend(values)

    def advance(self, role: str, logits_at: str = "last") -> Output:
        """Feed a runner all tokens up to the pending one, commit them, and return the last row's logits, or all."""
        tokens, runner = self.state.tokens, self.state.runners[role]
        store = runner.store
        if len(tokens) - store.length > min(PREFILL_CHUNK, runner.rows_left(store.length)):
            self.catch_up(role, len(tokens) - 1)
        start = store.length
        out = self.forward(role, tokens[start:], range(start, len(tokens)), logits_at=logits_at)
        self.commit(role, range(len(tokens) - start))
        return out

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
        """Commit tokens as text, up to where the run ends; row i of `distribution` is what token i was drawn from.

        Returns how many were kept.
        """
        state = self.state
        kept = 0
        for token in tokens:
            self._note_forced(len(state.tokens))
            state.tokens.append(token)
            self.step.texts.append(state.text.push(token))
            kept += 1
            state.ended = self._ending()
            if state.ended:
                break
        columns = {"token_id": tokens[:kept], "source": sources[:kept], "model": [model] * kept}
        if self.logging:
            columns |= dist.statistics_at(rows[:kept], tokens[:kept])
        self.step.tokens = columns
        self.step.emitted = kept
        if self.settings.level == "full":
            places = range(len(state.tokens) - kept, len(state.tokens))
            self.keep_rows("target", dist.raw[rows[:kept]], {"position": list(places)})
        return kept

    def _note_forced(self, position: int) -> None:
        if self.forced(position) is not None:
            self.step.decisions.append({"controller": "user", "action": "force", "position": position})

    def _ending(self) -> str | None:
        state, settings = self.state, self.settings
        count = len(state.tokens) - state.prompt_length
        if state.tokens[-1] in settings.eos_ids and self.forced(len(state.tokens) - 1) is None:
            return "eos"
        if settings.stop and self._stopped():
            return "stop"
        if count >= settings.max_new_tokens or state.context_left <= 0:
            return "length"
        return None

    def _stopped(self) -> bool:
        """Whether the last token completed a stop text, or a stop callable says so."""
        state = self.state
        return any(
            holds(entry, state.new_tokens) if callable(entry) else state.text.completes(entry)
            for entry in self.settings.stop
        )

    def keep_rows(self, role: str, raw: torch.Tensor, columns: dict[str, list], top: int = 64) -> None:
        """Level `full`: keep rows of log-probabilities [n, V], the largest ones and the mass of the rest.

        columns: what else is known of each row: `position`, that of the token it predicts; for a draft also `node`
        (−1 where it read committed text only) and `best`, what it would propose there, in order.
        """
        best = raw.topk(min(top, raw.shape[-1]))
        tail = (1 - best.values.exp().sum(-1)).clamp_min(0)
        kept = {"ids": best.indices.tolist(), "logp": [[round(v, 5) for v in row] for row in best.values.tolist()]}
        kept |= {"tail_mass": tail.tolist(), **columns}
        held = self.step.rows.setdefault(role, {})
        for name, values in kept.items():
            held.setdefault(name, []).extend(values)

    def commit(self, role: str, rows: Sequence[int]) -> None:
        """Keep a runner's staged rows; the rest is dropped."""
        start = time.perf_counter()
        self.state.runners[role].store.commit(rows)
        self.record_time("commit", start)

    def record_time(self, phase: str, start: float) -> None:
        """Book the time since `start` on a phase."""
        self.step.ms[phase] = self.step.ms.get(phase, 0.0) + (time.perf_counter() - start) * 1000

    def finish(self) -> Step:
        """The record, with the ledgers of all runners."""
        step, state = self.step, self.state
        start = time.perf_counter()
        if self.logging:
            step.cache = {role: runner.store.ledger() for role, runner in state.runners.items()}
            if held := held_bytes(state.memory):
                step.cache["memory"] = {"live_slots": [0], "logical_length": [0], "table": [held]}
        self._maintained()
        self.record_time("cache", start)
        step.context, step.rest = len(state.tokens), state.text.rest
        step.ms["total"] = (time.perf_counter() - self._start) * 1000
        state.rounds += 1
        return step

    def _maintained(self) -> None:
        """Record what the caches dropped, sealed and fetched in this round."""
        for role, runner in self.state.runners.items():
            events, bits = runner.store.drain() if hasattr(runner.store, "drain") else ((), {})
            self.step.cache_events += [{"model": role, **event} for event in events]
            for name, values in bits.items():
                self.step.bits.setdefault(name, []).extend([role] * len(values) if name == "model" else values)


class Decoder(Declared):
    """Base of all decoders: `start` makes a state, `step` does one round on it.

    The first step of a run with a prompt of several tokens is its prefill: a round that emits nothing.
    """

    family = "decoder"
    verified: ClassVar[tuple[str, ...]] = ()  # what in the test suite has verified the guarantee

    def guarantee(self, sampling: Sampling) -> str:
        """`exact`, `distribution`, `seeded`, `own` or `lossy`, relative to plain decoding with the same settings."""
        raise NotImplementedError

    def check(self, lm: LanguageModel, settings: Settings) -> None:
        """Raise BadInput where this decoder cannot run the model with these settings."""

    def runners(self, lm: LanguageModel) -> dict[str, LanguageModel]:
        """The models the decoder runs, by role; "target" is the run's own."""
        return {"target": lm}

    def caches(self, settings: Settings) -> dict[str, Stack | None]:
        """The cache stack of each role that has one."""
        return {"target": settings.cache}

    def decode_round(self, state: State, r: Round) -> None:
        """One round: at least one token."""
        raise NotImplementedError

    def device_tree(self, settings: Settings) -> DeviceTree | str:
        """The form of every round, where the device can do it alone (see `device.py`), else why it cannot. A decoder
        that gives one has a method `verify_and_commit(state, r, tree, dist)`: the round from the verification on."""
        return f"{self.declared_name} decides on the host"

    def observer(self) -> "Drafter | None":
        """A drafter that wants to know what the target reads outside of rounds."""
        return None

    def first(self, state: State) -> tuple[str, ...]:
        """Roles whose caches the prefill fills."""
        return ("target",)

    def start(self, lm: LanguageModel, prompt_ids: Sequence[int], settings: Settings) -> State:
        """A state at the end of the prompt. Raises BadInput, before any work, where something does not fit."""
        self.check(lm, settings)
        caches = self.caches(settings)
        models, prompt = self.runners(lm), len(prompt_ids)
        runners = {role: Runner(model, _store(model, caches.get(role), prompt)) for role, model in models.items()}
        return State(list(prompt_ids), len(prompt_ids), settings, runners, Detokenizer(lm.tokenizer, prompt_ids))

    @torch.inference_mode()
    def step(self, state: State) -> Step:
        """One round on the state: its record."""
        if state.ended:
            raise BadInput(f"the run has ended ({state.ended}); fork it to go on")
        if state.rounds == 0 and len(state.tokens) > 1:
            r = Round(state, "prefill", self.observer())
            for role in filter(state.fits, self.first(state)):
                r.catch_up(role, len(state.tokens) - 1)
            if r.step.prompt:
                text = Detokenizer(state.runners["target"].model.tokenizer, state.tokens[:1])
                r.step.prompt["text"] = [text.push(token) for token in r.step.prompt["token_id"]]
                r.step.prompt["text"][-1] += text.rest
        else:
            r = Round(state, "plain", self.observer())
            if not device.run_round(self, state, r):
                self.decode_round(state, r)
        return r.finish()


def held_bytes(memory: dict[str, Any]) -> int:
    """Bytes of the tensors and arrays that a decoder or drafter keeps between rounds, tuples and tables searched."""
    queue, total = list(memory.values()), 0
    while queue:
        held = queue.pop()
        if isinstance(held, torch.Tensor):
            total += held.untyped_storage().nbytes()
        elif isinstance(held, np.ndarray):
            total += held.nbytes
        elif isinstance(held, dict):
            queue += held.values()
        elif isinstance(held, tuple | list):
            queue += held
    return total


def _weights_read(model: LanguageModel, rows: int) -> int:
    """Bytes of the weights that a forward of some rows reads: all of them, where the model does not tell."""
    return model.weights_read(rows) if hasattr(model, "weights_read") else model.weight_bytes


def _store(model: LanguageModel, stack: Stack | None, prompt: int) -> CacheStore:
    """A model's own store, or that of a stack."""
    return model.new_store() if stack is None else stack.new_store(model, prompt)
