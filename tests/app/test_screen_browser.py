"""The app on one screen, in three sizes and two themes: what must be seen is seen, panes open and close over it."""

import io

import numpy as np
import pytest
from PIL import Image

import workbench as wb
from tests.app.page import NUMBER, TOKEN, close_drawer, cursor, fill, open_group, run
from tests.conftest import PATIENCE
from workbench.trace import storage

pytestmark = pytest.mark.browser
SIZES = {"desktop": (1440, 900), "large": (1920, 1080), "phone": (390, 844)}
SEEN = """names => Object.fromEntries(names.map(name => [name, [...document.querySelectorAll(name)].map(one => {
  const {left, right, top, bottom, width, height} = one.getBoundingClientRect();
  return width * height > 0 && left >= -1 && top >= -1 && right <= innerWidth + 1 && bottom <= innerHeight + 1;
})]))"""
WIDE = """[...document.querySelectorAll('body *')].filter(one => !one.closest('.wb-scroll, #js-plotly-tester'))
  .filter(one => one.getBoundingClientRect().width > innerWidth + 1)
  .map(one => `${one.tagName} #${one.id} .${one.className}`)"""
SCROLLS = """[document.documentElement, document.body, document.querySelector('.gradio-container')]
  .map(one => Math.max(one.scrollWidth - innerWidth, one.scrollHeight - innerHeight))"""
RATIO = """name => {
  const lit = (colour) => {
    const linear = (v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    const [r, g, b] = colour.match(/[\\d.]+/g).map((v) => linear(Number(v) / 255));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const one = document.querySelector(name);
  let back = one;
  while (getComputedStyle(back).backgroundColor === 'rgba(0, 0, 0, 0)') back = back.parentElement;
  const [a, b] = [getComputedStyle(one).color, getComputedStyle(back).backgroundColor].map(lit);
  return (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
}"""
TRACKS = ".wb-gutter > div:not(.wb-axis-name)"
READ = (
    "#head h1", ".wb-setting", ".wb-go", ".wb-told", ".wb-chip", ".wb-play", ".wb-place", ".wb-gutter b",
    ".wb-facts dd",
)  # fmt: skip


def one_screen(page, phone: bool) -> None:
    """Text, transport and four tracks, and where there is room the inspector down to the draft, are in the window."""
    names = [".wb-tokens", ".wb-transport", ".wb-go", TRACKS] + [".wb-tree"] * (not phone)
    seen = page.evaluate(SEEN, names)
    assert all(all(parts) and parts for parts in seen.values()), seen
    assert len(seen[TRACKS]) == 4
    assert max(page.evaluate(SCROLLS)) <= 0 and page.evaluate(WIDE) == []
    page.mouse.wheel(0, 600)
    assert page.evaluate("[scrollX, scrollY, document.body.scrollTop]") == [0, 0, 0]


@pytest.mark.parametrize("size", SIZES)
def test_figures_and_two_runs_side_by_side_fit_the_window(open_page, size):
    page = open_page(*SIZES[size])
    for name, seen in (("Figures", "#plots .js-plotly-plot"), ("Side by side", ".wb-beside .wb-timeline svg")):
        page.get_by_role("tab", name=name).click()
        page.wait_for_selector(seen, timeout=PATIENCE)
        assert max(page.evaluate(SCROLLS)) <= 0 and page.evaluate(WIDE) == []
        if size == "phone":
            page.locator("#tabs > .tabitem:visible").evaluate("(pane) => pane.scrollTo(0, 1e6)")
            assert page.evaluate(WIDE) == []


def test_a_dropped_file_opens_as_a_run_and_the_form_outlives_a_reload(open_page, toy):
    page = open_page()
    fill(page, "Limits", page.get_by_label(NUMBER), "33", "33 tokens")
    close_drawer(page)
    page.get_by_role("tab", name="Figures").click()
    lines = b"".join(map(storage.encode, wb.decode(toy, [0, 1], max_new_tokens=3).log)).decode()
    page.evaluate(
        """(text) => {
          const dataTransfer = new DataTransfer();
          dataTransfer.items.add(new File([text], "dropped.wb"));
          document.body.dispatchEvent(new DragEvent("drop", { dataTransfer, bubbles: true, cancelable: true }));
        }""",
        lines,
    )
    page.wait_for_selector(".wb-chip.wb-on:has-text('dropped.wb')", timeout=PATIENCE)
    assert page.locator(TOKEN).count() == 3 and page.locator(".wb-view").first.is_visible()
    page.reload()
    page.wait_for_selector(".wb-setting:has-text('33 tokens')", timeout=PATIENCE)
    open_group(page, "Limits")
    page.wait_for_function("document.querySelector('#of-limits input[type=number]').value === '33'", timeout=PATIENCE)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", SIZES)
def test_all_that_matters_is_on_one_screen(open_page, size, scheme):
    """On first load, and after Run."""
    page = open_page(*SIZES[size], scheme=scheme)
    assert page.evaluate("document.body.classList.contains('dark')") == (scheme == "dark")
    one_screen(page, size == "phone")
    run(page)
    one_screen(page, size == "phone")
    page.mouse.move(5, 5)  # off the button
    visible = [name for name in READ if page.locator(name).first.is_visible()]
    assert len(visible) >= 6 and min(page.evaluate(RATIO, name) for name in visible) >= 4.5


@pytest.mark.parametrize("size", ["desktop", "phone"])
def test_the_drawer_opens_at_its_group_and_gives_the_focus_back(open_page, size):
    page = open_page(*SIZES[size])
    rest = "['head', 'setup', 'tabs'].map(id => document.getElementById(id).inert)"
    focus = "document.querySelector('#drawer').contains(document.activeElement)"
    for group in ("Sampling", "Prompt"):
        page.locator(f".wb-setting[aria-label^='{group}:']").focus()
        page.keyboard.press("Enter")
        page.wait_for_selector("body.wb-drawn #drawer:visible")
        page.wait_for_function(focus)
        assert page.evaluate(rest) == [True] * 3
        opened = page.locator(f"#of-{group.lower()}").bounding_box()
        assert 0 <= opened["y"] < SIZES[size][1] and page.evaluate(SEEN, ["#drawer"]) == {"#drawer": [True]}
        before = cursor(page)
        page.keyboard.press("ArrowRight")
        assert cursor(page) == before and page.evaluate(WIDE) == []
        close_drawer(page)
        assert page.locator("#drawer").is_hidden() and page.evaluate(rest) == [False] * 3
        assert page.evaluate("document.activeElement.ariaLabel").startswith(f"{group}:")
    page.keyboard.press("ArrowRight")
    assert cursor(page) == before + 1  # the view hears keys again
    fill(page, "Limits", page.get_by_label(NUMBER), "50", "50 tokens")
    page.click("#drawer button[aria-label=close]")
    assert page.evaluate("document.activeElement.ariaLabel").startswith("Limits: 50")  # of the chip, though it changed
    page.click("button[aria-label='files, and the run as Python']")
    page.wait_for_function("document.querySelector('#share').contains(document.activeElement)")
    assert page.evaluate(SEEN, ["#share"]) == {"#share": [True]} and page.locator("#drawer").is_hidden()
    close_drawer(page)
    assert page.locator("#share").is_hidden()


def picture(box) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(box.screenshot())).convert("L"), float)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_ticked_box_is_seen_to_be_ticked(open_page, scheme):
    page = open_page(1440, 900, scheme=scheme)

    def differs(box) -> None:
        box.check()
        page.mouse.move(700, 5)
        ticked = picture(box)
        box.uncheck()
        page.mouse.move(700, 5)
        plain = picture(box)
        assert (abs(ticked - plain) > 40).mean() > 0.1
        assert np.ptp(ticked[3:-3, 3:-3]) > 90 > np.ptp(plain[3:-3, 3:-3])  # the mark itself

    differs(page.locator(".wb-check input"))
    open_group(page, "Limits")
    differs(page.get_by_label("ignore eos"))
    close_drawer(page)
    page.get_by_role("tab", name="Compare").click()
    differs(page.get_by_label("h2o 128", exact=True))


def test_the_theme_switches_and_stays(open_page):
    page = open_page(1440, 900)
    ground = "getComputedStyle(document.body).backgroundColor"
    light = page.evaluate(ground)
    page.click("button[aria-label='light or dark']")
    dark = page.evaluate(ground)
    assert dark != light and page.evaluate("document.body.classList.contains('dark')")
    assert page.evaluate(RATIO, ".wb-gutter b") >= 4.5
    page.reload()
    page.wait_for_selector(TOKEN, timeout=PATIENCE)
    assert page.evaluate(ground) == dark
    page.click("button[aria-label='light or dark']")
    assert page.evaluate(ground) == light
