"""The hypotheses of the round at the cursor, in a real Chromium."""

import pytest

import workbench as wb
from tests.session.empty_rounds import Search
from tests.web.conftest import HOSTILE
from workbench import web

pytestmark = pytest.mark.browser
MOUNT = """async ([source, css, data]) => {
  const { mount } = await import(URL.createObjectURL(new Blob([source], { type: 'text/javascript' })));
  window.view = mount(document.body, { data, css, onAction: () => {} });
}"""


def test_a_reader_sees_the_search_move_where_the_text_does_not(chromium, toy):
    trace = wb.decode(toy, [0, 1, 2], Search(width=8), max_new_tokens=6, ignore_eos=True)
    log = [{**event} for event in trace.log]
    kept = log[2]["hypotheses"]
    log[2]["hypotheses"] = {name: values[:1] * 20 for name, values in kept.items()} | {
        "id": [*range(19), 1234], "text": [HOSTILE] * 20, "reason": [HOSTILE] * 20,
    }  # fmt: skip
    data = web.payload(wb.Trace(log))
    context = chromium.new_context()
    page = context.new_page()
    page.set_content("<body></body>")
    page.evaluate(MOUNT, [web.module(), web.css(), data])

    def shown(**place) -> tuple[str, list[str]]:
        cursor, place = place["token"], {**place, "at": place["round"] - 1 if place["round"] else None,
                                          "tip": place["round"] == 7}  # fmt: skip
        page.evaluate("more => view.update(more)", {**data, "cursor": cursor, "place": place, "follow": True})
        lines = page.locator(".wb-search > div")
        return page.inner_text(".wb-status"), lines.all_inner_texts() if page.is_visible(".wb-search") else []

    assert shown(round=0, token=0) == ("token 0 of 6 recorded", [])
    assert page.get_by_label("take the run one round back").is_disabled()
    said, lines = shown(round=2, token=0)
    assert said == "token 0 of 6 recorded, round 1" and len(lines) == 9 and lines[-1] == "+12"
    assert lines[0].startswith("A · </script>") and page.evaluate("window.broken") is None
    assert page.get_by_label("take the run one round back").is_enabled() and page.locator("img").count() == 0
    said, lines = shown(round=3, token=0)
    assert said == "token 0 of 6 recorded, round 2" and "live" in lines[0]
    assert [line.removeprefix("✕ ")[0] for line in lines] == [*"ABCDEFGH"][: len(lines)]
    said, lines = shown(round=4, token=3)
    ends = trace.hypotheses.query("round == 3")["fate"].tolist()
    assert [line.startswith("✕ ") for line in lines] == [fate == "pruned" for fate in ends] and "won" in ends
    assert page.locator(".wb-search > .wb-over").count() == ends.count("pruned") > 1
    assert shown(round=7, token=6)[0] == "ended: length"
    page.evaluate("view.setCursor(0)")  # the reader looks at a token: its round
    assert page.locator(".wb-search > div").count() == len(ends)
    context.close()
