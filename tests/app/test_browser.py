"""The app in a real browser; the `open_page` fixture asserts that nothing left the machine and no script failed."""

import json

import pytest
from playwright.sync_api import TimeoutError

from tests.conftest import PATIENCE
from workbench.trace import Trace

pytestmark = pytest.mark.browser
TOKEN = ".wb-token[role=option]"
PHASES_AGREE = """() => {
  const later = {draft: 4, verify: 3, accept: 2, commit: 1, cache: 0};
  const said = document.querySelector('#status').innerText.match(/Round \\d+, (\\w+)/);
  const phases = document.querySelector('#phases');
  return said && phases.querySelectorAll('.wb-later').length === later[said[1]]
    && phases.querySelectorAll('[aria-current=step]').length === 1;
}"""
PICKED = """() => {
  const said = document.querySelector('.wb-inspector').innerText.match(/round (\\d+)/i);
  return said && new RegExp(`round ${said[1]}\\\\b`, 'i').test(document.querySelector('#phases').innerText);
}"""  # the app, too, looks at the token that the token view shows
AHEAD = f"{TOKEN}.wb-ahead"
SETTLED = f"""() => {{
  const said = document.querySelector('#status').innerText.match(/Token (\\d+)/);
  const reached = [...document.querySelectorAll('{TOKEN}:not(.wb-ahead)')];
  const here = reached.at(-1);
  return said && reached.length === Number(said[1]) && (!here || here.ariaSelected === 'true');
}}"""  # the token view, which is drawn by itself, stands where the status line says
TAKEN = """tokens => [document.querySelector("input[type=range][max='512']"),
  document.querySelector("input[aria-label='number input for max new tokens']")].every(one => one?.value === tokens)"""


def start(page, tokens: int = 24, button: str = "#start") -> None:
    page.get_by_text("Limits, seed, logging").click()
    field = page.get_by_label("number input for max new tokens")
    for _ in range(20):  # what is typed while the panel is still unfolding is not taken
        field.fill(str(tokens))
        field.press("Tab")
        if holds_soon(page, TAKEN, str(tokens)):
            break
    before = page.inner_text("#status")
    for _ in range(4):  # a press while the last answer is still being drawn is not taken
        page.click(f"{button}:not([disabled])", timeout=PATIENCE)
        if holds_soon(page, "old => document.querySelector('#status').innerText !== old", before, 30_000):
            break
    says(page, "Ready:" if button == "#start" else "n")


def holds_soon(page, condition: str, value=None, soon: int = 10_000) -> bool:
    """Whether a condition comes to hold in a while (ms); where not, something is done again."""
    try:
        page.wait_for_function(condition, arg=value, timeout=soon)
    except TimeoutError:
        return False
    return True


def drawn(page) -> None:
    """The page has drawn twice: what was typed has reached the app's own state."""
    page.evaluate("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")


def says(page, text: str, place: str = "#status") -> None:
    holds = "([place, text]) => document.querySelector(place)?.innerText.includes(text)"
    page.wait_for_function(holds, arg=[place, text], timeout=PATIENCE)


def tokens(page, count: int) -> None:
    there = f"count => document.querySelectorAll('{TOKEN}').length >= count"
    page.wait_for_function(there, arg=count, timeout=PATIENCE)


def step(page, press) -> None:
    """Press until the place has changed: a press while the last one is still being drawn is not taken."""
    before = page.inner_text("#status")
    changed = "old => (now => now !== old && now.includes('Token'))(document.querySelector('#status').innerText)"
    for _ in range(12):
        press()
        if holds_soon(page, changed, before):
            return
    raise AssertionError("nothing happened")


def click(page, button: str):
    return lambda: page.click(f"{button}:not([disabled])", timeout=PATIENCE)


def key(page, name: str):
    return lambda: page.keyboard.press(name)


def by(page, number: int, name: str) -> None:
    """Choose by keyboard what a step is, and wait until the app has taken it."""
    key(page, str(number))()
    page.wait_for_selector(f"#by label.selected input[value={name}]", state="attached", timeout=PATIENCE)
    drawn(page)


def at_rest(page) -> None:
    page.wait_for_selector("#pause[disabled]", timeout=PATIENCE)


def cursor(page) -> str:
    return page.locator(f"{TOKEN}[aria-selected=true]").get_attribute("data-index")


def test_a_run_is_stepped_by_phase_scrubbed_and_taken_back_by_keyboard(open_page):
    page = open_page()
    page.get_by_text("Sampling", exact=True).first.click()  # fields that are drawn and left empty are off
    start(page)
    page.locator("#head").click()
    by(page, 1, "phase")
    for name in ("n", "n", "n", "b"):
        step(page, key(page, name))
        page.wait_for_function(PHASES_AGREE, timeout=PATIENCE)
    by(page, 2, "round")
    for _ in range(3):
        step(page, key(page, "n"))
        page.wait_for_function(SETTLED, timeout=PATIENCE)
    tokens(page, 4)
    page.locator(".wb-scrub").focus()
    page.keyboard.press("Home")  # in the browser alone; the server hears of the token once the cursor rests
    assert cursor(page) == "0"
    page.wait_for_function("document.querySelector('#phases').innerText.includes('Round 1')", timeout=PATIENCE)
    step(page, click(page, "#step"))
    moved = f"document.querySelector('{TOKEN}[aria-selected=true]').dataset.index !== '0'"
    page.wait_for_function(moved, timeout=PATIENCE)
    page.wait_for_selector("#plot .js-plotly-plot", timeout=PATIENCE)
    step(page, click(page, "#back"))
    page.wait_for_selector(AHEAD, timeout=PATIENCE)


def test_a_run_plays_live_stops_at_a_condition_pauses_and_branches(open_page):
    page = open_page()
    page.fill("#until input, #until textarea", "index >= 30")
    start(page, 400, "#go")
    says(page, "Stopped where index >= 30")
    assert page.locator(TOKEN).count() >= 31 and cursor(page) == "30"
    page.fill("#until input, #until textarea", "")
    page.click("#speed input")
    page.get_by_role("option", name="10 steps / s").click()
    updates = f"() => {{ window.seen = new Set(); const count = () => document.querySelectorAll('{TOKEN}').length;"
    updates += " new MutationObserver(() => window.seen.add(count())).observe("
    page.evaluate(updates + "document.querySelector('#view .wb-tokens'), {childList: true}); }")
    page.click("#play")
    page.wait_for_function("window.seen.size > 6", timeout=PATIENCE)  # it grows bit by bit, long before its end
    page.click("#pause")
    says(page, "Token")
    assert page.locator(TOKEN).count() < 400
    at_rest(page)
    page.locator(TOKEN).nth(1).click()
    says(page, "token 1 at position", ".wb-inspector")
    page.wait_for_function(PICKED, timeout=PATIENCE)
    page.fill("#typed textarea, #typed input", " if")
    drawn(page)
    step(page, click(page, "#fork"))
    says(page, "Branched off before token 1.")
    assert page.locator(TOKEN).nth(1).inner_text() == " if"
    page.get_by_role("tab", name="Side by side").click()
    page.click("#beside")
    says(page, "They part at token 1: forced token.", "#both")
    page.wait_for_selector("#diff .js-plotly-plot", timeout=PATIENCE)


def test_runs_leave_and_come_back_as_files(open_page, tmp_path):
    page = open_page()
    start(page, 12, "#go")
    says(page, "Ended: length")
    count = page.locator(TOKEN).count()
    page.get_by_role("tab", name="Share").click()
    for button, name in (("#save", "run.wb"), ("#capsule", "run.html"), ("#perfetto", "run.json")):
        with page.expect_download() as download:
            page.click(button)
        download.value.save_as(tmp_path / name)
    assert len(Trace.load(tmp_path / "run.wb").token_ids) == count == 12
    assert json.loads((tmp_path / "run.json").read_text())["traceEvents"]
    assert "wb.decode(" in page.input_value("#code textarea")
    page.set_input_files("input[type=file]", tmp_path / "run.html")
    says(page, "Opened run.html")
    assert page.locator(TOKEN).count() == count


def test_decoders_are_compared_in_a_table_that_can_be_saved(open_page, tmp_path):
    page = open_page()
    start(page, 16)
    page.get_by_role("tab", name="Compare").click()
    for name in ("h2o 128", "kivi 4 bits"):
        page.get_by_label(name, exact=True).uncheck()
    page.click("#compare")
    says(page, "Done: 1 of 1 prompts.", "#progress")
    assert page.locator("#compared tr").count() == 4
    with page.expect_download() as download:
        page.click("#csv")
    download.value.save_as(tmp_path / "table.csv")
    assert (tmp_path / "table.csv").read_text().startswith("arm,guarantee,verified_by")


def test_an_error_is_one_line_and_the_page_goes_on(open_page, tmp_path):
    page = open_page()
    page.fill("#prompt textarea", "")
    page.click("#go")
    says(page, "the prompt is empty")
    page.fill("#prompt textarea", "</script><script>document.title = 'broken'</script>")
    start(page, 4, "#go")
    says(page, "Ended: length")
    assert page.title() == "decoding workbench" and "</script>" in page.inner_text(".wb-prompt")
    page.fill("#until input, #until textarea", "entropy >")
    page.click("#go")
    says(page, "entropy >")
    assert "\n" not in page.inner_text("#status").strip() and page.locator(TOKEN).count() == 4
    (tmp_path / "broken.html").write_text("<!doctype html>\n<p>no trace in here</p>")
    page.get_by_role("tab", name="Share").click()
    page.set_input_files("input[type=file]", tmp_path / "broken.html")
    says(page, "broken.html")
    assert "trace.capsule" in page.inner_text("#status") and page.locator(TOKEN).count() == 4


def test_two_visitors_at_once_and_one_that_leaves_and_returns(open_page):
    one, two = open_page(), open_page()
    two.fill("#prompt textarea", "class Stack:")
    start(one, 60, "#go")
    start(two, 12, "#go")
    says(two, "Ended: length")
    says(one, "Ended: length")
    assert one.locator(TOKEN).count() == 60 and two.locator(TOKEN).count() == 12
    assert "fibonacci" in one.inner_text(".wb-prompt") and "Stack" in two.inner_text(".wb-prompt")
    one.reload()
    one.wait_for_selector("#go:not([disabled])", timeout=PATIENCE)
    assert one.locator(TOKEN).count() == 0
    start(one, 4, "#go")
    says(one, "Ended: length")


def test_a_phone_needs_no_sideways_scrolling(open_page):
    page = open_page(390, 844)
    start(page, 12, "#go")
    says(page, "Ended: length")
    page.wait_for_selector("#plot .js-plotly-plot", timeout=PATIENCE)
    measure = "[document.documentElement.scrollWidth, document.documentElement.clientWidth]"
    for tab in ("Compare", "Share", "Side by side", "Decode"):
        page.get_by_role("tab", name=tab).click()
        wide, seen = page.evaluate(measure)
        assert wide <= seen, tab
    assert page.locator("#go").bounding_box()["y"] < page.locator("#settings").bounding_box()["y"]


def test_everything_is_named_for_those_who_do_not_see_it(open_page):
    page = open_page()
    start(page, 8, "#go")
    says(page, "Ended: length")
    unnamed = page.evaluate(
        "[...document.querySelectorAll('button, input, select, textarea')].filter(one => one.offsetParent"
        " && !one.labels?.length && !(one.ariaLabel || one.innerText || one.title || one.placeholder"
        " || one.getAttribute('aria-labelledby'))).map(one => one.outerHTML.slice(0, 120))"
    )
    assert not unnamed
    assert page.locator("#status[role=status], #status [role=status]").count() == 1
    page.locator("#words summary").first.click()
    assert page.locator("#words th").count() >= 2 and page.inner_text("#words .wb-caption").startswith("Draft of round")


def test_a_killed_server_is_said_and_the_page_comes_back_with_the_next_one(open_page, mortal):
    """In mid-run; nobody has to reload, and what a visitor does then works as on the first day."""
    page = open_page(at=mortal.start())
    page.click("#speed input")
    page.get_by_role("option", name="3 steps / s").click()
    start(page, 400, "#go")
    tokens(page, 2)
    mortal.kill()
    lost = page.get_by_text("Connection to the server was lost").first
    lost.wait_for(timeout=PATIENCE)
    assert page.locator(TOKEN).count() >= 2  # what was there can still be read
    mortal.again()
    says(page, "Choose a prompt or a preset")
    page.wait_for_selector("#go:not([disabled])", timeout=PATIENCE)
    assert lost.count() == 0 and page.locator(TOKEN).count() == 0
    start(page, 4, "#go")
    says(page, "Ended: length")


def test_the_page_is_ready_soon(open_page):
    """Below ten seconds of the page's own processor time, however busy the machine is."""
    page = open_page()
    meter = page.context.new_cdp_session(page)
    meter.send("Performance.enable", {"timeDomain": "threadTicks"})
    page.reload()
    page.wait_for_selector("#start:not([disabled])", timeout=PATIENCE)
    spent = {one["name"]: one["value"] for one in meter.send("Performance.getMetrics")["metrics"]}
    assert 0 < spent["TaskDuration"] < 10
