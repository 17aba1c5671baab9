"""Steps by phase, token and round in a real Chromium: what is not decided is not in the page; at the head of a run that
can go on the same buttons ask the engine."""

import pytest

import workbench as wb
from tests.session.empty_rounds import Search
from tests.web.pages import TOKEN, at, close, mount, open_file
from tests.web.test_phases import leaves, marked
from workbench import web
from workbench.web.data import PHASES

pytestmark = pytest.mark.browser
PLACE = ".wb-place"


def whole(page) -> str:
    """Everything in the view: texts, titles, names."""
    return page.evaluate("document.querySelector('.wb-view').outerHTML").replace("␣", " ")


def enter(page, trace, number: int) -> None:
    """The first phase of a round, from the token before it, by keys alone."""
    before = int((trace.tokens["round"] < number).sum())
    page.keyboard.press("End")
    for _ in range(len(trace.tokens) - before):
        page.keyboard.press("ArrowLeft")
    assert at(page) == before - 1
    page.keyboard.press("1")
    page.keyboard.press("ArrowRight")
    assert page.inner_text(".wb-phases .wb-now").startswith("draft")


def table(page) -> list[list[str]]:
    """The drafted nodes as the inspector lists them."""
    rows = page.locator(".wb-drafted tr:not(:has(th))")
    return [rows.nth(k).locator("td").all_inner_texts() for k in range(rows.count())]


def test_while_a_phase_is_open_nothing_later_is_in_the_page(chromium, managed, tmp_path):
    """Texts that stand nowhere else come with the phase that decides them, and go when it is taken back."""
    trace, number, secret = marked(managed)
    texts = [{one for one in leaves([*found]) if isinstance(one, str)} for found in secret]
    page = open_file(chromium, trace.capsule(tmp_path / "run.html"))
    enter(page, trace, number)

    def check(phase: int) -> None:
        there = whole(page)
        assert page.inner_text(".wb-phases .wb-now").startswith(PHASES[phase])
        assert all(text in there for text in texts[0])
        assert any(text in there for text in texts[3]) == (phase >= 3)
        for later in texts[phase + 1 :]:
            assert not any(text in there for text in later), f"{PHASES[phase]} tells what comes later"
        before = int((trace.tokens["round"] < number).sum())
        n = before + (int((trace.tokens["round"] == number).sum()) if phase >= 3 else 0)
        assert page.locator(TOKEN).count() == n and at(page) == n - 1
        assert page.inner_text(PLACE).startswith(f"{n} of 64 tokens" if phase < 3 else f"token {n - 1} of 64")
        assert page.locator(".wb-undecided").count() == 1

    for phase in range(5):
        check(phase)
        if phase < 4:
            page.keyboard.press("ArrowRight")
    for phase in (3, 2, 1, 0):
        page.keyboard.press("ArrowLeft")
        check(phase)
    page.keyboard.press("2")
    assert page.locator(TOKEN).count() == 64 and page.locator(".wb-undecided").count() == 0
    close(page)


def test_a_round_fills_in_phase_by_phase(chromium, managed, tmp_path):
    """The table of the inspector: q, then p, then fates; the cache last; the run's sentence is withheld."""
    page = open_file(chromium, managed.capsule(tmp_path / "run.html"))
    drafts = managed.drafts
    number = next(
        n for n in managed.rounds["round"][4:] if {"accepted", "rejected"} <= {*drafts[drafts["round"] == n]["fate"]}
    )
    nodes = drafts[drafts["round"] == number]
    assert "tokens in" in page.inner_text(".wb-told")
    enter(page, managed, number)
    assert page.inner_text(".wb-told").startswith("Stepping by phase")
    assert [row[2] for row in table(page)] == [f"{q:.2f}" for q in nodes["q"]]
    assert all(row[3] == "?" and row[-1].endswith("open") for row in table(page))
    assert page.inner_text(".wb-gutter [data-track=cache] .wb-big") != "–"  # that of the round before
    assert "not yet" in page.inner_text(".wb-fills tr:nth-child(2)")
    page.keyboard.press("n")
    assert [row[3] for row in table(page)] == [f"{p:.2f}" for p in nodes["p"]]
    assert all(row[-1].endswith("open") for row in table(page))
    page.keyboard.press("n")
    said = {"accepted": "accepted", "rejected": "rejected"}
    assert [row[-1].split(maxsplit=1)[1] for row in table(page)] == [
        said.get(f, "never reached") for f in nodes["fate"]
    ]
    kept = (nodes["fate"] == "accepted").sum()
    assert f"{kept} of {len(nodes)} accepted" in page.inner_text(".wb-fills")
    assert "committed" not in page.inner_text(".wb-fills")
    page.keyboard.press("n")
    assert f"{(managed.tokens['round'] == number).sum()} token" in page.inner_text(".wb-fills tr:nth-child(4)")
    assert page.inner_text(".wb-gutter [data-track=cache] .wb-big") == "–"  # not settled yet
    assert page.inner_text(".wb-gutter [data-track=bits] .wb-big") == "–"
    page.keyboard.press("n")
    assert page.inner_text(".wb-gutter [data-track=cache] .wb-big") in page.inner_text(".wb-fills tr:nth-child(5)")
    page.keyboard.press("n")  # the next round
    assert page.inner_text(".wb-card h3").startswith(f"Round {number + 1}, phase 1 of 5")
    close(page)


def test_what_is_shown_of_a_tree_does_not_tell_the_path_that_won(chromium, tree, tmp_path):
    """Before `accept` the text and the tracks show first children; after it, the accepted path. Pending cells lie in
    one row, right behind the last token."""
    drafts = tree.drafts
    won = drafts[drafts["fate"] == "accepted"].groupby("round")["node"].apply(list)
    number = next(n for n, nodes in won.items() if nodes[0] != 1)
    nodes = drafts[drafts["round"] == number].set_index("node")
    page = open_file(chromium, tree.capsule(tmp_path / "run.html"))
    enter(page, tree, number)

    def ghosts() -> list[str]:
        return page.locator(".wb-tail .wb-ghost").evaluate_all("all => all.map((one) => one.firstChild.textContent)")

    def label(text: str) -> str:
        return text.replace("\n", "⏎").replace(" ", "␣") if text else "◦"

    firsts, node = [], 0
    while len(below := nodes[nodes["parent"] == node]):
        node = below.index[0]
        firsts.append(label(nodes["text"][node]))
    assert ghosts() == firsts and page.locator(".wb-tail .wb-is-pending").count() == len(firsts)
    open_ = page.locator(".wb-open").bounding_box()
    before = int((tree.tokens["round"] < number).sum())
    cell = open_["width"] / len(firsts)
    cells = page.locator(".wb-plot > svg path[stroke='var(--wb-pending)']").first.evaluate(
        """(path, x) => [...path.getAttribute('d').matchAll(/M([\\d.]+),([\\d.]+)/g)]
          .map(([, left, top]) => [Number(left), Number(top)]).filter(([left]) => left >= x - 1)""",
        open_["x"] - page.locator(".wb-plot").bounding_box()["x"],
    )
    assert len(cells) == len(firsts) and len({top for _, top in cells}) == 1 and before > 0
    lefts = [left - cells[0][0] for left, _ in cells]
    assert lefts == pytest.approx([k * cell for k in range(len(firsts))], abs=2)
    page.keyboard.press("ArrowRight")
    assert ghosts() == firsts
    page.keyboard.press("ArrowRight")
    assert ghosts()[0] == label(nodes["text"][won[number][0]]) != firsts[0]
    assert page.locator(".wb-tail .wb-is-accepted").count() == len(won[number])
    close(page)


def test_rounds_that_append_nothing_are_places(chromium, toy, tmp_path):
    """Step by round: each has its number, its hypotheses and its cache; the cursor rests at the token before."""
    trace = wb.decode(toy, [0, 1, 2], Search(), max_new_tokens=6, ignore_eos=True)
    page = open_file(chromium, trace.capsule(tmp_path / "run.html"))
    tokens, rounds = trace.tokens["round"], trace.rounds["round"].tolist()
    page.keyboard.press("3")
    assert at(page) == 0
    for _ in rounds:
        page.keyboard.press("ArrowLeft")
    seen = []
    for number in rounds:
        own, before = tokens[tokens == number], tokens[tokens < number]
        expected = own.index[0] if len(own) else before.index[-1] if len(before) else None
        assert at(page) == expected and page.inner_text(PLACE).endswith(f"· round {number}")
        held = len(trace.hypotheses[trace.hypotheses["round"] == number])
        assert page.locator(".wb-search > div").count() == min(held, 9)
        assert page.locator("[data-name=hypotheses] tr:not(:has(th))").count() == held
        seen.append(expected)
        page.keyboard.press("ArrowRight")
    assert len(seen) > len({*seen}) and page.inner_text(PLACE).endswith(f"· round {rounds[-1]}")
    close(page)


# ---- a run that can go on


def live(trace, **more) -> dict:
    """What is sent of a run that has not ended."""
    return {**web.payload(trace), "ended": None, "status": {"running": False, "ended": None, "message": ""}, **more}


def acts(page) -> list[dict]:
    return page.evaluate("acts")


@pytest.fixture
def growing(lm):
    """A run of five rounds, and one that is two rounds further."""
    session = wb.Session(lm, "def fibonacci(n):", max_new_tokens=40, ignore_eos=True)
    for _ in range(5):
        session.step()
    first = live(session.trace)
    session.step()
    return first, {**live(session.trace), **web.payload(session.trace, first["rounds_recorded"])}


def test_at_the_head_the_same_buttons_ask_the_engine_and_keys_are_queued(chromium, growing):
    first, after = growing
    page = mount(chromium, first)
    page.focus(".wb-tokens")
    page.keyboard.press("End")
    assert page.locator(".wb-play").inner_text().strip() == "Decode" and acts(page) == []
    page.keyboard.press("ArrowRight")
    (act,) = acts(page)
    assert (act["act"], act["by"]) == ("step", "token")
    assert page.locator(".wb-tail .wb-is-pending").count() == 1  # at once, before anyone has answered
    for _ in range(12):
        page.keyboard.press("ArrowRight")
    assert len(acts(page)) == 1  # they wait
    n = first["length"]
    page.evaluate("data => view.update(data)", {**after, "selected": None, "cursor": n + 1, "follow": True})
    assert at(page) == n and len(acts(page)) == 2  # the first of those that waited
    for k in range(12):
        page.evaluate("data => view.update(data)", {**after, "selected": None, "cursor": n + 1, "follow": True})
        assert len(acts(page)) == min(3 + k, 9)  # eight of them, no more
    close(page)


def test_the_buttons_of_a_live_run_say_what_they_want(chromium, growing):
    first, _ = growing
    page = mount(
        chromium, {**first, "runs": [{"run": 0, "name": "A", "on": True}, {"run": 1, "name": "B", "tip": "from 2"}]}
    )
    page.focus(".wb-tokens")
    page.keyboard.press("/")
    page.keyboard.type("entropy > n 1 g")  # nothing of it is a key of the view
    assert acts(page) == [] and page.locator("[aria-pressed=true]", has_text="token").count() == 1
    page.get_by_role("button", name="to the head of the run").click()
    page.keyboard.press("Escape")
    page.locator(".wb-play").click()
    said = {"act": "run", "by": "token", "until": "entropy > n 1 g", "pace": 0, "index": first["length"] - 1}
    assert acts(page)[-1] == said
    page.evaluate("view.refuse('unknown name')")
    assert page.inner_text(".wb-wrong") == "unknown name" and page.locator(".wb-wrong").is_visible()
    page.evaluate("data => view.update(data)", {**first, "status": {"running": True, "ended": None, "message": ""}})
    page.locator(".wb-play").click()
    assert acts(page)[-1]["act"] == "pause"
    page.evaluate(
        "data => view.update(data)", {**first, "status": {"running": False, "ended": None, "message": "It broke."}}
    )
    assert page.inner_text(".wb-message") == "It broke."

    page.keyboard.press("Home")
    branch = page.locator("[data-name=candidates] .wb-fork").first
    branch.click()
    kept = first["tokens"]["topk_raw"][0][0]
    assert acts(page)[-1]["act"] == "fork" and acts(page)[-1]["index"] == 0 and acts(page)[-1]["token"] in kept
    assert acts(page)[-1]["token"] != first["tokens"]["token_id"][0]
    page.focus(".wb-tokens")
    page.keyboard.press("Enter")
    page.keyboard.type(" pass")
    page.keyboard.press("Enter")
    assert {name: acts(page)[-1][name] for name in ("act", "index", "text")} == {
        "act": "fork",
        "index": 0,
        "text": " pass",
    }
    page.get_by_role("button", name="Go on with new settings").click()
    assert acts(page)[-1]["act"] == "resettle"
    chips = page.locator(".wb-chip")
    assert chips.all_inner_texts() == ["A", "B"] and chips.first.get_attribute("aria-pressed") == "true"
    chips.nth(1).click()
    assert acts(page)[-1]["act"] == "choose" and acts(page)[-1]["run"] == 1
    close(page)


def test_an_open_round_of_a_live_run_is_stepped_by_the_engine(chromium, managed):
    """The server sends no more than the phase; the next phase is asked for, the one before is at hand."""
    number = int(managed.rounds[managed.rounds["drafted"] > 0]["round"].iloc[3])

    def sent(phase: int) -> dict:
        more = {"status": {"running": False, "ended": None, "message": ""}, "selected": None, "follow": True}
        return {**web.payload(managed, upto=(number, phase)), "ended": None, **more}

    page = mount(chromium, sent(0))
    page.keyboard.press("Tab")
    page.get_by_role("button", name="phase", exact=True).click()
    assert page.inner_text(".wb-phases .wb-now").startswith("draft") and all(row[3] == "?" for row in table(page))
    page.keyboard.press("n")
    assert acts(page)[-1]["act"] == "step" and acts(page)[-1]["by"] == "phase"
    page.evaluate("data => view.update(data)", sent(1))
    assert page.inner_text(".wb-phases .wb-now").startswith("verify") and all(row[3] != "?" for row in table(page))
    page.keyboard.press("b")
    assert page.inner_text(".wb-phases .wb-now").startswith("draft") and all(row[3] == "?" for row in table(page))
    close(page)
