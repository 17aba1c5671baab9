"""A round shown phase by phase: what is sent holds nothing that a later phase decides, and all that is decided."""

import itertools
import json
from copy import deepcopy

import pytest

from workbench import web
from workbench.trace import Trace
from workbench.web.data import ACCEPT, CACHE, COMMIT, DRAFT, PHASES, VERIFY

LATER = CACHE + 1
TABLES = ("tokens", "rounds", "drafts", "hypotheses", "canvas", "forwards", "decisions", "slots")


def leaves(value) -> set:
    """Every text, number and key in nested JSON; floats as the payload rounds them."""
    if isinstance(value, dict):
        return {*value, *(leaf for one in value.values() for leaf in leaves(one))}
    if isinstance(value, list):
        return {leaf for one in value for leaf in leaves(one)}
    return {float(f"{value:.5g}") if isinstance(value, float) else value}


def marked(trace: Trace) -> tuple[Trace, int, list[set]]:
    """The trace with values in one round, and in the next, that stand nowhere else; that round's number; for each phase
    those that it decides, last those of the next round."""
    log, count = deepcopy(trace.log), itertools.count()
    places = [i for i, event in enumerate(log) if event["type"] == "round"]
    at = next(k for k, i in enumerate(places) if k > 3 and {"rejected", "accepted"} <= {*log[i]["drafts"]["fate"]})
    secret: list[set] = [set() for _ in range(LATER + 1)]

    def put(phase: int, columns: dict, name: str, first: float, form: str = "") -> None:
        """New values in a column, from `first` on (numbers below 0 stand nowhere else); `form` makes texts of them."""
        step = 1 if isinstance(first, int) else 1e-3
        made = [first + step * next(count) for _ in columns.get(name) or next(iter(columns.values()))]
        columns[name] = [form.format(one) for one in made] if form else made
        secret[phase] |= leaves(columns[name])

    def one(phase: int, columns: dict, name: str, first: float) -> None:
        columns[name] = [columns[name]]
        put(phase, columns, name, first)
        (columns[name],) = columns[name]

    for event, of in ((log[places[at]], lambda phase: phase), (log[places[at + 1]], lambda phase: LATER)):
        drafts, tokens, passes = event["drafts"], event["tokens"], event["forwards"]
        put(of(DRAFT), drafts, "token_id", 90_000)
        put(of(DRAFT), drafts, "text", 0, "drafted {:04}")
        put(of(DRAFT), drafts, "q", -0.1)
        put(of(VERIFY), drafts, "p", -10.1)
        put(of(ACCEPT), drafts, "u", -20.1)
        put(of(ACCEPT), drafts, "reason", 0, "reason {:04}")
        one(of(ACCEPT), event, "accepted", 70_000)
        put(of(COMMIT), tokens, "token_id", 80_000)
        put(of(COMMIT), tokens, "text", 0, "committed {:04}")
        put(of(COMMIT), tokens, "entropy_raw_nats", -30.1)
        put(of(COMMIT), tokens, "p_raw", -40.1)
        tokens["topk_raw"] = [[[60_000 + next(count)], [-50.1 + next(count) / 1000]] for _ in tokens["token_id"]]
        secret[of(COMMIT)] |= leaves(tokens["topk_raw"])
        one(of(COMMIT), event, "context", 50_000)
        event["ms"] |= {"draft": 0, "target": 0, "verify": 0, "commit": 0, "cache": 0}
        for phase, name in enumerate(("draft", "target", "verify", "commit", "cache")):
            one(of(phase), event["ms"], name, -60.1)
        one(of(CACHE), event["ms"], "total", -70.1)
        put(LATER, passes, "wall_ms", -80.1)
        for kind, ms in zip(passes["phase"], passes["wall_ms"], strict=True):
            secret[of(DRAFT if kind == "draft" else VERIFY)] |= leaves(ms)
        size = 700_000 + next(count)  # of a layer; what is sent is the sum
        event["cache"]["target"] = {"live_slots": event["cache"]["target"]["live_slots"], "payload": size}
        secret[of(CACHE)].add(size * trace.run["models"][0]["layers"])
    own = {one for phase in secret[:LATER] for one in phase}
    secret[LATER] -= own
    log.insert(places[at] + 1, {"type": "decision", "round": log[places[at]]["round"], "action": "secret action"})
    secret[CACHE].add("secret action")
    return Trace(log), log[places[at]]["round"], secret


@pytest.fixture(scope="module")
def secrets(managed):
    return marked(managed)


@pytest.mark.parametrize("phase", range(len(PHASES)), ids=PHASES)
def test_each_phase_holds_what_is_decided_and_nothing_else(secrets, phase):
    trace, number, secret = secrets
    there = leaves(
        json.loads(web.to_json(web.payload(trace, upto=(number, phase), text_of=lambda token: f"<{token}>")))
    )
    for since, values in enumerate(secret):
        assert len(values) > 3
        if since <= phase:
            assert values <= there, f"{PHASES[since]} is decided"
        else:
            assert not values & there, f"phase {since} is not decided yet"
    named = {int(name) for name in there if isinstance(name, str) and name.isdecimal() and 60_000 <= int(name) < 70_000}
    assert bool(named) == (phase >= COMMIT)  # before, the candidates of its tokens are not even named


@pytest.mark.parametrize("phase", range(len(PHASES)), ids=PHASES)
def test_rounds_before_are_whole_and_none_comes_after(managed, phase):
    whole, (number, length) = web.payload(managed), _middle(managed)
    data = web.payload(managed, upto=(number, phase))
    assert data["phase"] == (None if phase == CACHE else phase) and data["rounds_recorded"] == number + 1
    assert data["length"] == len(data["tokens"]["round"]) and data["ended"] is None
    assert (data["length"] == length) == (phase < COMMIT)
    for table in TABLES:
        assert max(data[table].get("round", [0]), default=0) <= number
        for name, values in data[table].items():
            rounds = whole[table]["round"]
            before = [value for value, round in zip(whole[table][name], rounds, strict=True) if round < number]
            assert values[: len(before)] == before, f"{table}.{name}"
    fates = [
        fate for fate, round in zip(data["drafts"]["fate"], data["drafts"]["round"], strict=True) if round == number
    ]
    assert fates and all((fate is None) == (phase < 2) for fate in fates)


def _middle(trace: Trace) -> tuple[int, int]:
    """A round with drafts somewhere inside, and the tokens before it."""
    row = trace.rounds[trace.rounds["drafted"] > 0].iloc[3]
    return int(row["round"]), int((trace.tokens["round"] < row["round"]).sum())


def test_the_last_phase_of_the_last_round_is_all_there_is(managed):
    last = int(managed.rounds["round"].iloc[-1])
    assert web.payload(managed, upto=(last, CACHE)) == web.payload(managed)


def test_a_delta_stops_at_the_phase_too(managed):
    number, _ = _middle(managed)
    delta = web.payload(managed, number, upto=(number, 1))
    assert (
        delta["rounds"]["round"] == [number]
        and delta["tokens"] == {}
        and delta["slots"] == {"round": []} | {name: [] for name in delta["slots"]}
    )
    assert all(p is not None for p in delta["drafts"]["p"]) and "fate" not in delta["drafts"]
    assert "cache_bytes" not in delta["rounds"] and "accepted" not in delta["rounds"]
