"""PEARL: the draft model goes on drafting while the target verifies what it drafted before."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import torch

from workbench.cache import Stack, as_stack
from workbench.declare import register, setting
from workbench.decoders.base import Decoder
from workbench.decoders.speculative import Speculative
from workbench.engine.model import LanguageModel, Output
from workbench.engine.sampling import Sampling
from workbench.engine.settings import Settings
from workbench.errors import BadInput
from workbench.rounds import Round, State
from workbench.rounds.round import extend
from workbench.speculation.drafters import DraftModel
from workbench.speculation.shapes import FixedLength
from workbench.speculation.tree_builder import TreeBuilder
from workbench.speculation.verifiers import SeededMatch, Verifier


@register("decoder", "pearl")
@dataclass(frozen=True)
class Pearl(Decoder):
    """Two runners at once: the draft drafts `length` tokens while the target reads the pending ones, drafted the round
    before. Tested are the pending tokens and the first new one, each once, by the distribution before it.

    Where all pass (post-verify), the other new tokens are the next pending ones; after a rejection none are left, and
    the target reads the text's end alone, to test the first token of a new draft (pre-verify). No bonus token: its
    place is taken by the test of the first new one. Best with `length` ≈ time of a target forward / of a draft's.

    On one device the runners run after each other, and the figures of a round tell the virtual clock: busy and idle
    time of each runner, and the longer runner's time as that of the round. Where the models lie on two CUDA devices (a
    draft registered with `register_model`), the runners run in two threads. Source: "PEARL: Parallel Speculative
    Decoding with Adaptive Draft Length" (https://arxiv.org/abs/2408.11850;
    https://github.com/smart-lty/ParallelSpeculativeDecoding). Departures: the draft reads its untested tokens again in
    the next round, in one forward, since caches hold committed tokens only, and its runner's time includes this; the
    clock leaves out the time of tests and commits; acceptance tests are the verifier's, by absolute position.
    """

    model: str = setting("embedded-draft", model=True, help="the draft model: name, hub id or directory")
    length: int = setting(4, ge=1, le=32, unit="tokens", help="tokens drafted while the target runs")
    verifier: Verifier = setting(factory=SeededMatch, family="verifier", help="which drafted tokens stand")
    cache: Stack | None = setting(None, family="cache", help="the draft's cache stack (default: every token as it is)")

    verified = ("equality with plain decoding", "chi-square on the toy model")

    def __post_init__(self) -> None:
        object.__setattr__(self, "cache", as_stack(self.cache))
        super().__post_init__()
        if "hidden" in self.verifier.needs:
            raise BadInput(
                f"verifier {self.verifier.declared_name!r} reads the target's hidden states after every draft;"
                " pearl tests one that the target has not read"
            )
        # reuses Speculative for compatibility checks, verification and logging
        parts = Speculative(DraftModel(self.model, self.cache), FixedLength(self.length), self.verifier)
        object.__setattr__(self, "parts", parts)

    def guarantee(self, sampling: Sampling) -> str:
        return self.verifier.guarantee(sampling)

    def runners(self, lm: LanguageModel) -> dict[str, LanguageModel]:
        return self.parts.runners(lm)

    def caches(self, settings: Settings) -> dict[str, Stack | None]:
        return self.parts.caches(settings)

    def check(self, lm: LanguageModel, settings: Settings) -> None:
        self.parts.check(lm, settings)

    def first(self, state: State) -> tuple[str, ...]:
        return tuple(state.runners)

    def decode_round(self, state: State, r: Round) -> None:
        r.catch_up("target", len(state.tokens) - 1)
        builder, pending, new = self._resume(state, r)
        root, aside = builder.base, Round(state, "plain")
        read = builder.tree.tokens[: pending + 1]
        # 1. both runners: draft from the last pending token on; read the root and the pending tokens
        draft, out = both(
            lambda: self._draft(builder, pending, new),
            lambda: aside.forward("target", read, range(root, root + pending + 1)),
            overlapping(state),
            r.now,
        )
        extend(r.step.forwards, aside.step.forwards)
        r.waited += aside.waited
        target = aside.step.ms["target"]
        r.step.ms |= {"draft": draft, "target": r.step.ms.get("target", 0.0) + target}
        # 2. test the pending tokens and the first new one; no distribution is known after the latter
        drafted = builder.tree
        builder.keep(range(1, pending + 1 + (new > 0)))
        tree, logits = builder.tree, torch.cat([out.logits, out.logits[-1:]]) if new else out.logits
        start = r.now()
        dist = r.dist(logits, lambda row: state.tokens + [tree.tokens[n] for n in tree.path(row)])
        outcome = self.parts.verify(dist, tree, root + 1, r)
        r.record_time("verify", start)
        # 3. append and commit
        passed = new > 0 and len(outcome.path) == len(tree) - 1
        tokens, sources = [tree.tokens[n] for n in outcome.path], [tree.drafters[n] for n in outcome.path]
        if not passed:
            tokens, sources = [*tokens, outcome.token], [*sources, outcome.source]
        kept = r.append(dist, [0, *outcome.path][: len(tokens)], tokens, sources)
        r.commit("target", range(kept))
        store = state.runners["draft"].store
        if store.staged:
            agreed = min(root + 1 + min(kept, len(outcome.path)), len(state.tokens) - 1) - store.length
            r.commit("draft", range(min(agreed, store.staged)))
        # 4. the new tokens behind the one that passed are pending
        state.memory.pop("pearl", None)
        if passed and not state.ended and (rest := range(pending + 2, len(drafted))):
            state.memory["pearl"] = {
                "at": len(state.tokens),
                "under": (self, r.settings.sampling, r.settings.noise_seed),
                "tokens": tuple(drafted.tokens[n] for n in rest),
                "rows": torch.stack([drafted.rows[n - 1] for n in rest]),
                "raw": torch.stack([drafted.raw[n - 1] for n in rest]),
            }
        self.parts.record(r, dist, tree, outcome, kept)
        r.step.figures = clock(draft, target) | {
            "verify": "post" if pending else "pre",
            "pending": pending,
            "discarded": 0 if passed else max(0, new - 1),
        }

    def _resume(self, state: State, r: Round) -> tuple[TreeBuilder, int, int]:
        """A draft that begins with the pending tokens, their number, and how many to draft behind them."""
        tokens, runner = state.tokens, state.runners["draft"]
        reach = runner.model.context - len(tokens)
        if reach > 0:
            r.approach("draft")
            reach = min(reach, runner.rows_left(runner.store.length) - (len(tokens) - 1 - runner.store.length))
        if not runner.reads(state.pending):
            reach = 0  # an id the draft does not have is not drafted on
        builder = TreeBuilder("draft_model", state, r, max(0, reach), self.verifier.seeded, self._distributions)
        held: dict[str, Any] = state.memory.get("pearl", {})
        pending: Sequence[int] = ()
        if held.get("at") == len(tokens) and held["under"] == (self, r.settings.sampling, r.settings.noise_seed):
            room = min(state.context_left, state.runners["target"].rows_left(len(tokens) - 1), reach)
            pending = held["tokens"][: max(0, room - 1)]
        for node, token in enumerate(pending):
            builder.tree.rows[node], builder.tree.raw[node] = held["rows"][node], held["raw"][node]
            builder.add(node, token)
        return builder, len(pending), max(0, min(self.length, reach - len(pending)))

    @staticmethod
    def _draft(builder: TreeBuilder, first: int, count: int) -> None:
        for node in range(first, first + count):
            builder.expand([node])
            builder.children(node, 1)
        device = builder.state.runners["target"].model.device
        for rows in (builder.tree.rows, builder.tree.raw):
            rows |= {node: row.to(device) for node, row in rows.items()}

    @staticmethod
    def _distributions(builder: TreeBuilder, nodes: list[int]) -> torch.Tensor:
        """The draft's logits [1, V] after the last node: it reads all it has not read yet."""
        text, store = builder.state.tokens + builder.tree.tokens[1:], builder.state.runners["draft"].store
        read = store.length + store.staged
        return builder.round.forward("draft", text[read:], range(read, len(text)), logits_at="last").logits


def overlapping(state: State) -> bool:
    """Whether the two models lie on two CUDA devices."""
    devices = {runner.model.device for runner in state.runners.values()}
    return len(devices) == 2 and all(device.type == "cuda" for device in devices)


def both(
    draft: Callable[[], None], target: Callable[[], Output], overlap: bool, now: Callable[[], float]
) -> tuple[float, Output]:
    """Run both runners, one after the other or in two threads: (ms of the draft's, what the target's gave)."""
    start = now()
    if not overlap:
        draft()
        return (now() - start) * 1000, target()
    with ThreadPoolExecutor(1) as other:
        running = other.submit(target)
        draft()
        spent = (now() - start) * 1000
        return spent, running.result()


def clock(draft: float, target: float) -> dict[str, float]:
    """The virtual clock of a round, in ms: both runners start together, the round ends with the longer one."""
    longer = max(draft, target)
    busy = {"draft_busy_ms": draft, "target_busy_ms": target}
    return {"clock_ms": longer, **busy, "draft_idle_ms": longer - draft, "target_idle_ms": longer - target}
