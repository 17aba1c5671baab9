"""The tables that the tests of whole families walk: every registered member is in them.

What its defaults do not say stands beside the others in `tests/rows/<family>_<name>.py`, where there is such a file:

- of a decoder `ROWS`, by what goes behind its name: how it is made, and what it guarantees; it must have that file;
- of a drafter, shape, verifier, policy, quantizer or reader `SETTINGS`, small enough for the models of the tests, or
  `make(draft model's name, folder of trained parts)`, or `ROWS`, several of them;
- of a drafter what it `GIVES`, of a shape what it `NEEDS`, of a verifier the only `SHAPES` that it takes;
- of a view `draw(trace, theme=None)`, where it draws something else than one trace.
"""

import os
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import workbench as wb
from workbench import declare, members


@dataclass(frozen=True)
class Row:
    """make(draft model's name) -> the decoder; greedy, sampled: its guarantee at temperature 0 and at `temperature`."""

    make: Callable[[str], Any]
    greedy: str
    sampled: str | None  # None: refused there
    temperature: float = 0.8

    @property
    def lossless(self) -> bool:
        return self.greedy == "exact"


def speculative(draft: str, **parts: Any) -> Any:
    parts.setdefault("shape", wb.FixedLength(3))
    return wb.Speculative(drafter=wb.DraftModel(draft), **parts)


def row(family: str, name: str, what: str, default: Any) -> Any:
    """What the file of a member says, if there is one."""
    place = f"tests.rows.{family}_{name}"
    return getattr(import_module(place), what, default) if find_spec(place) else default


def listed(family: str) -> list[str]:
    return [name for known, name, _, _ in members.MEMBERS if known == family]


def sample(family: str, name: str, draft: str = "", heads: str = "") -> Any:
    """One of a member, as the tests use it: with the draft model and the trained parts given."""
    if make := row(family, name, "make", None):
        return make(draft, heads)
    cls = declare.get(family, name)
    given = {entry.name: draft for entry in declare.describe(cls) if entry.model}
    given |= {entry.name: heads for entry in declare.describe(cls) if entry.name == "weights"}
    return cls(**given | row(family, name, "SETTINGS", {}))


def samples(family: str) -> dict[str, Any]:
    found = {}
    for name in listed(family):
        rows = row(family, name, "ROWS", {})
        found |= {f"{name}{more}": member for more, member in rows.items()} or {name: sample(family, name)}
    return found


DECODERS: dict[str, Row] = {
    "-".join(filter(None, (name, more))): found
    for name in listed("decoder")
    for more, found in row("decoder", name, "ROWS", {}).items()
}

# every drafter, shape and verifier: make(draft model's name, folder of trained parts) -> the member
DRAFTERS = {name: partial(sample, "drafter", name) for name in listed("drafter")}
SHAPES = {name: partial(sample, "shape", name, "") for name in listed("shape")}
VERIFIERS = {name: partial(sample, "verifier", name, "") for name in listed("verifier")}

# every view: draw(trace, theme=None) -> its figure
VIEWS = {name: row("view", name, "draw", None) or declare.get("view", name) for name in listed("view")}

# what a shape may need of a drafter, and what the error must say where it is not given
REASONS = {
    "confidence": "reads the drafter's confidence",
    "distributions": "reads the drafter's distributions",
    "branches": "drafts one chain",
    "alone": "needs the draws of one drafter alone",
    "exits": "chooses exit layers",
    "hidden": "reads a draft's hidden states",
}
USUAL = {"confidence", "distributions", "branches", "alone"}  # what a drafter gives that says nothing else


def refusal(drafter: str, shape: str, verifier: str) -> str | None:
    """Why three names cannot go together, as the error must say it; None where they can."""
    gives = row("drafter", drafter, "GIVES", USUAL)
    for need in row("shape", shape, "NEEDS", ()):
        if need not in gives:
            return REASONS[need]
    if shape not in row("verifier", verifier, "SHAPES", (shape,)):
        return row("verifier", verifier, "REASON", "") if "distributions" in gives else REASONS["distributions"]
    return None


# the spine's own parts, which the tests of the round itself and of the toy model walk through
SPINE = (("draft_model", "copyspec"), ("fixed", "confidence", "tree"), ("greedy", "seeded", "rejection"))

# (family, name) pairs of these that cannot go together, with the reason that the error must give
INCOMPATIBLE = {
    ("copyspec", "confidence"): "reads the drafter's confidence",
    ("copyspec", "tree"): "drafts one chain",
    ("greedy", "sampling"): "needs temperature 0",
}


def compositions(draft: str) -> Iterator[tuple[str, Any]]:
    """Every drafter × shape × verifier of the spine that goes together."""
    drafters, shapes, verifiers = SPINE
    for drafter in drafters:
        for shape in shapes:
            if (drafter, shape) in INCOMPATIBLE:
                continue
            for verifier in verifiers:
                yield f"{drafter}-{shape}-{verifier}", triple(drafter, shape, verifier, draft)


def triple(drafter: str, shape: str, verifier: str, draft: str, heads: str = "") -> Any:
    """The decoder of three names."""
    return wb.Speculative(
        drafter=DRAFTERS[drafter](draft, heads), shape=SHAPES[shape](heads), verifier=VERIFIERS[verifier](heads)
    )


POLICIES = samples("policy")
QUANTIZERS = samples("quantizer")
READERS = samples("reader")

APART = {(policy, "mixed_kivi") for policy in ("snapkv", "pyramidkv")}  # they read the attention of other rows
APART |= {("sentencekv", reader) for reader in READERS}  # both choose what is read


def stacks() -> Iterator[tuple[str, Any]]:
    """Every policy, every quantizer, every reader, and all of these together that are not refused."""
    for policy in (None, *POLICIES):
        for quantizer in (None, *QUANTIZERS):
            for reader in (None, *READERS):
                name = "+".join(filter(None, (policy, quantizer, reader)))
                if name and not APART & {(policy, quantizer), (policy, reader)}:
                    yield name, wb.Stack(POLICIES.get(policy), QUANTIZERS.get(quantizer), READERS.get(reader))


def length(stack: Any) -> int:
    """How often a prompt of some fifty tokens is said under a stack, so that what chooses leaves something out."""
    return 4 if isinstance(stack, wb.Stack) and (stack.reader or getattr(stack.policy, "reads", None)) else 1


def covered() -> dict[str, Any]:
    """The stacks that a run of the suite tries: every member alone, every policy with three quantizers that change from
    commit to commit, every reader over every kind of pages and a policy; all where WORKBENCH_CAMPAIGN is set."""
    every, chosen = dict(stacks()), {*POLICIES, *QUANTIZERS, *READERS}
    for place, policy in enumerate(POLICIES):
        chosen |= {f"{policy}+{names(QUANTIZERS, commit() + place + 2 * turn)}" for turn in range(3)}
    for place, reader in enumerate(READERS):
        kinds = ("kivi4", "mixed_kivi", names(QUANTIZERS, commit() + place))
        chosen |= {f"{quantizer}+{reader}" for quantizer in kinds}
        chosen.add(f"{names(POLICIES, commit() + place)}+{names(QUANTIZERS, commit() + place + 1)}+{reader}")
    campaign = bool(os.environ.get("WORKBENCH_CAMPAIGN"))
    return {name: stack for name, stack in every.items() if campaign or name in chosen}


def names(table: dict[str, Any], place: int) -> str:
    return list(table)[place % len(table)]


def commit() -> int:
    """A number that changes from commit to commit."""
    told = subprocess.run(["git", "rev-parse", "HEAD"], cwd=Path(__file__).parent, capture_output=True, text=True)
    return int(told.stdout.strip()[:8] or "0", 16)
