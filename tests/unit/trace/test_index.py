"""What a log has reached is known without walking it again, and follows from the log alone."""

import pytest

from workbench.trace.index import Reached, RoundIndex


def event(emitted: int, kind: str = "round", **more) -> dict:
    return {"type": kind, "emitted": emitted, "ms": {"total": 0.5}, **more}


def test_a_growing_log_is_followed_and_every_event_looked_at_once():
    class Watched(list):
        asked = 0

        def __getitem__(self, place):
            self.asked += 1
            return super().__getitem__(place)

    log = Watched([{"type": "run"}])
    index = RoundIndex(log)
    assert len(index) == 0 and index.last == Reached(0, 0, 0, 0, 0.0) and index.at(0) == 0
    for number in range(200):
        log += [event(number % 3, drafted=2, accepted=1), event(0, "decision"), event(0, "mark")]
        assert len(index) == number + 1
    assert index.last == Reached(598, sum(n % 3 for n in range(200)), 400, 200, 100.0)
    assert log.asked < 2 * len(log)
    assert [e["type"] for e in index.events(7)] == ["round", "decision", "mark"] and index.event(7) is log[22]


def test_tokens_are_found_in_their_rounds_also_behind_rounds_without_any():
    counts = [0, 2, 0, 1, 3, 0]
    log = [{"type": "run"}, *map(event, counts)]
    index = RoundIndex(log)
    expected = [number for number, count in enumerate(counts) for _ in range(count)]
    assert [index.at(token) for token in range(6)] == expected and index.at(6) == 6
    assert [index.start(number) for number in range(7)] == [0, 0, 2, 2, 3, 6, 6]
    with pytest.raises(IndexError):
        index[6]
    assert index.after(event(4)).tokens == 10 and len(index) == 6


def test_how_far_the_hypotheses_before_a_round_reach():
    """The longest of all searches before; one that says nothing may have looked anywhere, lookahead is dropped."""
    log = [{"type": "run"}, event(0), event(1, hypotheses={"depth": [9]})]
    log += [event(0, mode="search", hypotheses={"depth": found}) for found in ([2, 5, 3], [4], [None, 6])]
    log += [event(1, mode="chain"), event(1, mode="diffusion"), event(1)]
    index = RoundIndex(log)
    assert [index.reach(number) for number in range(9)] == [0, 0, 0, 5, 5, 6, 6, float("inf"), float("inf")]


def test_what_a_damaged_round_holds_counts_as_nothing():
    index = RoundIndex([{"type": "run"}, event(1, drafted="x", accepted=None, ms={"total": "long"}), event(2)])
    assert index.last == Reached(2, 3, 0, 0, 0.5)


def test_noting_a_round_twice_changes_nothing():
    """As two threads do, or one that was interrupted."""
    log = [{"type": "run"}, event(2), event(3)]
    index = RoundIndex(log)
    assert len(index) == 2
    for stale in ((0, 1), (1, 2), (5, 3)):
        index._seen = stale
        assert len(index) == 2 and index.last.tokens == 5
    log.append(event(1))
    assert len(index) == 3 and index.last.tokens == 6
