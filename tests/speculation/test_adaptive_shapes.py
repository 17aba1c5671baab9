"""What shapes that learn from round to round make of what they are told, by hand."""

import pytest

import workbench as wb
from workbench.speculation import DIST, DraftTree


def grown(confidences: list[float]) -> DraftTree:
    tree = DraftTree([0])
    for node, confidence in enumerate(confidences):
        tree.add(node, 1, DIST, 0.5, "x")
        tree.confidence[node] = confidence
    return tree


def test_adaptive_confidence_follows_the_drafts():
    shape, memory = wb.AdaptiveConfidence(max_length=3, start=0.5), {}
    assert shape.ask(grown([0.4]), memory) == [] and shape.ask(grown([0.6]), memory) == [(1, 1)]
    for _ in range(60):
        shape.observe(memory, grown([0.9] * 3), 0)
    raised = memory["adaptive_confidence"][0]
    assert raised > 0.54 and shape.ask(grown([0.53]), memory) == []
    for _ in range(200):
        shape.observe(memory, grown([0.9] * 2), 2)
    assert memory["adaptive_confidence"][0] < raised - 0.1
    kept = memory["adaptive_confidence"][0]
    shape.observe(memory, grown([0.9] * 3), 3)  # the cap was hit: the threshold stays
    assert memory["adaptive_confidence"][0] == pytest.approx(kept)
    shape.observe(memory, grown([]), 0)
    assert memory["adaptive_confidence"][0] == pytest.approx(kept)


def test_adaptive_confidence_does_not_know_what_nobody_tested():
    """Rounds that differ behind the first rejection only leave the same threshold."""
    shape, memories = wb.AdaptiveConfidence(), ({}, {})
    for memory, length in zip(memories, (2, 6), strict=True):
        shape.observe(memory, grown([0.9] * length), 1)
    assert memories[0] == memories[1]


def shadow(agreed: dict[int, list[float]], confidence: float = 0.9) -> dict:
    return {
        "exits": {"layers": 8, "agreed": agreed, "confidence": {e: [confidence] * len(a) for e, a in agreed.items()}}
    }


def test_del_maximises_tokens_per_layer():
    """By hand: rates 0.5 and 0.9 behind 2 and 4 of 8 layers."""
    memory = shadow({2: [1, 0] * 5, 4: [1] * 9 + [0]})
    wb.Del(max_length=4).observe(memory, grown([0.9]), 1)

    def gain(rate, exit, length):
        return (1 - rate ** (length + 1)) / (1 - rate) / (length * exit + 8)

    best = max((gain(r, e, d), e, d) for r, e in ((0.5, 2), (0.9, 4)) for d in range(1, 5))
    assert (memory["del"]["exit"], memory["del"]["length"]) == best[1:] and best[0] > 1 / 8
    assert "exits" not in memory
    # the same with dear drafts: none pays
    memory = shadow({2: [1, 0] * 5, 4: [1] * 9 + [0]})
    costly = wb.Del(max_length=4, overhead=8)
    costly.observe(memory, grown([0.9]), 1)
    assert memory["del"]["length"] == 0 and costly.ask(DraftTree([0]), memory) == []
    # and it comes back once an exit is better
    for _ in range(40):
        memory |= shadow({2: [1] * 4, 4: [1] * 4})
        wb.Del(max_length=4).observe(memory, grown([]), 0)
    assert memory["del"]["exit"] == 2 and memory["del"]["length"] == 4
