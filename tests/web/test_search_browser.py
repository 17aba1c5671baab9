"""The hypotheses of the round at the cursor, in a real Chromium, as a search goes on."""

import pytest

import workbench as wb
from tests.session.empty_rounds import Search
from tests.web.conftest import HOSTILE
from tests.web.pages import at, close, mount
from workbench import web

pytestmark = pytest.mark.browser


def test_a_reader_sees_the_search_move_where_the_text_does_not(chromium, toy):
    trace = wb.decode(toy, [0, 1, 2], Search(width=8), max_new_tokens=6, ignore_eos=True)
    log = [{**event} for event in trace.log]
    kept = log[2]["hypotheses"]
    log[2]["hypotheses"] = {name: values[:1] * 20 for name, values in kept.items()} | {
        "id": [*range(19), 1234], "text": [HOSTILE] * 20, "reason": [HOSTILE] * 20,
    }  # fmt: skip
    data = web.payload(wb.Trace(log))
    page = mount(
        chromium, {**data, "selected": None, "cursor": 0, "place": {"round": 0, "token": 0, "at": None, "tip": False}}
    )

    def shown(**place) -> tuple[str, list[str]]:
        """The place in words, and the lines of the search, once the run's cursor is there."""
        more = {**place, "at": place["round"] - 1 if place["round"] else None, "tip": place["round"] == 7}
        where = {"cursor": place["token"], "place": more, "selected": None, "follow": True}
        page.evaluate("more => view.update(more)", {**data, **where})
        lines = page.locator(".wb-search > div")
        return page.inner_text(".wb-place"), lines.all_inner_texts() if page.is_visible(".wb-search") else []

    assert shown(round=0, token=0) == ("before token 0 · round 0", [])
    assert page.locator(".wb-token.wb-ahead").count() == 6  # of all that is recorded nothing has come yet
    said, lines = shown(round=2, token=0)
    assert said == "before token 0 · round 1" and len(lines) == 9 and lines[-1] == "+12"
    assert lines[0].startswith("A\n</script>") and page.evaluate("window.broken") is None
    assert page.locator("img").count() == 0 and at(page) is None
    assert "round 1, which appends nothing" in page.text_content("[aria-live=polite]")
    said, lines = shown(round=3, token=0)
    assert said == "before token 0 · round 2" and lines[0].startswith("A\n") and "✕" not in lines[0]
    assert [line[0] for line in lines] == [*"ABCDEFGH", "+"][: len(lines)]
    said, lines = shown(round=4, token=3)
    ends = trace.hypotheses.query("round == 3")["fate"].tolist()
    assert said == "token 2 of 6 · round 3" and at(page) == 2
    assert ["✕" in line for line in lines] == [fate == "pruned" for fate in ends] and "won" in ends
    assert page.locator(".wb-search > .wb-over").count() == ends.count("pruned") > 1
    assert page.locator(".wb-token.wb-ahead").count() == 3
    assert shown(round=7, token=6)[0] == "token 5 of 6 · round 6"
    page.evaluate("view.setCursor(0)")  # the reader looks at a token: its round
    assert page.locator(".wb-search > div").count() == len(ends)
    close(page)
