"""What a page that watches a run is told, again and again, beside Gradio's queue."""

import json
import threading
import time

import pytest

from tests.app.test_server import ask
from workbench.dashboard.serve import NOTHING, REST, answer
from workbench.dashboard.visits import VISITS


def look(visitor, **other) -> str:
    """What the page hears that holds what the visitor holds; `other` in its place where given."""
    view = visitor.view
    held = {"run": view["id"], "rounds": view["rounds_recorded"], "cursor": view["cursor"]}
    return answer(VISITS.get(visitor.name), **{**held, **other})


@pytest.fixture
def playing(visitor):
    """A visitor whose run is being decoded, ten steps a second."""
    visitor.start(tokens=200)
    visitor.fire("run", {"pace": 0.1})
    yield visitor
    visitor.fire("pause")


def heard(visitor, **other) -> str:
    """The first answer that is not `NOTHING`."""
    deadline = time.monotonic() + 60
    while (text := look(visitor, **other)) == NOTHING and time.monotonic() < deadline:
        time.sleep(0.01)
    return text


def test_deltas_follow_on_what_the_page_says_it_holds(playing):
    assert playing.view["live"] == playing.name
    for _ in range(3):
        held = playing.view["rounds_recorded"]
        for _ in range(9):  # what comes first may be the cursor alone
            playing._receive(json.loads(heard(playing)))
            assert playing.view["since"] == held
            if playing.view["rounds_recorded"] > held:
                break
        assert playing.view["rounds_recorded"] > held
    for lost in ({"run": "another"}, {"rounds": 0}):
        assert json.loads(heard(playing, **lost))["since"] == 0
    playing.fire("pause")
    run = VISITS[playing.name].branch.run
    assert playing.texts == run.trace.tokens["text"].tolist() and playing.view["live"] is None


def test_nothing_new_is_said_in_two_characters(playing, monkeypatch):
    monkeypatch.setattr(type(VISITS[playing.name].branch.run), "cursor", property(lambda run: 7))
    assert look(playing, rounds=500, cursor=7) == NOTHING == "{}"
    assert look(playing, rounds=500, cursor=6) != NOTHING != heard(playing, rounds=0, cursor=7)


def test_a_busy_visit_never_blocks_the_server(playing):
    visit, told = VISITS[playing.name], []
    with visit.lock:
        other = threading.Thread(target=lambda: told.append(look(playing, rounds=0)))
        other.start()
        other.join(10)
    assert told == [NOTHING]


def test_a_run_that_is_over_or_gone_asks_for_the_whole_page(visitor):
    visitor.start(tokens=3).step()
    assert look(visitor) == REST and answer(None, "", 0, 0) == REST
    visitor.fire("run", {})
    assert visitor.watch().view["live"] is None and look(visitor) == REST


def test_the_route_is_served_to_this_machine_under_its_own_name_only(served):
    assert ask(f"{served}live/nobody") == 200 and ask(f"{served}live/nobody?rounds=x") == 400
    assert ask(f"{served}live/nobody", Host="evil.example") == 400
