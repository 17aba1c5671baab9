"""Where a round runs: on the device with one copy to the host (`DeviceRound`), or step by step from the host.

`choose_round` decides, in one place, and says why. `run_round` does a device round on a state: it brings the caches up
to date, launches the round, and hands tree and distributions, as they came back, to the decoder's own `conclude`, which
verifies, emits and commits as it would after forwards of its own.
"""

import os
import time
import weakref
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

from workbench.device.forward import DeviceRound, DeviceTree
from workbench.device.sampling import DeviceSampling
from workbench.device.store import StaticRun, StaticStore
from workbench.engine.distribution import unpack
from workbench.engine.model import LanguageModel
from workbench.engine.settings import Settings
from workbench.errors import BadInput, NumericalError
from workbench.speculation.tree import DIST, POINT, DraftTree
from workbench.speculation.verifiers.base import Outcome
from workbench_kernels import verification

if TYPE_CHECKING:
    from workbench.decoders.base import Decoder, Round, State

__all__ = ["Strategy", "PackedDistribution", "body_of", "choose_round", "run_round"]

VARIABLE = "WORKBENCH_ROUND"
IMPLEMENTATION = "auto"  # of the kernels in a round; tests set it to run them under the interpreter
_AHEAD = 2048  # tokens a run is given room for at once: when it is full it moves, and rounds are captured anew
_KINDS = 4  # rounds kept per run: a session that switches settings need not capture again
_rounds: weakref.WeakKeyDictionary[StaticRun, dict[tuple, DeviceRound]] = weakref.WeakKeyDictionary()


class Strategy(NamedTuple):
    """`device` or `host`, and why."""

    name: str
    reason: str


def choose_round(decoder: "Decoder", settings: Settings, runners: dict[str, LanguageModel]) -> Strategy:
    """Where the rounds of a run take place.

    The environment variable WORKBENCH_ROUND says `auto` (the default: on the device where that is a GPU), `device`
    (also on a CPU, where it is a check and no gain) or `host`. What a device round cannot do stays on the host.

    Raises BadInput for another value.
    """
    asked = os.environ.get(VARIABLE, "auto")
    if asked not in ("auto", "device", "host"):
        raise BadInput(f"{VARIABLE}: expected auto, device or host, got {asked!r}")
    if asked == "host":
        return Strategy("host", "asked for")
    if asked == "auto" and (device := runners["target"].device.type) != "cuda":
        return Strategy("host", f"the model is on {device!r}")
    reason = _refusal(decoder, settings, runners)
    if reason is not None:
        return Strategy("host", reason)
    return Strategy("device", "asked for" if asked == "device" else "the model is on 'cuda'")


def _refusal(decoder: "Decoder", settings: Settings, runners: dict[str, LanguageModel]) -> str | None:
    from workbench.device.model import DeviceModel

    template = decoder.device_tree(settings)
    if isinstance(template, str):
        return template
    if not template.seeded and not _rejects(runners["target"].device):
        return "rejection on the device takes Triton"
    if settings.sampling.processors:
        return "Python processors run on the host"
    if settings.level == "full":
        return "level 'full' keeps whole rows of the distribution"
    if any(stack is not None for stack in decoder.caches(settings).values()):
        return "cache stacks are maintained by the host"
    if len({lm.device for lm in runners.values()}) > 1:
        return "the models are on several devices"
    if max(template.branching, default=0) > min(lm.vocab_size for lm in runners.values()):
        return "the tree asks for more children than there are tokens"
    return next((reason for lm in runners.values() if (reason := DeviceModel.refuses(lm))), None)


def _rejects(device: torch.device) -> bool:
    dist = torch.empty(1, 1, 1, device=device)
    return verification.choose(dist, dist[0], IMPLEMENTATION).name == "triton"


def obstacle(state: "State", template: DeviceTree) -> str | None:
    """Why just this round cannot run on the device, or None."""
    end = len(state.tokens)
    if any(end <= state.prompt_length + index <= end + template.depth for index in state.settings.force):
        return "tokens are forced"
    if template.depth and end < 2:
        return "a draft model reads the last two tokens"
    if template.depth and not state.runners["draft"].reads(state.pending):
        return "the draft model does not have the last token"
    if any(runner.model.context < end + template.depth + (role == "target") for role, runner in state.runners.items()):
        return "the context ends"
    return None


def run_round(decoder: "Decoder", state: "State", r: "Round") -> bool:
    """One round on the device; False, and no token, where this round belongs to the host.

    Raises NumericalError where a logit is NaN or infinite.
    """
    models = {role: runner.model for role, runner in state.runners.items()}
    if choose_round(decoder, state.settings, models).name == "host":
        return False
    template = decoder.device_tree(state.settings)
    if obstacle(state, template):
        return False
    root = len(state.tokens) - 1
    runners = {role: state.runners[role] for role in ("target", "draft")[: 2 if template.depth else 1]}
    for role in runners:
        r.catch_up(role, root if role == "target" else root - 1)
    if any(StaticStore.refuses(runner.store) for runner in runners.values()):
        return False
    for runner in runners.values():
        if type(runner.store) is not StaticStore:
            ahead = min(state.settings.max_new_tokens, runner.model.context - root, _AHEAD)
            runner.store = StaticStore.of(runner.store, root + ahead + template.nodes)
    contexts = {role: runner.store.length for role, runner in runners.items()}
    nodes = {"target": template.nodes, "draft": template.expanded}
    runs = {role: runner.store.open(root + nodes[role]) for role, runner in runners.items()}
    try:
        round_ = _round_of(template, state.settings, runners, runs)
        start = time.perf_counter()
        found = round_(root, state.tokens[-2] if template.depth else 0, state.pending)
        wall = (time.perf_counter() - start) * 1000
        if not found["finite"][0]:
            raise NumericalError("the model returned NaN or infinite logits; check its weights and dtype")
    except BaseException:
        for runner in runners.values():
            runner.store.discard()
        raise
    tree, dist, path = _read(found, template, state, round_)
    if template.depth:
        fed = [number for number, depth in enumerate(tree.depths) if 0 < depth < template.depth]
        state.memory["expanded"] = tuple(fed)
        runners["draft"].store.commit_written(root + 1, len(fed), [fed.index(node) for node in path if node in fed])
    runners["target"].store.commit_written(root, len(tree), [0, *path])
    _book(r, template, contexts, wall, round_.implementation)
    if round_.device.type == "cuda" and not round_.replayed.captured:
        r.step.figures["not_captured"] = round_.replayed.reason
    decoder.verify_and_commit(state, r, tree, dist)
    return True


def _round_of(template: DeviceTree, settings: Settings, runners: dict, runs: dict) -> DeviceRound:
    """The round for these runs; made once, it lives as long as the target's run whose addresses it holds."""
    from workbench.device.model import DeviceModel

    figures = settings.level != "off"
    drafts = weakref.ref(runs["draft"]) if "draft" in runs else None
    key = (template, settings.sampling, settings.noise_seed, figures, drafts)
    kept = _rounds.setdefault(runs["target"], {})
    found = kept.get(key)
    if found is None:
        parts = {role: (DeviceModel.of(runner.model), runs[role]) for role, runner in runners.items()}
        sampling = DeviceSampling(settings.sampling, settings.noise_seed, IMPLEMENTATION)
        found = DeviceRound(template, sampling, figures, **parts, implementation=IMPLEMENTATION)
        if len(kept) >= _KINDS:
            kept.pop(next(iter(kept))).replayed.close()
        kept[key] = found
    return found


def _read(found: dict[str, np.ndarray], template: DeviceTree, state: "State", round_: DeviceRound):
    """-> tree and distribution of the nodes that exist, and the accepted path, by the tree's own numbers."""
    chosen = found["exists"].astype(bool)
    numbers = np.cumsum(chosen) - 1
    kept = np.flatnonzero(chosen).tolist()
    tokens = found["tokens"].astype(np.int64)
    sampling = state.settings.sampling
    tree = DraftTree([state.pending])
    q = found.get("q")
    for node in kept[1:]:
        kind = POINT if template.seeded or sampling.greedy else DIST
        parent = int(numbers[template.parents[node]])
        tree.add(parent, int(tokens[node]), kind, None if q is None else float(q[node - 1]), template.drafter)
    path = [int(numbers[int(node)]) for node in found["path"] if node >= 0]
    return tree, PackedDistribution(found, kept, round_.sampling, round_.model.vocab_size), path


class PackedDistribution:
    """What came back of the distributions of a round: stands for a `Distribution` wherever a decoder concludes a round.

    outcome: what a verifier on the device decided, or None where the tokens plain decoding takes decide.
    comparison: columns of the drafts table, the root's entry first.
    """

    def __init__(self, found: dict[str, np.ndarray], kept: list[int], sampling: DeviceSampling, vocabulary: int):
        self.greedy = sampling.greedy
        self._choices = found["choice"][kept].astype(np.int64).tolist()
        self._vocabulary, self._sampled = vocabulary, sampling.sampled
        if "table" in found:
            self._table = found["table"][kept].tolist()
            names = np.array(sampling.filters, dtype=object)
            removed = found["removed"][kept].astype(bool)
            self._cut_by = [("greedy",)] * len(kept) if self.greedy else [tuple(names[row]) for row in removed]
        self.outcome = _outcome(found, kept) if "fates" in found else None
        columns = ("p", "entropy_target_nats", "entropy_draft_nats", "tv", "kl_nats")
        drafts = [node - 1 for node in kept[1:]]
        self.comparison = {name: [None, *found[name][drafts].tolist()] for name in columns if name in found}

    def choose(self, row: int, seed: int, position: int) -> int:
        """The token a plain decoder takes; the round's seed and positions are those it was drawn with."""
        return self._choices[row]

    def statistics_at(self, rows: list[int], tokens: list[int]) -> dict[str, list]:
        """As of `Distribution`, for the tokens plain decoding takes."""
        if tokens != [self._choices[row] for row in rows]:
            raise RuntimeError(f"the round took {[self._choices[row] for row in rows]}, not {tokens}")
        table, cut_by = [self._table[row] for row in rows], [self._cut_by[row] for row in rows]
        columns = unpack(table, self._vocabulary, cut_by, self._sampled)
        if self.greedy:
            columns["entropy_sampled_nats"] = [0.0] * len(rows)
            columns["p_sampled"] = [1.0] * len(rows)
            columns["keep_size"] = [1] * len(rows)
        return columns


def _outcome(found: dict[str, np.ndarray], kept: list[int]) -> Outcome:
    """Of a round verified by rejection, by the numbers of the nodes that exist."""
    numbers = {node: number for number, node in enumerate(kept)}
    path = [int(node) for node in found["path"] if node >= 0]
    fates = [verification.FATES[int(code)] for code in found["fates"][kept]]
    reasons = [verification.REASONS[int(code)] for code in found["reasons"][kept]]
    us = [None if np.isnan(u) else float(u) for u in found["us"][kept]]
    token = int(found["choice"][path[-1] if path else 0])
    source = verification.SOURCES[int(found["source"][0])]
    return Outcome([numbers[node] for node in path], token, source, fates, reasons, us)


def _book(r: "Round", template: DeviceTree, contexts: dict[str, int], wall: float, implementation: str) -> None:
    """The round's forwards. They are one launch: only a plain round's time is that of its forward."""
    if template.depth:
        root = contexts["target"]
        r.record_forward("draft", 2, root - 1, None, implementation)
        for level in template.levels[1:-1]:
            r.record_forward("draft", len(level), root + level.start, None, implementation)
    r.record_forward("target", template.nodes, contexts["target"], None if template.depth else wall, implementation)


def body_of(decoder: "Decoder", state: "State") -> dict[str, Any]:
    """Who runs the run's rounds, for its `run` event: `stock` on the host; on the device `graph`, or on a CPU, which
    captures none, `fast`."""
    models = {role: runner.model for role, runner in state.runners.items()}
    choice = choose_round(decoder, state.settings, models)
    device = "graph" if models["target"].device.type == "cuda" else "fast"
    return {"name": "stock" if choice.name == "host" else device, "reason": choice.reason}
