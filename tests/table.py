"""One table per family: a new member is a new row. The tests of whole families walk these tables."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import workbench as wb


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


DECODERS = {
    "autoregressive": Row(lambda draft: wb.Autoregressive(), "exact", "seeded"),
    "speculative": Row(lambda draft: speculative(draft), "exact", "seeded"),
    "speculative-confidence": Row(lambda draft: speculative(draft, shape=wb.ConfidenceStop(5, 0.5)), "exact", "seeded"),
    "speculative-tree": Row(lambda draft: speculative(draft, shape=wb.FixedTree((2, 2, 1))), "exact", "seeded"),
    "speculative-rejection": Row(lambda draft: speculative(draft, verifier=wb.Rejection()), "exact", "distribution"),
    "speculative-rejection-tree": Row(
        lambda draft: speculative(draft, shape=wb.FixedTree((2, 2, 1)), verifier=wb.Rejection()),
        "exact",
        "distribution",
    ),
    "speculative-greedy": Row(lambda draft: speculative(draft, verifier=wb.Greedy()), "exact", None),
    "speculative-copyspec": Row(lambda draft: wb.Speculative(drafter=wb.CopySpec(ngram=2)), "exact", "seeded"),
    "pearl": Row(lambda draft: wb.Pearl(draft, length=3), "exact", "seeded"),
    "pearl-rejection": Row(lambda draft: wb.Pearl(draft, 3, wb.Rejection()), "exact", "distribution"),
    "mirostat": Row(lambda draft: wb.Mirostat(), "own", "own", temperature=1.0),
    "entropy_adaptive": Row(lambda draft: wb.EntropyAdaptive(small=draft, threshold=1.5, dwell=2), "lossy", "lossy"),
}

# every drafter, shape and verifier: make(draft model's name, folder of trained parts) -> the member
DRAFTERS = {
    "aded": lambda draft, heads: wb.ADED(),
    "copyspec": lambda draft, heads: wb.CopySpec(ngram=1),
    "draft_model": lambda draft, heads: wb.DraftModel(draft),
    "eagle": lambda draft, heads: wb.Eagle(weights=heads),
    "fuse": lambda draft, heads: wb.Fuse(wb.DraftModel(draft), wb.CopySpec(ngram=1)),
    "hydra": lambda draft, heads: wb.Hydra(weights=heads),
    "input_guided": lambda draft, heads: wb.InputGuided(align=1),
    "jacobi": lambda draft, heads: wb.Jacobi(),
    "kangaroo": lambda draft, heads: wb.Kangaroo(weights=heads, exits=(1,)),
    "layer_skip": lambda draft, heads: wb.LayerSkip(skip=(1,)),
    "medusa": lambda draft, heads: wb.Medusa(weights=heads),
    "prompt_lookup": lambda draft, heads: wb.PromptLookup(ngram=2),
    "recycling": lambda draft, heads: wb.TokenRecycling(width=3),
    "suffix": lambda draft, heads: wb.SuffixRetrieval(shortest=1),
}

SHAPES = {
    "adaptive_confidence": lambda heads: wb.AdaptiveConfidence(max_length=4),
    "chains": lambda heads: wb.IndependentChains(count=2, length=3),
    "confidence": lambda heads: wb.ConfidenceStop(4, 0.4),
    "del": lambda heads: wb.Del(max_length=4),
    "dyspec": lambda heads: wb.DySpec(max_nodes=4),
    "eagle2": lambda heads: wb.Eagle2(max_nodes=6, width=2, depth=3),
    "fixed": lambda heads: wb.FixedLength(3),
    "heuristic": lambda heads: wb.HeuristicLength(start=2),
    "rsd_s": lambda heads: wb.StochasticBeam(width=2, depth=3),
    "sequoia": lambda heads: wb.Sequoia(max_nodes=6, depth=3),
    "specdec": lambda heads: wb.SpecDec(weights=heads),
    "tree": lambda heads: wb.FixedTree((2, 2, 1)),
}

VERIFIERS = {
    "greedy": lambda heads: wb.Greedy(),
    "judge": lambda heads: wb.Judge(threshold=1.0, weights=heads),  # lossy below 1
    "seeded": lambda heads: wb.SeededMatch(),
    "kseq": lambda heads: wb.KSeq(),
    "point": lambda heads: wb.PointMatch(),
    "rejection": lambda heads: wb.Rejection(),
    "typical": lambda heads: wb.Typical(),
}

# what cannot go together: (drafters, shapes, what the error must say); the first that fits is the reason
WITHOUT_DISTRIBUTIONS = ("aded", "copyspec", "input_guided", "prompt_lookup", "recycling", "suffix")
REFUSALS = [
    (WITHOUT_DISTRIBUTIONS, ("adaptive_confidence", "confidence", "del"), "reads the drafter's confidence"),
    (WITHOUT_DISTRIBUTIONS, ("chains", "dyspec", "eagle2", "rsd_s", "specdec"), "reads the drafter's distributions"),
    (("copyspec", "input_guided", "prompt_lookup"), ("sequoia", "tree"), "drafts one chain"),
    (("jacobi",), ("chains", "dyspec", "eagle2", "rsd_s", "sequoia", "tree"), "drafts one chain"),
    (("draft_model", "eagle", "fuse", "hydra", "jacobi", "layer_skip", "medusa"), ("del",), "chooses exit layers"),
    (("eagle", "hydra", "jacobi", "kangaroo", "layer_skip", "medusa"), ("specdec",), "reads a draft's hidden states"),
    (("fuse",), ("chains",), "needs the draws of one drafter alone"),
]


def refusal(drafter: str, shape: str, verifier: str) -> str | None:
    """Why three names cannot go together, as the error must say it; None where they can."""
    for drafters, shapes, reason in REFUSALS:
        if drafter in drafters and shape in shapes:
            return reason
    if verifier == "kseq" and shape != "chains":
        return "reads the drafter's distributions" if drafter in WITHOUT_DISTRIBUTIONS else "needs independent chains"
    return None


# the spine's own parts, which the tests of the round itself and of the toy model walk through
SPINE = (("draft_model", "copyspec"), ("fixed", "confidence", "tree"), ("greedy", "seeded", "rejection"))

# (family, name) pairs of these that cannot go together, with the reason that the error must give
INCOMPATIBLE = {
    ("copyspec", "confidence"): "reads the drafter's confidence",
    ("copyspec", "tree"): "drafts one chain",
    ("greedy", "sampling"): "needs temperature 0",
}


def speculative(draft: str, **parts: Any) -> Any:
    parts.setdefault("shape", wb.FixedLength(3))
    return wb.Speculative(drafter=wb.DraftModel(draft), **parts)


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
