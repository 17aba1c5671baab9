"""One table per family: a new member is a new row. The tests of whole families walk these tables."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import workbench as wb


@dataclass(frozen=True)
class Row:
    """make(draft model's name) -> the decoder; greedy, sampled: its claim at temperature 0 and at `temperature`."""

    make: Callable[[str], Any]
    greedy: str
    sampled: str | None  # None: refused there
    temperature: float = 0.8

    @property
    def lossless(self) -> bool:
        return self.greedy == "exact"


DECODERS = {
    "autoregressive": Row(lambda draft: wb.Autoregressive(), "exact", "seed"),
    "speculative": Row(lambda draft: speculative(draft), "exact", "seed"),
    "speculative-confidence": Row(lambda draft: speculative(draft, shape=wb.ConfidenceStop(5, 0.5)), "exact", "seed"),
    "speculative-tree": Row(lambda draft: speculative(draft, shape=wb.FixedTree((2, 2, 1))), "exact", "seed"),
    "speculative-rejection": Row(lambda draft: speculative(draft, verifier=wb.Rejection()), "exact", "distribution"),
    "speculative-rejection-tree": Row(
        lambda draft: speculative(draft, shape=wb.FixedTree((2, 2, 1)), verifier=wb.Rejection()),
        "exact",
        "distribution",
    ),
    "speculative-greedy": Row(lambda draft: speculative(draft, verifier=wb.Greedy()), "exact", None),
    "speculative-copyspec": Row(lambda draft: wb.Speculative(drafter=wb.CopySpec(gram=2)), "exact", "seed"),
    "mirostat": Row(lambda draft: wb.Mirostat(), "own_law", "own_law", temperature=1.0),
    "entropy_adaptive": Row(lambda draft: wb.EntropyAdaptive(small=draft, tau=1.5, dwell=2), "lossy", "lossy"),
}

DRAFTERS = {
    "draft_model": lambda draft: wb.DraftModel(draft),
    "copyspec": lambda draft: wb.CopySpec(gram=1),
}

SHAPES = {
    "fixed": wb.FixedLength(3),
    "confidence": wb.ConfidenceStop(4, 0.4),
    "tree": wb.FixedTree((2, 2, 1)),
}

VERIFIERS = {"greedy": wb.Greedy(), "keyed": wb.Keyed(), "rejection": wb.Rejection()}

# (family, name) pairs that cannot go together, with the reason that the error must give
INCOMPATIBLE = {
    ("copyspec", "confidence"): "reads the drafter's confidence",
    ("copyspec", "tree"): "drafts one chain",
    ("greedy", "sampling"): "needs temperature 0",
}


def speculative(draft: str, **parts: Any) -> Any:
    parts.setdefault("shape", wb.FixedLength(3))
    return wb.Speculative(drafter=wb.DraftModel(draft), **parts)


def compositions(draft: str) -> Iterator[tuple[str, Any]]:
    """Every drafter × shape × verifier that goes together."""
    for drafter, make in DRAFTERS.items():
        for shape in SHAPES:
            if (drafter, shape) in INCOMPATIBLE:
                continue
            for verifier in VERIFIERS:
                decoder = wb.Speculative(drafter=make(draft), shape=SHAPES[shape], verifier=VERIFIERS[verifier])
                yield f"{drafter}-{shape}-{verifier}", decoder


# caches: budgets small enough that every stack drops and seals several times in a hundred tokens
POLICIES = {
    "streaming": wb.StreamingLLM(sinks=4, window=36),
    "h2o": wb.H2O(budget=44, recent=32),
    "snapkv": wb.SnapKV(budget=40, window=32, kernel=3),
}

QUANTIZERS = {
    "paged": wb.Paged(),
    "kivi8": wb.KIVI(bits=8, residual=0),
    "kivi4": wb.KIVI(bits=4),
    "kivi2": wb.KIVI(bits=2, residual=0),
    "kivi-k8v2": wb.KIVI(bits_k=8, bits_v=2, layers={1: 4}, on_device=64),
}


def stacks() -> Iterator[tuple[str, Any]]:
    """Every policy, every quantizer, and every pair of them."""
    for policy in (None, *POLICIES):
        for quantizer in (None, *QUANTIZERS):
            if policy or quantizer:
                name = "+".join(filter(None, (policy, quantizer)))
                yield name, wb.Stack(POLICIES.get(policy), QUANTIZERS.get(quantizer))
