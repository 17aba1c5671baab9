"""How the view looks in a real Chromium: one screen, nothing cut off, contrast, names and keyboard, hostile texts."""

from copy import deepcopy
from pathlib import Path

import pytest

import workbench as wb
from tests.web import forms
from tests.web.conftest import HOSTILE
from tests.web.pages import SIZES, TOKEN, close, drag, mount, open_file, sideways, tracks
from workbench import web
from workbench.report.headline import run_line
from workbench.trace import Trace
from workbench.views.palette import HUES

pytestmark = pytest.mark.browser
SCHEMES = ("light", "dark")
RUNS = [{"run": 0, "name": "A", "on": True}, {"run": 1, "name": "B"}]
DATA = ("accepted", "rejected", "resampled", "bonus", "pending", "entropy", "cache", "bits")
MEASURE = (Path(__file__).parent / "measure.js").read_text(encoding="utf-8")


def measured(page, name: str):
    """The answer of one of the functions in `measure.js`."""
    return page.evaluate(f"(() => {{ {MEASURE}\nreturn {name}(); }})()")


@pytest.fixture(params=SCHEMES)
def scheme(request):
    return request.param


def states(chromium, capsules, managed, lm, scheme, tmp_path):
    """Pages in which the parts of the view are to be seen, one after the other."""
    page = open_file(chromium, capsules.managed, color_scheme=scheme)
    drag(page, 20, 35, 64)
    page.hover(f"{TOKEN} >> nth=40")
    yield page
    for key in ("Escape", "1", "ArrowRight", "ArrowRight", "ArrowRight"):
        page.keyboard.press(key)
        yield page
    close(page)
    for trace in (forms.hypotheses(), forms.canvas(), forms.constraint(), forms.decisions()):
        page = open_file(
            chromium, trace.capsule(tmp_path / f"{len(list(tmp_path.iterdir()))}.html"), color_scheme=scheme
        )
        page.keyboard.press("3")
        page.keyboard.press("ArrowLeft")
        yield page
        close(page)
    rows = wb.decode(lm, "def area(width, height):", max_new_tokens=3, ignore_eos=True, prompt_rows=True)
    page = mount(chromium, web.payload(rows), scheme=scheme)
    yield page
    close(page)
    status = {"running": False, "ended": None, "message": "Stopped."}
    more = {"ended": None, "cursor": 20, "selected": 10, "runs": RUNS, "status": status}
    page = mount(chromium, {**web.payload(managed), **run_line(managed), **more}, scheme=scheme)
    page.evaluate("view.refuse('expected a condition')")
    page.get_by_text("+ tracks").click()
    page.get_by_text("Forwards of the round").click()
    page.keyboard.press("+")
    for _ in range(8):
        page.keyboard.press("+")
    yield page
    close(page)


def test_texts_have_a_contrast_of_4_5_and_marks_of_3(chromium, capsules, managed, lm, scheme, tmp_path):
    """Of all that is drawn, by the colours that the browser computed; a shape beside them says the rest."""
    texts, marks = {}, {}
    for page in states(chromium, capsules, managed, lm, scheme, tmp_path):
        for ratio, name, text, sign in measured(page, "texts"):
            assert ratio >= (3 if sign else 4.5), f"{ratio:.2f}: .{name} {text!r}"
            texts[name] = ratio
        for key, ratio in measured(page, "marks"):
            assert ratio >= 3, f"{ratio:.2f}: {key}"
            marks[key] = ratio
    assert (
        len(texts) > 50 and {"underline accepted", "bar U", "bar S", "tree accepted", "tree rejected"} <= marks.keys()
    )
    assert {key.split()[-1] for key in marks} >= {"accepted", "rejected", "pending", "entropy", "cache", "bits", "ink"}


@pytest.mark.parametrize("theme", [0, 1], ids=SCHEMES)
def test_the_palette_has_the_contrast_that_it_needs(theme):
    """The variables alone: hues of data as marks, inks as text, on each ground."""

    def light(name: str) -> float:
        parts = [int(HUES[name][theme][k : k + 2], 16) / 255 for k in (1, 3, 5)]
        linear = [v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in parts]
        return sum(weight * v for weight, v in zip((0.2126, 0.7152, 0.0722), linear, strict=True))

    def ratio(one: str, other: str) -> float:
        low, high = sorted((light(one), light(other)))
        return (high + 0.05) / (low + 0.05)

    for ground in ("page", "panel", "sunken"):
        assert all(ratio(hue, ground) >= 3 for hue in DATA)
        assert all(ratio(ink, ground) >= 4.5 for ink in ("ink", "quiet", "faint"))
    assert ratio("caution-ink", "caution") >= 4.5 and ratio("page", "ink") >= 4.5


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("run", ["managed", "tree", "long"])
def test_nothing_is_wider_than_the_view_and_no_control_is_cut(chromium, capsules, run, size):
    page = open_file(chromium, getattr(capsules, run), size)
    for keys in ((), ("End",), ("3", "ArrowLeft"), ("1", "ArrowLeft", "ArrowLeft", "ArrowLeft")):
        for key in keys:
            page.keyboard.press(key)
        assert measured(page, "cut") == [[], []] and sideways(page) == 0
    close(page)


@pytest.mark.parametrize("width", [390, 640, 900, 1000, 1200, 1440])
def test_a_live_view_fits_every_width(chromium, managed, width):
    """As in a notebook, where a view has its own height; under 900 px the inspector is below."""
    more = {"ended": None, "runs": [{"run": k, "name": f"{k} from 12"} for k in range(4)]}
    page = mount(chromium, {**web.payload(managed), **run_line(managed), **more}, (width, 1400))
    assert measured(page, "cut") == [[], []] and sideways(page) == 0
    place = page.inner_text(".wb-place")
    assert place == "token 0 of 64 · round 1" and page.locator(".wb-until").bounding_box()["width"] > 70
    view, glass, plot = (page.locator(one).bounding_box() for one in (".wb-view", ".wb-inspector", ".wb-plot"))
    if width < 900:
        assert glass["y"] >= plot["y"] + plot["height"] and abs(glass["width"] - width) < 2
    else:
        assert view["height"] == 640 and glass["x"] > plot["x"] + plot["width"] - 1
    # the axis ends where the plot does, whatever was drawn first
    assert page.locator(".wb-plot > svg[role=img]").bounding_box()["width"] == pytest.approx(plot["width"], abs=1)
    close(page)


def lowest(page, selector: str) -> float:
    boxes = [
        box for k in range(page.locator(selector).count()) if (box := page.locator(selector).nth(k).bounding_box())
    ]
    assert boxes
    return max(box["y"] + box["height"] for box in boxes)


@pytest.mark.parametrize(("size", "parts"), [("laptop", [".wb-tree"]), ("phone", [])])
def test_the_first_screen_shows_text_transport_tracks_and_tree(chromium, capsules, scheme, size, parts):
    page = open_file(chromium, capsules.managed, size, color_scheme=scheme)
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    height = SIZES[size][1]
    assert len(tracks(page)) == 4
    for part in (".wb-tokens", ".wb-transport", ".wb-gutter [data-track]", *parts):
        assert lowest(page, part) <= height, part
    plot = page.locator(".wb-plot")
    assert plot.evaluate("one => one.scrollHeight - one.clientHeight") <= 1 and lowest(page, ".wb-plot") <= height
    lines = page.locator(".wb-tokens").bounding_box()["height"]
    assert lines >= (200 if size == "laptop" else 145)
    if size == "phone":  # two rows of controls
        assert page.locator(".wb-transport").bounding_box()["height"] < 100
    else:
        assert page.locator(".wb-transport").bounding_box()["height"] < 50
    close(page)


CONTROLS = ":is(button, select, input, summary, .wb-tokens):not(:disabled)"


def controls(page) -> int:
    """Number of things to act on that can be seen; they are kept in the page's `parts`."""
    return page.evaluate(
        """which => {
          const seen = (one) => one.checkVisibility() && one.getBoundingClientRect().width > 0;
          window.parts = [...document.querySelectorAll(`.wb-view ${which}`)].filter(seen);
          return parts.length;
        }""",
        CONTROLS,
    )


@pytest.mark.parametrize("size", ["laptop", "phone"])
def test_everything_is_reached_by_tab_and_has_a_name(chromium, managed, size):
    page = mount(chromium, {**web.payload(managed), "ended": None, "runs": RUNS}, size)
    page.get_by_text("+ tracks").click()
    page.get_by_text("Data table").click()
    page.locator(".wb-scroll").evaluate("one => one.scrollIntoView()")
    count = controls(page)
    assert count > 20
    page.evaluate("document.activeElement.blur()")
    reached = set()
    for _ in range(count + 8):
        page.keyboard.press("Tab")
        reached.add(page.evaluate("parts.indexOf(document.activeElement)"))
        if page.evaluate("document.activeElement.matches('.wb-view *')"):
            style = page.evaluate("(s => [s.outlineStyle, s.outlineWidth])(getComputedStyle(document.activeElement))")
            assert style[0] != "none" and style[1] != "0px"  # the focus can be seen
    assert reached >= {*range(count)}
    tree = page.context.new_cdp_session(page).send("Accessibility.getFullAXTree")["nodes"]
    roles = ("button", "combobox", "checkbox", "textbox", "listbox", "option", "image", "DisclosureTriangle", "img")
    named = [(node["role"]["value"], node.get("name", {}).get("value", "")) for node in tree if not node.get("ignored")]
    found = [(role, name) for role, name in named if role in roles]
    assert len(found) > 90 and all(name.strip() for _, name in found), [one for one in found if not one[1].strip()]
    assert ("listbox", "decoded tokens") in found
    close(page)


def test_a_ticked_box_is_seen_whatever_the_page_does_to_boxes(chromium, tree):
    """Gradio takes the browser's own box away and draws another one."""
    page = mount(chromium, web.payload(tree))
    page.add_style_tag(content="input[type=checkbox] { appearance: none; width: 0; height: 0; background: red } "
                               ".gradio-container input { appearance: none }")  # fmt: skip
    page.evaluate("document.body.className = 'gradio-container'")
    box = page.get_by_label("rejected drafts in the text")
    style = box.evaluate("one => (s => [s.appearance, s.width, s.height])(getComputedStyle(one))")
    assert style[0] != "none" and style[1:] == ["13px", "13px"] and box.is_checked()
    close(page)


@pytest.fixture(scope="module")
def infested(managed) -> Trace:
    """A run that drafts, decides and searches, in which every text is markup."""
    log = deepcopy(managed.log)
    log[0] |= {"id": HOSTILE, "device": HOSTILE, "verified": [HOSTILE], "forced": {"3": 1}}
    log[0]["decoder"] = {"name": HOSTILE, "settings": {HOSTILE: HOSTILE}}
    made = []
    for event in log:
        made.append(event)
        if event["type"] != "round":
            continue
        for group, names in {"tokens": ("text", "source", "cut_by"), "drafts": ("text", "drafter", "reason"),
                             "forwards": ("implementation",)}.items():  # fmt: skip
            if event.get(group):
                n = len(next(iter(event[group].values())))
                event[group] |= {name: [HOSTILE] * n for name in names}
        event["hypotheses"] = {"id": [1, 2], "depth": [1, 1], "text": [HOSTILE] * 2, "role": [HOSTILE] * 2,
                               "fate": [HOSTILE] * 2, "score": [0.5, 0.25]}  # fmt: skip
        event["canvas"] = {"position": [99, 100], "text": [HOSTILE] * 2, "state": ["fixed", HOSTILE]}
        signal = {"name": HOSTILE, "value": HOSTILE, "unit": HOSTILE}
        made.append({"type": "decision", "round": event["round"], "controller": HOSTILE, "action": HOSTILE,
                     "threshold": HOSTILE, "signals": [signal]})  # fmt: skip
    return Trace(made)


def test_hostile_texts_are_inert_in_every_part(chromium, infested):
    shown = {**web.payload(infested, text_of=lambda token: HOSTILE), "ended": None, **run_line(infested)}
    shown |= {"runs": [{"run": HOSTILE, "name": HOSTILE, "tip": HOSTILE, "on": True}], "line": HOSTILE,
              "badge": {"text": HOSTILE, "tip": HOSTILE}, "marks": [{"index": 8, "text": HOSTILE}],
              "status": {"running": False, "ended": None, "message": HOSTILE}}  # fmt: skip
    page = mount(chromium, shown)
    page.focus(".wb-tokens")
    for _ in range(6):
        page.keyboard.press("ArrowRight")
    for _ in range(8):
        page.keyboard.press("+")
    page.get_by_text("Data table").click()
    page.get_by_text("Forwards of the round").click()
    sections = ("token", "candidates", "round", "decisions", "hypotheses", "passes")
    parts = ("chip", "badge", "told", "message", "tokens", "refused", "flags", "ruler", "search", "canvas", "table")
    for part in (*(f".wb-{name}" for name in parts), *(f"[data-name={name}]" for name in sections)):
        assert "</scr" in page.locator(part).first.evaluate("one => one.title + one.textContent"), part
    page.evaluate("text => view.refuse(text)", HOSTILE)
    page.hover(f"{TOKEN} >> nth=4")
    page.get_by_role("button", name="phase", exact=True).click()
    for _ in range(6):
        page.keyboard.press("n")
        assert "&lt;/scr" in page.locator(".wb-drafted, .wb-fills").first.evaluate("one => one.innerHTML")
    assert page.evaluate("window.broken") is None
    assert page.locator(".wb-view :is(img, script, iframe, object, a)").count() == 0
    names = page.evaluate("[...document.querySelectorAll('.wb-view *')].flatMap((one) => one.getAttributeNames())")
    assert names and not any(name.startswith("on") or name in ("href", "src", "srcdoc") for name in names)
    close(page)


def test_a_hostile_capsule_is_inert_as_a_file(chromium, infested, tmp_path):
    page = open_file(chromium, infested.capsule(tmp_path / "run.html", title=HOSTILE))
    for key in ("ArrowRight", "ArrowRight", "+", "+", "1", "n", "n", "n", "n", "n", "3", "n"):
        page.keyboard.press(key)
    assert page.evaluate("window.broken") is None and page.locator("img, iframe").count() == 0 and sideways(page) == 0
    assert HOSTILE in page.inner_text("h1") or "window.broken" in page.inner_text("h1")
    close(page)
