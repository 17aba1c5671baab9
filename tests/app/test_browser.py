"""The app in a real browser; the `open_page` fixture asserts that nothing left the machine and no script failed."""

import pytest
from playwright.sync_api import TimeoutError

from workbench.trace import Trace

pytestmark = pytest.mark.browser
TOKEN = ".wb-token[role=option]"


def start(page, tokens: int = 24) -> None:
    page.get_by_text("Limits, seed, logging").click()
    page.get_by_label("number input for max new tokens").fill(str(tokens))
    page.get_by_label("number input for max new tokens").press("Tab")
    page.click("#start")
    says(page, "Ready:")


def says(page, text: str) -> None:
    holds = "text => document.querySelector('#status').innerText.includes(text)"
    page.wait_for_function(holds, arg=text, timeout=60_000)


def tokens(page, count: int) -> None:
    page.wait_for_function(f"count => document.querySelectorAll('{TOKEN}').length >= count", arg=count, timeout=60_000)


def step(page, button: str = "#step") -> None:
    """Press a button until the place has changed: a press while the last one is still being drawn is not taken."""
    before = page.inner_text("#status")
    changed = "old => (now => now !== old && now.includes('Token'))(document.querySelector('#status').innerText)"
    for _ in range(12):
        page.click(f"{button}:not([disabled])", timeout=60_000)
        try:
            return page.wait_for_function(changed, arg=before, timeout=5_000)
        except TimeoutError:
            continue
    raise AssertionError(f"{button} did nothing")


def selected(page) -> str:
    return page.locator(f"{TOKEN}[aria-selected=true]").get_attribute("data-index")


def test_a_run_is_stepped_inspected_and_taken_back(open_page, tmp_path):
    page = open_page()
    start(page)
    step(page)
    step(page)
    tokens(page, 2)
    page.wait_for_selector("#signals .js-plotly-plot", timeout=60_000)
    kinds = page.evaluate("document.querySelector('#signals .js-plotly-plot')._fullData.map(trace => trace.type)")
    assert set(kinds) == {"scatter"}

    page.locator(TOKEN).first.click()
    page.wait_for_function("document.querySelector('#inspector').innerText.includes('token 0 at position')")
    assert "entropy, raw" in page.inner_text("#inspector")
    page.focus(".wb-tokens")
    page.keyboard.press("ArrowRight")
    page.wait_for_function("document.querySelector('#inspector').innerText.includes('token 1 at position')")
    assert selected(page) == "1"

    plain = page.locator(TOKEN).first.evaluate("token => token.style.backgroundColor")
    page.select_option(".wb-bar select", "source")
    assert page.locator(TOKEN).first.evaluate("token => token.style.backgroundColor") != plain

    step(page, "#back")
    page.wait_for_selector(f"{TOKEN}.wb-ahead", timeout=60_000)

    with page.expect_download() as download:
        page.click("#save")
    download.value.save_as(tmp_path / "run.wb")
    trace = Trace.load(tmp_path / "run.wb")
    assert len(trace.token_ids) == page.locator(TOKEN).count() and not trace.dropped
    page.set_input_files("input[type=file]", tmp_path / "run.wb")
    says(page, "Opened run.wb")


def test_a_run_plays_pauses_and_branches(open_page):
    page = open_page()
    start(page)
    page.click("#play")
    tokens(page, 3)
    if page.locator("#pause:not([disabled])").count():
        page.click("#pause")
    page.wait_for_selector("#fork:not([disabled])", timeout=60_000)
    page.locator(TOKEN).nth(1).click()
    page.wait_for_function("document.querySelector('#inspector').innerText.includes('token 1 at position')")
    page.fill("#typed textarea, #typed input", " if")
    page.click("#fork")
    says(page, "Branched off before token 1.")
    assert page.locator(TOKEN).nth(1).inner_text() == " if"
    page.wait_for_selector("#branches")


def test_an_error_is_one_line_and_the_page_goes_on(open_page):
    page = open_page()
    page.fill("#prompt textarea", "")
    page.click("#start")
    says(page, "the prompt is empty")
    page.fill("#prompt textarea", "def f(x):")
    start(page)
    step(page)
    tokens(page, 1)


def test_a_phone_needs_no_sideways_scrolling(open_page):
    page = open_page(390, 844)
    start(page)
    step(page)
    tokens(page, 1)
    page.wait_for_selector("#signals .js-plotly-plot", timeout=60_000)
    wide, seen = page.evaluate("[document.documentElement.scrollWidth, document.documentElement.clientWidth]")
    assert wide <= seen
    assert page.locator("#start").bounding_box()["y"] < page.locator("#settings").bounding_box()["y"]
