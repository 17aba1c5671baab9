"""What every decoder shares: how a run starts, and the step around a round.

A decoder is a validated dataclass with one method, `decode_round(state, r)`: run forwards through the round, choose
tokens, `append` them, commit the cache rows that belong to them. All it knows between rounds lies in the state."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, ClassVar

import torch

from workbench.cache.stack import Stack
from workbench.control.constraints.base import bound
from workbench.declare import Declared
from workbench.device.round import choose_round, run_round
from workbench.engine.model import LanguageModel
from workbench.engine.sampling import Sampling
from workbench.engine.settings import Settings
from workbench.engine.text import Detokenizer
from workbench.errors import BadInput
from workbench.rounds.round import Observer, Round
from workbench.rounds.search import win
from workbench.rounds.state import Runner, State
from workbench.trace.records import Step


class Decoder(Declared):
    """Base of all decoders: `start` makes a state, `step` does one round on it.

    The first step of a run with a prompt of several tokens is its prefill: a round that emits nothing.
    """

    family = "decoder"
    verified: ClassVar[tuple[str, ...]] = ()  # what in the test suite has verified the guarantee
    searches: ClassVar[bool] = False  # chooses among texts of the model, and has no distribution of its own

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

    def prompts(self, lm: LanguageModel, prompt_ids: Sequence[int]) -> dict[str, Sequence[int]]:
        """The prompts of those roles that read another than the run's."""
        return {}

    def decode_round(self, state: State, r: Round) -> None:
        """One round: tokens of the text, or a step of a search."""
        raise NotImplementedError

    def observer(self) -> Observer | None:
        """A drafter that wants to know what the target reads outside of rounds."""
        return None

    def first(self, state: State) -> tuple[str, ...]:
        """Roles whose caches the prefill fills."""
        return ("target",)

    def start(self, lm: LanguageModel, prompt_ids: Sequence[int], settings: Settings) -> State:
        """A state at the end of the prompt. Raises BadInput, before any work, where something does not fit."""
        self.check(lm, settings)
        caches, prompts, runners = self.caches(settings), self.prompts(lm, prompt_ids), {}
        for role, model in self.runners(lm).items():
            stack, own = caches.get(role), prompts.get(role)
            store = stack.new_store(model, len(own or prompt_ids)) if stack else model.new_store()
            runners[role] = Runner(model, store, tuple(own) if own else None)
        state = State(list(prompt_ids), len(prompt_ids), settings, runners, Detokenizer(lm.tokenizer, prompt_ids))
        return self.adopt(state, settings)

    def adopt(self, state: State, settings: Settings) -> State:
        """The state under these settings, as if its run had not ended; where its rounds take place is chosen anew. A
        search begins anew from the text where a forced token contradicts a hypothesis."""
        state.settings, state.ended = bound(settings, state), None
        texts = [one.state.new_tokens for one in state.hypotheses.values()]
        if any(index < len(text) and text[index] != id for text in texts for index, id in settings.force.items()):
            state.hypotheses = {}
        state.strategy = choose_round(self, settings, {role: runner.model for role, runner in state.runners.items()})
        return state

    @torch.inference_mode()
    def step(self, state: State, inputs: Mapping[str, Any] = MappingProxyType({})) -> Step:
        """One round on the state: its record. inputs: those recorded of the round, where it is done again."""
        if state.ended:
            raise BadInput(f"the run has ended ({state.ended}); fork it to go on")
        prefill = state.rounds == 0 and any(len(state.tokens_of(role)) > 1 for role in state.runners)
        r = Round(state, "prefill" if prefill else "plain", self.observer(), inputs)
        if prefill:
            r.prefill(self.first(state))
        elif not run_round(self, state, r):
            self.decode_round(state, r)
        if r.settings.max_time is not None and r.out_of_time() and not state.ended:
            if left := [one for one in state.hypotheses.values() if one.fate != "pruned"]:
                win(r, max(left, key=lambda one: one.score))
            state.ended = state.ended or "time"
        if state.ended and (masks := r.settings.sampling.masks) is not None:
            r.step.note = masks.note(state.tokens)
        return r.finish()
