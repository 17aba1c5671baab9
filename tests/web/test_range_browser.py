"""Ranges, zoom and the maps of the timeline in a real Chromium; and what the forms of decoding look like there."""

from copy import deepcopy

import pytest

import workbench as wb
from tests.web import forms
from tests.web.conftest import HOSTILE
from tests.web.pages import TOKEN, at, close, drag, mount, open_file, tracks, until, x_of
from workbench import web
from workbench.report import headline
from workbench.trace import Trace

pytestmark = pytest.mark.browser
CARD = ".wb-selection"


def card(page) -> dict[str, list[str]]:
    """The numbers of the selection and of the rest, by what they are."""
    rows = page.locator(f"{CARD} tr:not(:has(th))")
    return {name: rest for name, *rest in (rows.nth(k).locator("td").all_inner_texts() for k in range(rows.count()))}


def selected(page, first: int, last: int) -> None:
    """The card is drawn with the next frame."""
    until(lambda: page.locator(CARD).count() and page.inner_text(f"{CARD} h3").startswith(f"Tokens {first} to {last}"))


def span(page) -> tuple[int, int]:
    """The first and last token of the axis, found by pointing at its ends."""
    left, right = page.locator(".wb-decoded").evaluate("one => (b => [b.left, b.right])(one.getBoundingClientRect())")
    found = []
    for x in (left + 1, right - 1):
        page.mouse.click(x, page.locator(".wb-plot").bounding_box()["y"] + 80)
        found.append(at(page))
    return tuple(found)


def expected(trace, first: int, last: int) -> dict[str, list[str]]:
    """The card's numbers from the tables of the trace."""
    tokens, rounds = trace.tokens, trace.rounds.set_index("round")
    target = trace.cache[trace.cache["model"] == "target"].groupby("round")
    size = target["bytes"].sum() - target["pad"].sum() - target["staging"].sum()
    late = trace.drafts[trace.drafts["fate"] == "after_end"]["round"].value_counts()
    found: dict[str, list[str]] = {}
    inside = tokens["index"].between(first, last)
    for chosen in (tokens[inside], tokens[~inside]):
        own = rounds.loc[chosen["round"].unique()]
        drafted = own["drafted"].sum() - late.reindex(own.index).fillna(0).sum()
        for name, text in {
            "tokens": str(len(chosen)),
            "rounds": str(len(own)),
            "entropy, mean (nats)": f"{chosen['entropy_raw_nats'].mean():.2f}",
            "acceptance rate": f"{100 * own['accepted'].sum() / drafted:.0f} %" if drafted else "–",
            "tokens / round": f"{len(chosen) / len(own):.2f}",
            "target cache, mean": headline.size(size.loc[chosen["round"]].mean()),
            "bits / element, mean": f"{rounds['bits_per_element'].loc[chosen['round']].mean():.1f}",
            "ms / round": f"{own['total_ms'].mean():.1f}",
        }.items():
            found.setdefault(name, []).append(text)
    return found


def same(shown: dict[str, list[str]], wanted: dict[str, list[str]]) -> None:
    """The same figures; floats that are sent with five digits may differ in the last one shown."""
    assert shown.keys() == wanted.keys()
    for name, texts in wanted.items():
        for one, other in zip(shown[name], texts, strict=True):
            (a, *unit), (b, *other_unit) = one.split(), other.split()
            last = 10.0 ** -len(b.partition(".")[2])
            assert unit == other_unit and abs(float(a) - float(b)) < 1.01 * last * ("." in b) + 1e-9, (name, one, other)


def test_a_range_is_compared_with_the_rest_of_the_run(chromium, capsules, managed):
    page = open_file(chromium, capsules.managed)
    drag(page, 20, 35, 64)
    selected(page, 20, 35)
    same(card(page), expected(managed, 20, 35))
    assert page.locator(f"{TOKEN}.wb-in").evaluate_all("all => all.map((one) => Number(one.dataset.index))") == [
        *range(20, 36)
    ]
    assert page.locator(".wb-range").count() == 1 and at(page) == 0
    drag(page, 50, 40, 64)  # to the left as well
    selected(page, 40, 50)
    same(card(page), expected(managed, 40, 50))
    page.keyboard.press("Escape")
    until(lambda: not page.locator(f"{CARD}, .wb-range, {TOKEN}.wb-in").count())
    page.mouse.dblclick(x_of(page, 30, 64), page.locator(".wb-plot").bounding_box()["y"] + 80)
    own = managed.tokens[managed.tokens["round"] == managed.tokens["round"][30]]["index"]
    selected(page, own.min(), own.max())
    close(page)


def test_zooming_panning_and_back(chromium, capsules):
    page = open_file(chromium, capsules.managed)
    assert span(page) == (0, 63)
    drag(page, 20, 35, 64)
    page.keyboard.press("z")
    assert span(page) == (20, 35) and page.locator(".wb-ruler").inner_html().count("<text") > 8
    page.keyboard.press("Escape")  # the range first
    until(lambda: not page.locator(CARD).count())
    assert span(page) == (20, 35)
    page.keyboard.press("d")
    first, last = span(page)
    assert (first, last) == (24, 39)
    page.keyboard.press("a")
    page.keyboard.press("a")
    assert span(page) == (16, 31)
    page.keyboard.press("+")
    first, last = span(page)
    assert first >= 16 and last <= 31 and last - first < 12
    page.keyboard.press("-")
    page.keyboard.press("-")
    assert span(page)[1] - span(page)[0] > 18
    page.keyboard.press("Escape")
    assert span(page) == (0, 63)

    page.mouse.move(x_of(page, 40, 64), page.locator(".wb-plot").bounding_box()["y"] + 80)
    page.keyboard.down("Control")
    for _ in range(4):
        page.mouse.wheel(0, -100)
    page.keyboard.up("Control")
    ends: list[tuple[int, int]] = [(0, 63)]
    until(lambda: ends.append(span(page)) or 24 < ends[-1][1] - ends[-1][0] < 28)  # 64 / 1.25 ** 4
    first, last = ends[-1]
    assert 0 < first < 40 < last < 63 and (40 - first) / (last - first) == pytest.approx(40 / 63, abs=0.1)
    page.keyboard.press("Home")
    assert at(page) == 0 and span(page)[0] <= 1  # the cursor is kept in view
    page.keyboard.press("z")
    assert span(page) == (0, 63)
    close(page)


def test_the_map_shows_the_cache_at_the_cursor_and_a_layer_opens_into_heads(chromium, capsules, managed):
    """More is drawn the further the cursor; a double click turns layers into the heads of one, and back."""
    page = open_file(chromium, capsules.managed)
    drawn = """map => {
      const { data, width, height } = map.getContext('2d').getImageData(0, 0, map.width, map.height);
      const alpha = (x, y) => data[4 * (y * width + x) + 3];
      let right = 0;
      for (let x = 0; x < width; x += 1) for (let y = 0; y < height; y += 1) if (alpha(x, y)) right = x;
      const column = [...Array(height).keys()].map((y) => alpha(right - 3, y)), most = Math.max(...column);
      const gaps = column.map((one) => one < 0.92 * most);
      return [right, gaps.filter((gap, y) => !gap && (y === 0 || gaps[y - 1])).length];
    }"""  # how far to the right, and how many rows there
    canvas = page.locator(".wb-map")
    first, _ = canvas.evaluate(drawn)
    page.keyboard.press("End")
    last, rows = canvas.evaluate(drawn)
    assert first < last / 2 and rows == 8 and "layers 0 to 7" in page.inner_text(".wb-gutter [data-track=bits]")
    box = canvas.bounding_box()
    page.mouse.dblclick(box["x"] + box["width"] / 2, box["y"] + box["height"] * 2.5 / 8)
    assert "layer 2, a row a head" in page.inner_text(".wb-gutter [data-track=bits]")
    assert page.locator(CARD).count() == 0  # it is the map's, and selects no round
    assert page.locator(".wb-map").evaluate(drawn)[1] == 4
    page.mouse.dblclick(box["x"] + box["width"] / 2, box["y"] + 4)
    assert page.locator(".wb-map").evaluate(drawn)[1] == 8
    close(page)


def test_marks_stand_where_a_run_was_changed(chromium):
    trace = forms.of({}, {}, {}, {}, {}, forced={"3": 3}, parent={"trace": "a", "round": 1, "index": 1})
    page = mount(chromium, web.payload(trace))
    flags = page.locator(".wb-flags text")
    assert flags.all_text_contents() == ["from here: by-hand, cache full", "forced token"]
    boxes = [page.locator(".wb-flags rect").nth(k).bounding_box() for k in (0, 1)]
    assert boxes[0]["x"] + boxes[0]["width"] < boxes[1]["x"]  # none lies over another
    page.focus(".wb-tokens")
    for _ in range(3):
        page.keyboard.press("ArrowRight")
    assert page.inner_text(".wb-from") == "forced here"
    close(page)
    page = mount(chromium, web.payload(forms.of(*[{}] * 6, forced={"1": 3, "2": 3, "4": 3})))
    assert page.locator(".wb-flags text").count() == 2  # tokens forced in a row have one
    close(page)


# ---- the forms: a decoration of a token, a track, a section of the inspector


@pytest.fixture
def shown(chromium, tmp_path):
    """A trace as a capsule, with the cursor at a token."""
    opened = []

    def show(trace: Trace, i: int = 0):
        page = open_file(chromium, trace.capsule(tmp_path / f"{len(opened)}.html"))
        opened.append(page)
        for _ in range(i):
            page.keyboard.press("ArrowRight")
        return page

    yield show
    for page in opened:
        close(page)


def facts(page) -> dict[str, str]:
    names, values = (page.locator(f".wb-facts {tag}").all_inner_texts() for tag in ("dt", "dd"))
    return dict(zip(names, values, strict=True))


def big(page, track: str) -> str:
    return page.inner_text(f".wb-gutter [data-track={track}] .wb-big")


def test_hypotheses_are_rows_a_track_and_a_section(shown):
    page = shown(forms.hypotheses())
    page.keyboard.press("3")
    for _ in range(3):
        page.keyboard.press("ArrowLeft")
    page.keyboard.press("ArrowRight")
    lines = page.locator(".wb-search > div")
    assert [line.split("\n")[:2] for line in lines.all_inner_texts()] == [
        ["A", "def"],
        ["B", "class"],
        ["C", "import ✕"],
    ]
    assert page.locator(".wb-search > .wb-over").count() == 1
    page.keyboard.press("ArrowRight")  # what they go on from stands before them
    assert [line.split("\n")[1] for line in lines.all_inner_texts()] == ["def␣area", "def␣volume", "class␣Shape ✕"]
    rows = page.locator("[data-name=hypotheses] tr").all_inner_texts()
    assert rows[1].split("\t") == ["␣area", "-0.7", "beam", "live"] and len(rows) == 4
    assert "hypotheses" in tracks(page)
    segments = page.locator(".wb-plot > svg g > path.wb-curve[stroke='var(--wb-ink)'][opacity]").get_attribute("d")
    assert segments.count("M") == len(forms.hypotheses().hypotheses)
    page.keyboard.press("ArrowRight")
    assert big(page, "hypotheses") == "1 live"


def test_a_constraint_is_a_track_facts_and_what_it_cut(shown):
    page = shown(forms.constraint(), 2)
    assert "allowed" in tracks(page) and big(page, "allowed") == "0.25"
    assert facts(page)["allowed"] == "7" and facts(page)["their p"] == "0.25" and facts(page)["left by grammar"] == "7"
    assert page.locator("[data-name=candidates] .wb-cut .wb-number").last.inner_text() == "grammar"


def test_a_real_run_under_a_constraint_is_drawn_as_that_form_is(shown, lm):
    run = dict(constraint=wb.Regex("[i-k] in [a-z]{5}\\([0-4]\\):\n"), max_new_tokens=16)
    prompt = "for i in range(9):\n    for j in range(9):\n        for "
    page = shown(wb.decode(lm, prompt, wb.Speculative(drafter=wb.PromptLookup(ngram=1)), **run), 2)
    assert "allowed" in tracks(page) and {"allowed", "their p"} <= facts(page).keys()
    titles = page.locator(".wb-refused").evaluate_all("all => all.map(one => one.title)")
    assert any("(grammar)" in title for title in titles)


def test_reads_are_a_track_of_units_and_of_bytes_that_were_fetched(shown):
    page = shown(forms.reads(), 3)
    assert "reads" in tracks(page) and big(page, "reads") == "18"
    assert "of 32 read\n4.00 KiB fetched" in page.inner_text(".wb-gutter [data-track=reads]")
    rings = page.locator(".wb-rings").get_attribute("d")
    assert rings.count("M") == 1
    page.keyboard.press("ArrowLeft")
    assert big(page, "reads") == "14" and "fetched" not in page.inner_text(".wb-gutter [data-track=reads]")
    page.keyboard.press("Home")
    assert big(page, "reads") == "–"


def test_decisions_are_signs_over_tokens_and_a_section(shown):
    page = shown(forms.decisions(), 1)
    assert page.inner_text("[data-name=decisions] div") == "◆ entropy 3.41 nats against 3: stop draft (budget gate)"
    assert "◆ a controller acted" in page.inner_text(".wb-gutter [data-track=entropy]")
    diamond = page.locator(".wb-plot > svg path[fill='var(--wb-ink)']").first.bounding_box()
    assert diamond["x"] + diamond["width"] / 2 == pytest.approx(x_of(page, 1, 3), abs=1)
    page.keyboard.press("ArrowRight")
    assert page.locator("[data-name=decisions]").count() == 0


def test_a_canvas_is_cells_that_are_decided_round_by_round(shown):
    page = shown(forms.canvas())
    page.keyboard.press("3")
    for _ in range(5):
        page.keyboard.press("ArrowLeft")
    cells, seen = page.locator(".wb-canvas > span"), []
    for _ in range(4):
        page.keyboard.press("ArrowRight")
        names = cells.evaluate_all("all => all.map((one) => one.className.replace('wb-slot wb-slot-', ''))")
        words = cells.evaluate_all("all => all.map((one) => one.firstChild.textContent)")
        numbers = [cells.nth(k).locator("sup").all_inner_texts() for k in range(cells.count())]
        seen.append((names, words, ["".join(one) for one in numbers]))
    assert seen[0] == (["masked", "fixed", "masked", "proposed"], ["▢", "␣area", "▢", "r"], ["", "1", "", ""])
    assert seen[1] == (["masked", "fixed", "fixed", "fixed"], ["▢", "␣area", "(", "r"], ["", "1", "2", "2"])
    assert seen[2] == (["fixed", "fixed", "remasked", "fixed"], ["def", "␣area", "▢", "r"], ["3", "1", "3", "2"])
    assert seen[3] == (["fixed"] * 4, ["def", "␣area", "(", "r"], ["3", "1", "4", "2"])
    page.keyboard.press("ArrowLeft")
    assert cells.nth(2).evaluate("one => getComputedStyle(one).borderTopStyle") == "dashed"
    page.keyboard.press("1")
    assert page.locator(".wb-canvas").is_visible()
    page.keyboard.press("ArrowRight")  # a phase: what was decided on the canvas is not told
    assert not page.locator(".wb-canvas").is_visible()


def test_skipped_layers_are_a_track_and_facts(shown):
    page = shown(forms.layers(), 1)
    assert "layers" in tracks(page) and big(page, "layers") == "1"
    assert facts(page)["layers"] == "1" and facts(page)["exit at"] == "0"


def test_a_column_of_a_plug_in_is_a_track_of_its_own(chromium, tree):
    """Its name may be anything: it is text, and nothing else."""
    log = deepcopy(tree.log)
    for event in log:
        if event["type"] == "round" and event["emitted"]:
            event["tokens"][HOSTILE] = [0.25 * k for k in range(event["emitted"])]
            event["tokens"]["their.surprise"] = [-1.5] * event["emitted"]
    page = mount(chromium, web.payload(Trace(log)))
    page.get_by_text("+ tracks").click()
    page.get_by_role("checkbox", name="their.surprise").check()
    page.get_by_role("checkbox", name=HOSTILE.replace("_", " ")[:12]).check()
    names = page.locator(".wb-gutter b").all_text_contents()
    assert names[-2:] == sorted([HOSTILE.replace("_", " "), "their.surprise"])
    values = page.locator(".wb-gutter .wb-big").all_inner_texts()
    assert sorted(values[-2:]) == ["-1.5", "0"]
    assert page.evaluate("window.broken") is None and page.locator("img").count() == 0
    close(page)
