"""All that is known of a run between two rounds: tokens, settings, and a model with its cache for each role."""

from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from workbench.cache.protocol import CacheStore
from workbench.engine.model import LanguageModel
from workbench.engine.settings import Settings
from workbench.engine.text import Detokenizer


class Contexts(NamedTuple):
    """Texts that a runner reads apart, all behind its first `at` tokens; of its own tokens there the longest of them
    takes the place of all. temperature, scale: as of `Session.attach`."""

    at: int
    ids: tuple[tuple[int, ...], ...]
    temperature: float
    scale: float

    @property
    def span(self) -> int:
        return max(map(len, self.ids))

    @property
    def exact(self) -> bool:
        """Whether reading them apart is reading one text."""
        return len(self.ids) == self.temperature == self.scale == 1


@dataclass(slots=True)
class Runner:
    """A model and its cache, which holds a prefix of the runner's tokens, never more: those of the state, or, behind a
    prompt of its own, the new ones (see `State.tokens_of`)."""

    model: LanguageModel
    store: CacheStore
    prompt: tuple[int, ...] | None = None
    contexts: Contexts | None = None

    def fork(self) -> "Runner":
        return Runner(self.model, self.store.fork(), self.prompt, self.contexts)

    @property
    def inexact(self) -> int | None:
        """The position from which on its cache was, or will be, read behind another text or in parts; None for none."""
        apart = self.contexts.at if self.contexts and not self.contexts.exact else None
        return min((at for at in (apart, getattr(self.store, "inexact", None)) if at is not None), default=None)

    def rows_left(self, length: int) -> int:
        """How many rows from a committed length on may go into one forward: up to the cache's next maintenance."""
        return self.store.rows_left(length)

    def reads(self, token: int) -> bool:
        """Whether the model knows an id (see `vocabulary.readable`)."""
        return token < self.model.ids_read


@dataclass(slots=True)
class State:
    """All that a decoder knows between rounds; `fork` copies nothing heavy.

    tokens: prompt and new ids. runners: role ("target", "draft") -> model and cache. strategy: where rounds take place
    (see `device.round.Strategy`). memory: the decoder's and drafter's own figures; its values are replaced, never
    changed in place. spent_us: what its rounds have taken, where the settings limit it. ended: why the run is over, or
    None. hypotheses: what the text may go on with, by id, the best first.
    """

    tokens: list[int]
    prompt_length: int
    settings: Settings
    runners: dict[str, Runner]
    text: Detokenizer
    strategy: Any = None
    memory: dict[str, Any] = field(default_factory=dict)
    rounds: int = 0
    spent_us: int = 0
    ended: str | None = None
    hypotheses: dict[int, "Hypothesis"] = field(default_factory=dict)

    def fork(self) -> "State":
        runners = {role: runner.fork() for role, runner in self.runners.items()}
        forks = {id: replace(one, state=one.state.fork()) for id, one in self.hypotheses.items()}
        return State(
            list(self.tokens), self.prompt_length, self.settings, runners, self.text.fork(), self.strategy,
            dict(self.memory), self.rounds, self.spent_us, self.ended, forks,
        )  # fmt: skip

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

    def tokens_of(self, role: str) -> list[int]:
        """What a runner reads: its prompt, which is the state's where it has none of its own, and the new tokens."""
        prompt = self.runners[role].prompt
        return self.tokens if prompt is None else [*prompt, *self.new_tokens]

    def fits(self, role: str) -> bool:
        """True while a runner's context still holds all its tokens."""
        return len(self.tokens_of(role)) <= self.runners[role].model.context


@dataclass(slots=True)
class Hypothesis:
    """One way in which the text may go on: a state of its own, of which nothing is text until it wins.

    id, parent: of its lineage: an id follows from the parent's and the place among its children, so it is the same
    whatever else there is. state: all tokens so far, with caches that hold them. logp: nats, of its tokens behind the
    text. score: what it is ranked by, higher first. role, fate: as in the hypotheses table. known: what the trace will
    say of its last token, and the same of the tokens before.
    """

    id: int
    parent: int | None
    state: State
    role: str
    logp: float = 0.0
    score: float = 0.0
    fate: str = "live"
    reason: str | None = None
    known: "tuple[dict[str, Any], tuple | None] | None" = None
