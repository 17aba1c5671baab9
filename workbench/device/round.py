"""Where the rounds of a run take place: on the device with one copy to the host (`DeviceRound`), or step by step from
the host.

`choose_round` decides, once for a run, and says why; all that the device path knows of decoders, drafters, shapes and
verifiers stands here. `run_round` does a round on the device: it brings the caches up to date, launches the round, and
appends and commits what came back as the decoder would after forwards of its own.
"""

import os
import time
import weakref
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch

from workbench.declare import Declared
from workbench.device.forward import DeviceRound, DeviceTree
from workbench.device.sampling import DeviceSampling
from workbench.device.store import StaticRun, StaticStore
from workbench.engine.distribution import unpack
from workbench.engine.model import LanguageModel
from workbench.engine.sampling import named
from workbench.engine.settings import Settings
from workbench.errors import BadInput, NumericalError
from workbench.rounds import Round, State
from workbench.rounds.costs import Reads
from workbench.speculation.drafters.draft_model import DraftModel
from workbench.speculation.shapes.fixed import FixedLength, FixedTree
from workbench.speculation.tree import DIST, POINT, DraftTree
from workbench.speculation.verifiers.base import Outcome
from workbench.speculation.verifiers.match import Greedy, SeededMatch
from workbench.speculation.verifiers.rejection import Rejection
from workbench_kernels import verification

VARIABLE = "WORKBENCH_ROUND"
IMPLEMENTATION = "auto"  # of the kernels in a round; tests set it to run them under the interpreter
_AHEAD = 2048  # tokens a run is given room for at once: when it is full it moves, and rounds are captured anew
_KINDS = 4  # rounds kept per run: a session that switches settings need not capture again
_rounds: weakref.WeakKeyDictionary[StaticRun, dict[tuple, DeviceRound]] = weakref.WeakKeyDictionary()


@dataclass(frozen=True)
class Strategy:
    """Who runs the rounds, and why: `stock` on the host; on the device `graph`, or on a CPU, which captures none,
    `fast`. tree: on the device, the form of every round."""

    name: str
    reason: str
    tree: DeviceTree | None = None


def choose_round(decoder: Declared, settings: Settings, models: dict[str, LanguageModel]) -> Strategy:
    """Where the rounds of a run take place.

    The environment variable WORKBENCH_ROUND says `auto` (the default: on the device where that is a GPU), `device`
    (also on a CPU, where it is a check and no gain) or `host`. What a device round cannot do stays on the host.

    Raises BadInput for another value.
    """
    asked = os.environ.get(VARIABLE, "auto")
    if asked not in ("auto", "device", "host"):
        raise BadInput(f"{VARIABLE}: expected auto, device or host, got {asked!r}")
    if asked == "host":
        return Strategy("stock", "asked for")
    if asked == "auto" and (device := models["target"].device.type) != "cuda":
        return Strategy("stock", f"the model is on {device!r}")
    tree = _tree_of(decoder)
    reason = tree if isinstance(tree, str) else _refusal(tree, decoder, settings, models)
    if reason is not None:
        return Strategy("stock", reason)
    name = "graph" if models["target"].device.type == "cuda" else "fast"
    return Strategy(name, "asked for" if asked == "device" else "the model is on 'cuda'", tree)


def _tree_of(decoder: Declared) -> DeviceTree | str:
    """The form of every round of a decoder, where the device can do it alone, else why it cannot."""
    if decoder.declared_name == "autoregressive":
        return DeviceTree()
    if decoder.declared_name != "speculative":
        return f"{decoder.declared_name} decides on the host"
    drafter, shape, verifier = decoder.drafter, decoder.shape, decoder.verifier
    if not isinstance(drafter, DraftModel):
        return f"drafter {drafter.declared_name} runs on the host"
    if type(shape) not in (FixedLength, FixedTree):
        return f"shape {shape.declared_name} decides on the host"
    if type(verifier) not in (Greedy, SeededMatch, Rejection):
        return f"verifier {verifier.declared_name} decides on the host"
    branching = (1,) * shape.length if isinstance(shape, FixedLength) else tuple(shape.branching)
    return DeviceTree(branching, drafter.declared_name, verifier.seeded)


def _refusal(tree: DeviceTree, decoder: Declared, settings: Settings, models: dict[str, LanguageModel]) -> str | None:
    """Why the rounds of a run cannot take place on the device, or None."""
    if not tree.seeded and not _rejects(models["target"].device):
        return "rejection on the device takes Triton"
    if settings.sampling.processors:
        return "Python processors run on the host"
    if settings.constraint is not None:
        return "a constraint's masks are made on the host"
    if settings.level == "full":
        return "level 'full' keeps whole rows of the distribution"
    if any(stack is not None for stack in decoder.caches(settings).values()):
        return "cache stacks are maintained by the host"
    if len({lm.device for lm in models.values()}) > 1:
        return "the models are on several devices"
    if max(tree.branching, default=0) > min(lm.vocab_size for lm in models.values()):
        return "the tree asks for more children than there are tokens"
    return _unfit(models.values())


def _unfit(models: Iterable[LanguageModel]) -> str | None:
    """Why one of these models cannot run on the device, or None."""
    from workbench.device.model import DeviceModel  # which imports transformers

    return next((reason for lm in models if (reason := DeviceModel.refuses(lm))), None)


def _rejects(device: torch.device) -> bool:
    dist = torch.empty(1, 1, 1, device=device)
    return verification.choose(dist, dist[0], IMPLEMENTATION).name == "triton"


def obstacle(state: State, tree: DeviceTree) -> str | None:
    """Why just this round cannot run on the device, or None."""
    end = len(state.tokens)
    if any(end <= state.prompt_length + index <= end + tree.depth for index in state.settings.force):
        return "tokens are forced"
    if tree.depth and end < 2:
        return "a draft model reads the last two tokens"
    if tree.depth and not state.runners["draft"].reads(state.pending):
        return "the draft model does not have the last token"
    if any(runner.model.context < end + tree.depth + (role == "target") for role, runner in state.runners.items()):
        return "the context ends"
    return None


def run_round(decoder: Declared, state: State, r: Round) -> bool:
    """One round on the device; False, and no token, where it belongs to the host.

    Raises NumericalError where a logit is NaN or infinite.
    """
    tree = state.strategy.tree
    if tree is None or obstacle(state, tree):
        return False
    if _unfit(runner.model for runner in state.runners.values()):  # changed since the run's start
        return False
    root = len(state.tokens) - 1
    runners = {role: state.runners[role] for role in ("target", "draft")[: 2 if tree.depth else 1]}
    for role in runners:
        r.catch_up(role, root if role == "target" else root - 1)
    if any(StaticStore.refuses(runner.store) for runner in runners.values()):
        return False
    for runner in runners.values():
        if type(runner.store) is not StaticStore:
            ahead = min(state.settings.max_new_tokens, runner.model.context - root, _AHEAD)
            runner.store = StaticStore.of(runner.store, root + ahead + tree.nodes)
    context, nodes = runners["target"].store.length, {"target": tree.nodes, "draft": tree.expanded}
    runs = {role: runner.store.open(root + nodes[role]) for role, runner in runners.items()}
    try:
        round_ = _round_of(tree, state.settings, runners, runs)
        start = time.perf_counter()
        found = round_(root, state.tokens[-2] if tree.depth else 0, state.pending)
        wall = (time.perf_counter() - start) * 1000
        if not found["finite"][0]:
            raise NumericalError("the model returned NaN or infinite logits; check its weights and dtype")
    except BaseException:
        for runner in runners.values():
            runner.store.discard()
        raise
    _record(r, tree, context, wall, round_)
    _conclude(decoder, state, r, round_, found)
    return True


def _conclude(decoder: Declared, state: State, r: Round, round_: DeviceRound, found: dict[str, np.ndarray]) -> None:
    """Append and commit what a round has found; of its nodes those count that exist, by numbers of their own."""
    form, kept = round_.template, np.flatnonzero(found["exists"]).tolist()
    numbers = {node: number for number, node in enumerate(kept)}
    tree, qs = DraftTree([state.pending]), found.get("q")  # at level `off` nobody asks for the latter
    for node in kept[1:]:
        kind = POINT if form.seeded or round_.sampling.greedy else DIST
        q = None if qs is None else float(qs[node - 1])
        tree.add(numbers[form.parents[node]], int(found["tokens"][node]), kind, q, form.drafter)
    path = [numbers[int(node)] for node in found["path"] if node >= 0]
    if form.depth:
        read = [number for number, depth in enumerate(tree.depths) if 0 < depth < form.depth]
        state.memory["expanded"] = tuple(read)
        in_place = [read.index(node) for node in path if node in read]
        state.runners["draft"].store.commit_written(len(state.tokens), len(read), in_place)
    state.runners["target"].store.commit_written(len(state.tokens) - 1, len(tree), [0, *path])
    dist = PackedDistribution(found, kept, round_.sampling, round_.model.vocab_size)
    if form.depth:
        outcome = _outcome(found, kept, path) if "fates" in found else None
        decoder.verify_and_commit(state, r, tree, dist, outcome=outcome)
        return
    r.commit("target", [0])
    r.append(dist, [0], [dist.choose(0)], ["target"])


def _round_of(tree: DeviceTree, settings: Settings, runners: dict, runs: dict) -> DeviceRound:
    """The round for these runs; made once, it lives as long as the target's run whose addresses it holds."""
    from workbench.device.model import DeviceModel

    figures = settings.level != "off"
    drafts = weakref.ref(runs["draft"]) if "draft" in runs else None
    key = (tree, settings.sampling, settings.noise_seed, figures, drafts)
    kept = _rounds.setdefault(runs["target"], {})
    found = kept.get(key)
    if found is None:
        parts = {role: (DeviceModel.of(runner.model), runs[role]) for role, runner in runners.items()}
        sampling = DeviceSampling(settings.sampling, settings.noise_seed, IMPLEMENTATION)
        found = DeviceRound(tree, sampling, figures, **parts, implementation=IMPLEMENTATION)
        if len(kept) >= _KINDS:
            kept.pop(next(iter(kept))).replayed.close()
        kept[key] = found
    return found


class PackedDistribution:
    """What came back of the distributions of a round: stands for a `Distribution` wherever a round is concluded."""

    def __init__(self, found: dict[str, np.ndarray], kept: list[int], sampling: DeviceSampling, vocabulary: int):
        self.greedy = sampling.greedy
        self._choices = found["choice"][kept].astype(np.int64).tolist()
        self._vocabulary, self._sampled = vocabulary, sampling.sampled
        if "table" in found:
            self._table = found["table"][kept].tolist()
            rows = found["removed"][kept].tolist()
            self._cut_by = [("greedy",) if self.greedy else named(sampling.filters, row) for row in rows]
        columns = ("p", "entropy_target_nats", "entropy_draft_nats", "tv", "kl_nats")
        drafts = [node - 1 for node in kept[1:]]
        self._comparison = {name: [None, *found[name][drafts].tolist()] for name in columns if name in found}

    def choose(self, row: int, seed: int = 0, position: int = 0) -> int:
        """The token a plain decoder takes; the round's seed and positions are those it was drawn with."""
        return self._choices[row]

    def compare(self, tree: DraftTree) -> dict[str, list]:
        """As of `Distribution`, for the round's own tree."""
        return self._comparison

    def statistics(self, tokens: list[int], rows: list[int]) -> dict[str, list]:
        """As of `Distribution`, for the tokens plain decoding takes."""
        if tokens != [self._choices[row] for row in rows]:
            raise RuntimeError(f"the round took {[self._choices[row] for row in rows]}, not {tokens}")
        table, cut_by = [self._table[row] for row in rows], [self._cut_by[row] for row in rows]
        best = [True] * len(rows) if self.greedy else None
        return unpack(table, self._vocabulary, cut_by, self._sampled, best)


def _outcome(found: dict[str, np.ndarray], kept: list[int], path: list[int]) -> Outcome:
    """Of a round verified by rejection, by the numbers of the nodes that exist."""
    fates = [verification.FATES[int(code)] for code in found["fates"][kept]]
    reasons = [verification.REASONS[int(code)] for code in found["reasons"][kept]]
    us = [None if np.isnan(u) else float(u) for u in found["us"][kept]]
    token = int(found["choice"][kept[path[-1] if path else 0]])
    return Outcome(path, token, verification.SOURCES[int(found["source"][0])], fates, reasons, us)


def _record(r: Round, tree: DeviceTree, context: int, wall: float, round_: DeviceRound) -> None:
    """Record the round's forwards. They are one launch: only a plain round's time is that of its forward."""
    how = round_.implementation
    if tree.depth:
        r.record_forward("draft", 2, Reads(context - 1), None, how)
        for level in tree.levels[1:-1]:
            r.record_forward("draft", len(level), Reads(context + level.start), None, how)
    r.record_forward("target", tree.nodes, Reads(context), None if tree.depth else wall, how)
    if round_.device.type == "cuda" and not round_.replayed.captured:
        r.step.figures["not_captured"] = round_.replayed.reason
