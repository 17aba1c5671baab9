"""Rounds that append nothing are places like all others: stepped, gone back to, asked, forked from, replayed."""

import json
import threading
from types import SimpleNamespace

import pytest
import torch

import workbench as wb
from tests.session.empty_rounds import Search
from tests.session.test_session import contents
from workbench import session as session_module
from workbench import web
from workbench.cli import main
from workbench.cursor import Place, Replay
from workbench.dashboard import branches, screen, share, transport
from workbench.dashboard.serve import NOTHING, answer
from workbench.dashboard.visits import Branch, Visit
from workbench.declare.registry import KNOWN
from workbench.errors import BadInput
from workbench.trace import Trace

from gradio import EventData  # isort: skip

PROMPT = [0, 1, 2, 3, 1, 2]
EMITTED = [0, 0, 3] * 4
# behind the prefill and every round: two that append nothing, then one of three tokens
ENDS = [Place(2 + n, sum(EMITTED[: n + 1])) for n in range(12)]
INSIDE = [Place(1 + n, ENDS[n].token - 3 + k) for n in (2, 5, 8, 11) for k in (1, 2)]
PLACES = sorted([Place(0, 0), *ENDS, *INSIDE])


def search(toy, decoder=None, **options) -> wb.Session:
    return wb.Session(toy, PROMPT, decoder or Search(), **({"max_new_tokens": 12, "ignore_eos": True} | options))


def done(toy, **options) -> wb.Session:
    """A run at its end."""
    one = search(toy, **options)
    one.run()
    assert one.ended == "length"
    return one


@pytest.fixture(scope="module")
def straight(toy) -> Trace:
    return wb.decode(toy, PROMPT, Search(), max_new_tokens=12, ignore_eos=True)


# -- moving --


def test_every_round_is_a_step_and_a_place(toy, straight):
    one, places, events = search(toy), [], []
    assert one.place == (0, 0) and one.round is None
    for event in one:
        events.append(event)
        places.append(one.place)
        assert one.round == event["round"] == one.rounds - 1 and one.cursor == one.place.token
    assert places == ENDS and [event["emitted"] for event in events] == EMITTED
    assert {event["mode"] for event in events} == {"search"} and contents(one.trace) == contents(straight)
    assert one.step() is None and one.place == ENDS[-1]


@pytest.mark.parametrize("kind", ["session", "file"])
def test_back_and_forward_over_the_record_one_place_at_a_time(toy, kind, tmp_path):
    one = done(toy)
    if kind == "file":
        one.trace.save(tmp_path / "run.wb")
        one = Replay(Trace.load(tmp_path / "run.wb"))
        one.jump(one.length, one.rounds)
        assert one.ended == "replayed"
    else:
        one.decoder = None  # any computation would fail
    back = []
    while one.place != (0, 0):
        back.append(one.place)
        one.back()
    assert back == ENDS[::-1] and one.back() == 0 and one.round is None
    assert [(one.step()["round"], one.place) for _ in ENDS] == list(enumerate(ENDS, 1))
    assert one.at_tip and one.ended and one.step() is None
    one.jump(6, 9)
    assert one.back(2) == 6 and one.place == (7, 6) and one.back(1) == 3 and one.place == (6, 3)
    one.jump(5)
    assert one.place == (6, 5) and one.round == 6 and one.back() == 3 and one.place == (6, 3) and one.round == 5


def test_tokens_are_stepped_through_rounds_without_any(toy):
    one, seen = search(toy), []
    while (event := one.step(by="token")) is not None:
        assert event["emitted"] == 3
        seen.append(one.place)
    assert seen == [place for place in PLACES if place in INSIDE or place in ENDS[2::3]]
    one.jump(6, 9)
    assert one.back(0, by="token") == 6 and one.place == (9, 6)  # no step is no move
    assert one.back(by="token") == 5 and one.place == (6, 5)
    assert one.back(2, by="token") == 3 and one.place == (4, 3)


def test_a_jump_may_name_the_place(toy):
    one = done(toy)
    for place in PLACES:
        assert one.jump(*reversed(place)) == place.token and one.place == place
    assert one.jump(3) == 3 and one.place == (4, 3)
    assert one.jump(0, 1) == 0 and one.place == (0, 0)  # behind the prefill is no place
    before = list(one.trace.log)
    for to, round in ((3, 7), (3, 3), (2, 4), (0, 4), (0, -1), (0, "1")):
        with pytest.raises(BadInput, match=f"jump: expected for token {to} a number of rounds in") as caught:
            one.jump(to, round)
        assert "\n" not in str(caught.value)
    assert one.trace.log == before and one.place == (0, 0)
    one.jump(3, 5)
    mark = one.trace.log[-1]
    assert mark["kind"] == "cursor" and mark["place"] == {"index": 3, "round": 5}


# -- running --


def test_a_condition_stops_behind_a_round_without_tokens(toy):
    one = search(toy)
    for place in (ENDS[0], ENDS[1], ENDS[3]):
        row = one.run(until="mode == 'search' and emitted == 0")
        assert one.place == place and row["round"] == one.round
        assert row["index"] is row["token_id"] is row["text"] is None
        mark = one.trace.log[-1]
        assert mark["kind"] == "breakpoint" and mark["place"] == {"index": place.token, "round": one.round}
    assert one.run(until="index == 4")["token_id"] == one.trace.token_ids[4] and one.place == (6, 5)
    assert one.trace.log[-1]["place"] == {"index": 4, "round": 6}
    assert one.run(until="rank != 99 and emitted == 0") is None  # a row without the column fulfils nothing


def test_each_row_is_asked_once(toy):
    one, asked = search(toy), []
    one.run(until=lambda row: asked.append((row["round"], row.get("index"))))
    expected = []
    for round, (place, emitted) in enumerate(zip(ENDS, EMITTED, strict=True), 1):
        expected += [(round, place.token - emitted + k) for k in range(emitted)] or [(round, None)]
    assert asked == expected


def test_rounds_without_tokens_count_and_may_be_paused_at(toy):
    one = search(toy)
    one.run(rounds=2)
    assert one.place == (3, 0) and one.length == 0
    seen = []

    def slow(row) -> bool:
        seen.append(row["round"])
        if len(seen) == 4:
            one.pause()
        return False

    worker = threading.Thread(target=one.run, kwargs={"until": slow})
    worker.start()
    worker.join(30)
    assert one.place == (5, 3) and not one.ended and seen == [3, 3, 3, 4]


# -- branches --


@pytest.mark.parametrize("snapshots", [512, 2])
def test_a_branch_from_any_place_is_the_straight_run(toy, straight, snapshots, monkeypatch):
    """Every figure, not the tokens alone; also of a branch of the branch, and with states made again."""
    monkeypatch.setattr(session_module, "SNAPSHOTS", snapshots)
    one = done(toy)
    for place in PLACES[:-1]:
        one.jump(place.token, place.round)
        branch = one.fork()
        start = one.trace.index.start(max(place.round, 1))
        assert branch.place == (place if place.token == start else (place.round, start))
        assert branch.trace.run["parent"] == {"trace": one.trace.id, "round": max(place.round, 1), "index": place.token}
        branch.step()
        for _ in range(2):
            branch.back(3)
            twig = branch.fork()
            assert twig.place == branch.place
            for each in (branch, twig):
                each.run()
                assert contents(each.trace) == contents(straight)
    branch = one.fork(at=3)  # where jump(3) goes
    assert branch.place == (4, 3)


@pytest.mark.parametrize("level", ["default", "off"])
@pytest.mark.parametrize("at", range(12))
def test_a_token_is_forced_before_anything_looked_beyond_it(toy, at, level):
    """Else a hypothesis that contradicts it is at work in the branch; level off does not say how far a round looked."""
    one = done(toy, level=level)
    ids = one.trace.token_ids
    for token in range(4):
        branch = one.fork(at=at, token=token)
        left = branch.trace.run["parent"]["round"]
        assert token == ids[at] or left == (at + 1 if level == "default" else 1)  # a round looks one token further
        branch.run()
        force = dict(enumerate([*ids[:at], token]))
        fresh = done(toy, force=force)
        assert branch.trace.token_ids == fresh.trace.token_ids and branch.trace.token_ids[:at] == ids[:at]
        assert branch.trace.rounds["emitted"].tolist() == fresh.trace.rounds["emitted"].tolist()


def test_a_change_between_rounds_without_tokens_leaves_before_the_search(toy):
    one = search(toy)
    one.run(rounds=5)
    ids = one.trace.token_ids
    assert one.place == (6, 3) and one.trace.index.reach(6) == 5
    for change in ({"token": (ids[2] + 1) % 4}, {"decoder": wb.Autoregressive()}, {"decoder": Search(ahead=1)}):
        branch = one.fork(**change)
        assert branch.place == (4, 3) and branch.trace.run["parent"]["round"] == 4
        branch.run()
        force = dict(enumerate(ids)) | ({3: change["token"]} if "token" in change else {})
        fresh = search(toy, change.get("decoder"), force=force)
        fresh.run()
        assert branch.trace.token_ids[:3] == ids and branch.trace.token_ids == fresh.trace.token_ids
    assert one.fork().place == (6, 3)


def test_how_far_the_rounds_before_have_looked(straight, toy):
    index = straight.index
    assert [index.reach(number) for number in range(14)] == [0, 0, 1, 2, 2, 4, 5, 5, 7, 8, 8, 10, 11, 11]
    assert done(toy, level="off").trace.index.reach(2) == float("inf")
    plain = wb.decode(toy, PROMPT, wb.Speculative(drafter=wb.CopySpec(ngram=1)), max_new_tokens=8, level="off")
    assert plain.index.reach(plain.index.at(99)) == 0
    assert [index.ids(start, start + 5) for start in (0, 2, 10, 12)] == [
        straight.token_ids[start : start + 5] for start in (0, 2, 10, 12)
    ]


# -- the record --


def test_the_record_replays_and_counts_every_round(toy, straight, tmp_path):
    one = done(toy)
    walked = [(event["round"], one.place) for event in one.replay()]
    assert walked == [(0, (0, 0)), *enumerate(ENDS, 1)]
    straight.save(tmp_path / "run.wb")
    trace = Trace.load(tmp_path / "run.wb")
    assert not trace.dropped and trace.log == straight.log and trace.hypotheses["depth"].max() == 11
    assert trace.rows_of(2) == [] and trace.rows_of(2, empty=True)[0]["mode"] == "search"
    assert len(trace.last_rows()) == 3
    figures, rounds = trace.summary(), trace.rounds[1:]
    assert figures["tokens_per_second"] == pytest.approx(12000 / rounds["total_ms"].sum())
    assert figures["target_forwards"] == len(trace.forwards[trace.forwards["round"] > 0]) > 12
    assert figures["tokens_per_target_forward"] == pytest.approx(12 / figures["target_forwards"])


def test_every_way_to_decode_gives_the_same_tokens(toy, straight, lm):
    rounds = []
    trace = wb.decode(
        toy, PROMPT, Search(), max_new_tokens=12, ignore_eos=True, on_round=lambda s: rounds.append(s.rounds)
    )
    assert rounds == list(range(2, 14)) and contents(trace) == contents(straight)
    rows = list(wb.stream(toy, PROMPT, Search(), max_new_tokens=12, ignore_eos=True))
    assert [row["token_id"] for row in rows] == trace.token_ids and [row["index"] for row in rows] == list(range(12))
    prompts = [lm.tokenizer.encode("def add(a, b):"), lm.tokenizer.encode("import")]
    alone = [wb.decode(lm, ids, Search(), max_new_tokens=5, ignore_eos=True).token_ids for ids in prompts]
    several = wb.decode(lm, prompts, Search(), max_new_tokens=5, ignore_eos=True)
    assert [trace.token_ids for trace in several] == alone
    found = lm.model.generate(
        torch.tensor(prompts[:1]), custom_generate=wb.custom_generate(Search()), max_new_tokens=5, eos_token_id=None
    )
    assert found[0, len(prompts[0]) :].tolist() == alone[0]


# -- front-ends --


@pytest.mark.parametrize("kind", ["session", "file"])
def test_the_app_steps_over_rounds_without_tokens(toy, kind):
    run = search(toy) if kind == "session" else Replay(done(toy).trace)
    branch = Branch("a", run)

    def shown() -> tuple[int | None, int | None, int]:
        """Round, phase, and the tokens that the page is sent."""
        upto = (branch.round, branch.phase)
        return *upto, web.payload(run.trace, upto=upto)["length"] if branch.open else run.cursor

    assert branch.round is None and not branch.done
    assert branch.advance("round") == (True, False) and shown() == (1, None, 0)
    assert branch.advance("phase") == (True, False) and shown() == (2, 0, 0)
    for _ in range(4):
        branch.advance("phase")
    assert shown() == (2, 4, 0)
    for phase, tokens in enumerate((0, 0, 0, 3, 3)):
        branch.advance("phase")
        assert shown() == (3, phase, tokens) and run.cursor == 3
    branch.advance("phase")
    assert shown() == (4, 0, 3) and run.place == (5, 3)
    assert branch.advance("round") == (True, False) and shown() == (4, None, 3)  # what is open is shown whole first
    branch.jump(0)
    assert branch.round is None and run.place == (0, 0)
    holds = wb.conditions.parse("emitted == 0 and round > 1")
    assert branch.advance("round", holds) == (True, False) and branch.advance("round", holds) == (True, True)
    assert branch.round == 2 and branch.advance("token", holds) == (True, False) and run.place == (3, 1)
    branch.advance("round")
    assert branch.advance("token", holds) == (True, True) and run.place == (5, 3)
    while not branch.done:
        assert branch.advance("round")[0]
    assert run.place == ENDS[-1] and branch.advance("round") == (False, False)


def test_a_run_that_ended_in_a_round_without_tokens_is_shown_to_its_end(toy, tmp_path):
    one = search(toy)
    one.run(rounds=5)
    one.state.ended = "stop"  # as a search that gives up
    one.trace.save(tmp_path / "run.wb")
    one.jump(3)
    branch = Branch("a", one)
    assert not branch.done and branch.advance("round")[0] and branch.advance("round")[0] and branch.done
    visit = Visit("a")
    share.open_trace(visit, str(tmp_path / "run.wb"))
    assert visit.branch.run.place == (6, 3) and visit.branch.done and "Ended: replayed" in visit.message


def test_the_page_says_which_round_it_is_at(toy):
    visit = Visit("a")
    visit.add("search", search(toy))

    def place(parts) -> tuple:
        return tuple(json.loads(parts[screen.PANEL.index("view")])["place"].values())  # round, token, at, tip

    def step(by: str = "round") -> tuple:
        return place(transport.step(visit, EventData(None, {"by": by})))

    places = [(2, 0, 1, True), (3, 0, 2, True), (4, 3, 3, True), (5, 3, 4, True)]
    assert [step(), step(), step("token"), step()] == places
    visit.branch.jump(3)
    view = json.loads(screen.view(visit, since=0))
    assert view["place"] == {"round": 4, "token": 3, "at": 3, "tip": False} and 4 in view["hypotheses"]["round"]
    assert step() == (6, 3, 5, True)  # on from the end of the record
    visit.worker = threading.main_thread()  # one that is at it
    trace = visit.branch.run.trace
    assert answer(visit, trace.id, 99, 3, "5") == NOTHING == answer(visit, trace.id, 99, 3)
    assert json.loads(answer(visit, trace.id, 99, 3, "4"))["place"]["at"] == 5
    visit.worker = None


def test_the_settings_of_the_form_go_on_from_the_place(toy):
    """Not from the number of tokens, which several places have."""
    wanted = SimpleNamespace(is_of=lambda lm: True, decoder=Search(), settings={}, cached=[])
    visit = Visit("a", form=SimpleNamespace(read=lambda values: wanted))
    visit.add("search", search(toy))
    visit.branch.run.run(rounds=5)
    branches.resettle(visit, "{}")
    assert visit.branch.run.trace.run["parent"]["round"] == 6 and visit.branch.run.place == (7, 6)
    visit.current = 0
    branches.resettle(visit, json.dumps({"told": {"index": 2}}))  # behind the token that is looked at
    assert visit.branch.run.trace.run["parent"] == {"trace": visit.branches[0].run.trace.id, "round": 4, "index": 3}


def test_the_command_line_stops_at_a_round_without_tokens(capsys, monkeypatch, tmp_path):
    monkeypatch.setitem(KNOWN["decoder"], Search.declared_name, Search)
    words = ["run", "def f", "--decoder", Search.declared_name, "--max-new-tokens", "6", "--json", "--overwrite"]
    out = tmp_path / "run.wb"
    assert main([*words, "--out", str(out)]) == 0
    text = json.loads(capsys.readouterr().out)["text"]
    assert text and text == wb.decode("embedded", "def f", Search(), max_new_tokens=6).text
    assert main([*words, "--out", str(out), "--until", "emitted == 0 and round > 3"]) == 0
    trace = Trace.load(out)
    assert trace.end["reason"] == "stop" and len(trace.rounds) == 5 and len(trace.token_ids) == 3
