"""All that is known of a run between two rounds: tokens, settings, and a model with its cache for each role."""

from dataclasses import dataclass, field, replace
from typing import Any

from workbench.cache.store import CacheStore
from workbench.engine.model import LanguageModel
from workbench.engine.settings import Settings
from workbench.engine.text import Detokenizer

__all__ = ["Runner", "State"]


@dataclass(slots=True)
class Runner:
    """A model and its cache. The cache holds a prefix of the state's tokens, never more."""

    model: LanguageModel
    store: CacheStore

    def fork(self) -> "Runner":
        return Runner(self.model, self.store.fork())

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
    changed in place. ended: why the run is over, or None.
    """

    tokens: list[int]
    prompt_length: int
    settings: Settings
    runners: dict[str, Runner]
    text: Detokenizer
    strategy: Any = None
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
