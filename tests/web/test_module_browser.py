"""The module in a real Chromium, on capsule files: nothing is requested, no script fails, keys do what they say."""

import pytest

import workbench as wb
from tests.web.conftest import HOSTILE
from tests.web.pages import TOKEN, at, close, mount, open_file, sideways, tracks, until, x_of
from workbench import web
from workbench.report import headline
from workbench.views.palette import HUES

pytestmark = pytest.mark.browser
TOKENS = 512


@pytest.fixture
def look(chromium):
    """Opens a file in a window; at the end nothing else was asked for, no script failed, no policy was broken."""
    opened = []

    def open_(path, size="laptop", **options):
        opened.append(open_file(chromium, path, size, **options))
        return opened[-1]

    yield open_
    for page in opened:
        close(page)


def tints(page, which: str = TOKEN) -> list[str]:
    return page.locator(which).evaluate_all("all => all.map((token) => token.style.getPropertyValue('--tint'))")


def value(page, track: str) -> str:
    return page.inner_text(f".wb-gutter [data-track={track}] .wb-big")


def line(page, name: str) -> list[float]:
    """Where a vertical line of the timeline stands, in px of the window."""
    return page.locator(f".wb-{name}").evaluate_all("all => all.map((one) => one.getBoundingClientRect().left)")


def test_keys_move_the_cursor_and_all_parts_follow(look, capsules, speculative):
    page = look(capsules.long)
    assert page.locator(TOKEN).count() == TOKENS and at(page) == 0
    page.focus(".wb-tokens")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    assert at(page) == 2
    rounds = speculative.tokens["round"].tolist()
    starts = [i for i in range(TOKENS) if not i or rounds[i] != rounds[i - 1]]
    page.keyboard.press("Shift+ArrowRight")
    following = next(start for start in starts if start > 2)
    assert at(page) == following
    page.keyboard.press("ArrowDown")
    assert at(page) == next(start for start in starts if start > following)
    page.keyboard.press("ArrowUp")
    page.keyboard.press("Shift+ArrowLeft")
    assert at(page) == max(start for start in starts if start < following)
    page.keyboard.press("End")
    assert at(page) == TOKENS - 1
    page.keyboard.press("ArrowLeft")
    assert at(page) == TOKENS - 2 and page.evaluate("document.activeElement.className") == "wb-tokens"
    page.keyboard.press("b")
    page.keyboard.press("n")
    last = speculative.tokens.iloc[TOKENS - 2]
    assert page.inner_text(".wb-word").endswith(f"token {TOKENS - 2} · position {last['position']}")
    assert page.inner_text(".wb-place") == f"token {TOKENS - 2} of {TOKENS} · round {last['round']}"
    assert page.text_content("[aria-live=polite]").startswith(f"token {TOKENS - 2}: ")
    assert line(page, "cursor") == pytest.approx([x_of(page, TOKENS - 2, TOKENS)], abs=1)
    assert page.locator(".wb-frame-at").count() >= 1
    page.keyboard.press("Home")
    assert at(page) == 0 and line(page, "cursor") == pytest.approx([x_of(page, 0, TOKENS)], abs=1)
    first = speculative.tokens.iloc[0]
    facts = page.inner_text(".wb-facts").split()
    assert facts[facts.index("entropy") + 1] == f"{first['entropy_raw_nats']:.2f}"
    assert facts[facts.index("surprisal") + 1] == f"{first['surprisal_nats']:.2f}"
    assert value(page, "entropy") == f"{first['entropy_raw_nats']:.2f} nats"


def test_candidates_show_both_distributions_what_cut_them_and_the_draft(look, capsules, speculative):
    """Bars before and after temperature and cuts; the token that was taken; drafts that were rejected."""
    page, tokens = look(capsules.long), speculative.tokens
    page.keyboard.press("ArrowRight")
    ids, ps = tokens["topk_raw"][1]
    rows = page.locator("[data-name=candidates] tr:not(:has(th))")
    taken = tokens["token_id"][1]
    assert rows.count() == len(ids) + (taken not in ids)
    numbers = [[float(one) for one in rows.nth(k).locator(".wb-number").all_inner_texts()[:1]] for k in range(len(ids))]
    assert numbers == [[pytest.approx(p, abs=6e-4)] for p in ps]
    assert rows.nth(0).locator("u").count() == 1  # outline: before; filled: after
    widths = rows.nth(0).locator("u, s").evaluate_all("all => all.map((one) => one.getBoundingClientRect().width)")
    after = dict(zip(*tokens["topk_sampled"][1], strict=True)).get(ids[0], 0)
    assert widths[1] / widths[0] == pytest.approx(after / ps[0], rel=0.1)
    chosen = page.locator("[data-name=candidates] .wb-taken")
    assert chosen.count() == 1 and chosen.locator("code").inner_text()

    rejected = next(i for i in range(TOKENS) if tokens["source"][i] in ("target", "residual") and i and
                    any(speculative.drafts.query(f"round == {tokens['round'][i]}")["fate"] == "rejected"))  # fmt: skip
    page.evaluate(f"document.querySelector('[data-index=\"{rejected}\"]').click()")
    assert at(page) == rejected
    assert page.locator("[data-name=candidates] [title='rejected']").count() <= 1
    assert page.locator("[data-name=candidates] .wb-fork").count() == 0  # there is nothing here that could branch


def test_prompt_rows_are_coloured_and_looked_at_like_tokens(look, lm, tmp_path):
    """Their indices are negative; without them the prompt is one piece of quiet text that no cursor enters."""
    prompt = "def area(width, height):"
    plain = wb.decode(lm, prompt, max_new_tokens=3, ignore_eos=True)
    page = look(plain.capsule(tmp_path / "plain.html"))
    assert page.inner_text(".wb-prompt") == prompt and page.locator(f".wb-prompt {TOKEN}").count() == 0
    page.keyboard.press("ArrowLeft")
    assert at(page) == 0

    trace = wb.decode(lm, prompt, max_new_tokens=3, ignore_eos=True, prompt_rows=True)
    page, count = look(trace.capsule(tmp_path / "rows.html")), len(trace.run["prompt_ids"])
    rows = page.locator(f".wb-prompt {TOKEN}")
    assert "".join(rows.all_text_contents()) == prompt and rows.count() == count and at(page) == 0
    page.keyboard.press("ArrowLeft")
    last = trace.prompt_tokens.iloc[-1]
    assert at(page) == -1 and line(page, "cursor")[0] < x_of(page, 0, 3)
    assert page.text_content("[aria-live=polite]").startswith("token -1: ")
    assert page.inner_text(".wb-word").endswith(f"token -1 · position {count - 1}")
    assert page.inner_text(".wb-from") == "of the prompt"
    assert f"{last.surprisal_nats:.2f}" in page.inner_text(".wb-facts")
    assert value(page, "entropy") == f"{last.entropy_raw_nats:.2f} nats"
    assert page.locator("[data-name=candidates] .wb-number").count() > 0

    past = page.locator(".wb-past")
    top, bottom = (page.locator(".wb-plot > svg .wb-rule").nth(k).bounding_box()["y"] for k in (0, 1))
    box = past.bounding_box()  # the entropy of the prompt is drawn left of token 0, inside its own track
    assert box["x"] + box["width"] <= x_of(page, 0, 3) and box["width"] > 20
    assert top < box["y"] and box["y"] + box["height"] < bottom

    page.mouse.click(box["x"] + box["width"] / 2, box["y"])
    assert -count < at(page) < -1
    page.keyboard.press("Home")
    assert at(page) == 0
    for _ in range(count):
        page.keyboard.press("ArrowLeft")
    assert at(page) == -count
    assert page.locator("[data-name=candidates]").count() == 0  # nothing stands before it that foretells it
    shades = tints(page, f".wb-prompt {TOKEN}")
    assert shades[0] == "transparent" and len(set(shades)) > 4
    page.get_by_label("colour tokens by").select_option("source")
    assert set(tints(page, f".wb-prompt {TOKEN}")) == {"transparent"}
    page.get_by_text("Data table").click()
    assert page.inner_text(".wb-table caption") == f"tokens -{count} to 2 of 3"
    assert page.locator(".wb-table tr").count() == 1 + count + 3


def test_hovering_links_text_and_timeline(look, capsules):
    page = look(capsules.tree)
    n = page.locator(TOKEN).count()
    page.locator(TOKEN).nth(7).hover()
    assert line(page, "hovered") == pytest.approx([x_of(page, 7, n)], abs=1)
    hovered = value(page, "entropy")
    frame = page.locator(".wb-frame-hover").first.bounding_box()
    token = page.locator(TOKEN).nth(7).bounding_box()
    assert abs(frame["y"] - token["y"]) < 6 and at(page) == 0
    box = page.locator(".wb-plot").bounding_box()
    page.mouse.move(x_of(page, 9, n), box["y"] + 60)
    assert line(page, "hovered") == pytest.approx([x_of(page, 9, n)], abs=1) and value(page, "entropy") != hovered
    assert page.locator(".wb-frame-hover").count() > 0
    page.mouse.click(x_of(page, n - 1, n), box["y"] + 60)
    assert at(page) == n - 1
    page.mouse.move(5, 5)
    assert page.locator(".wb-frame-hover, .wb-hovered").count() == 0


def test_transport_steps_plays_and_pauses(look, capsules, tree):
    page = look(capsules.tree)
    n = len(tree.tokens)
    page.get_by_role("button", name="one step on").click()
    assert at(page) == 1
    page.get_by_role("button", name="round", exact=True).click()
    assert page.get_by_role("button", name="round", exact=True).get_attribute("aria-pressed") == "true"
    page.get_by_role("button", name="one step on").click()
    assert tree.tokens["round"][at(page)] == tree.tokens["round"][1] + 1
    page.get_by_role("button", name="one step back").click()
    assert tree.tokens["round"][at(page)] == tree.tokens["round"][1]
    page.get_by_role("button", name="token", exact=True).click()
    page.get_by_role("button", name="to the first token").click()
    assert at(page) == 0
    page.locator(".wb-transport select").select_option("40")
    play = page.locator(".wb-play")
    assert play.inner_text().strip() == "Replay"
    play.click()
    until(lambda: at(page) > 3)
    assert play.inner_text().strip() == "Pause"
    play.click()
    stopped = at(page)
    page.keyboard.press(" ")
    until(lambda: at(page) == n - 1)
    assert stopped < n - 1
    until(lambda: play.inner_text().strip() == "Replay")
    assert page.get_by_role("button", name="one step on").is_disabled()  # nothing here decodes
    page.get_by_role("button", name="to the first token").click()
    page.get_by_role("button", name="to the head of the run").click()
    assert at(page) == n - 1


def test_every_signal_can_colour_the_tokens_and_rejected_drafts_stand_in_the_text(look, capsules, tree):
    page = look(capsules.tree)
    choice = page.get_by_label("colour tokens by")
    names = choice.locator("option").evaluate_all("options => options.map((option) => option.value)")
    assert names == ["entropy", "sampled", "surprisal", "p", "rank", "cache", "bits", "source"]
    seen = set()
    for name in names:
        choice.select_option(name)
        seen.add(str(tints(page)))
        assert page.inner_text(".wb-legend")
    assert len(seen) >= 7
    refused = tree.drafts[tree.drafts["fate"] != "accepted"]
    told = page.locator(".wb-refused").evaluate_all("all => all.map((ghost) => ghost.title.split('\\n').length)")
    assert sum(told) == len(refused)
    box = page.get_by_label("rejected drafts in the text")
    assert box.is_checked()
    box.uncheck()
    assert page.locator(".wb-refused").count() == 0 and page.locator(TOKEN).count() == len(tree.tokens)
    page.keyboard.press("g")
    assert box.is_checked() and page.locator(".wb-refused").count() == len(told)
    page.keyboard.press("c")
    assert choice.input_value() == names[0]  # after the last the first


def test_tokens_say_where_they_came_from(look, capsules, speculative):
    """A class, a sentence and a line of its own for each source."""
    page = look(capsules.long)
    kinds = web.payload(speculative)["tokens"]["kind"]
    for kind, name, told in (("drafted", "accepted", "drafted and accepted"), ("residual", "resampled", "resampled"),
                             ("bonus", "bonus", "bonus")):  # fmt: skip
        marked = page.locator(f"{TOKEN}.wb-{name}")
        assert marked.count() == kinds.count(kind)
        if kind in kinds:
            assert told in marked.first.get_attribute("aria-label")
            at_ = kinds.index(kind)
            page.evaluate(f"document.querySelector('[data-index=\"{at_}\"]').click()")
            assert told in page.inner_text(".wb-from") and page.locator(".wb-from .wb-sign").count() == 1
    firsts = page.locator(f"{TOKEN}.wb-first").evaluate_all("all => all.map((token) => Number(token.dataset.index))")
    rounds = speculative.tokens["round"].tolist()
    assert firsts == [i for i in range(1, TOKENS) if rounds[i] != rounds[i - 1]]


def test_the_chart_has_a_table_with_the_same_numbers(look, capsules, tree):
    page = look(capsules.tree)
    assert page.locator(".wb-table table").count() == 0
    page.get_by_text("Data table").click()
    page.wait_for_selector(".wb-table td")
    row = page.locator(".wb-table tr").nth(4).inner_text().split("\t")
    assert row[0] == "3" and float(row[4]) == pytest.approx(tree.tokens["entropy_raw_nats"][3], abs=1e-3)
    assert tracks(page) == ["entropy", "drafts", "cache", "bits"]
    names = page.locator(".wb-gutter b").all_inner_texts()
    assert [name.strip() for name in names] == ["Entropy", "Drafts", "KV cache", "Bits / element"]
    image = page.locator(".wb-plot > svg[role=img]")
    assert image.get_attribute("aria-label").startswith("Entropy, Drafts, KV cache, Bits / element over the tokens")
    assert page.locator(".wb-table caption").inner_text() == "tokens 0 to 23 of 24"


def test_the_gutter_says_what_the_trace_holds(look, capsules, tree):
    """The value at the cursor, large; the run's figure, quiet."""
    page, tokens, rounds = look(capsules.tree), tree.tokens, tree.rounds
    for _ in range(5):
        page.keyboard.press("ArrowRight")
    row = rounds[rounds["round"] == tokens["round"][5]].iloc[0]
    assert value(page, "entropy") == f"{tokens['entropy_raw_nats'][5]:.2f} nats"
    assert value(page, "drafts") == f"{row['accepted']:.0f} of {row['drafted']:.0f}"
    assert value(page, "bits") == f"{row['bits_per_element']:.1f}"
    target = tree.cache.query(f"model == 'target' and round == {row['round']}")
    size = (target["bytes"] - target["pad"] - target["staging"]).sum()
    assert value(page, "cache") == headline.size(size)
    quiet = page.inner_text(".wb-gutter [data-track=drafts]")
    fates = tree.drafts["fate"].value_counts()
    rate = rounds["accepted"].sum() / (rounds["drafted"].sum() - fates.get("after_end", 0))
    assert f"{rate:.0%}".replace("%", " %") in quiet
    assert f"mean {tokens['entropy_raw_nats'].mean():.2f}" in page.inner_text(".wb-gutter [data-track=entropy]")


def test_tracks_are_opened_and_closed(look, capsules):
    page = look(capsules.tree)
    page.get_by_text("+ tracks").click()
    time = page.get_by_role("checkbox", name="Time")
    time.focus()
    page.keyboard.press(" ")
    assert "time" in tracks(page) and time.is_checked()
    assert time.evaluate("one => one === document.activeElement")
    page.get_by_role("checkbox", name="Drafts", exact=True).uncheck()
    assert tracks(page) == ["entropy", "cache", "bits", "time"]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_needs_no_sideways_scrolling(look, capsules, scheme):
    page = look(capsules.long, "phone", color_scheme=scheme)
    page.get_by_text("Data table").click()
    assert sideways(page) == 0
    text, ground = page.evaluate(
        "(s => [s.color, s.backgroundColor])(getComputedStyle(document.querySelector('.wb-view')))"
    )
    light = [sum(map(int, colour[4:-1].split(", "))) for colour in (text, ground)]
    assert (light[0] > 600 and light[1] < 150) if scheme == "dark" else (light[0] < 150 and light[1] > 600)
    names = page.locator(".wb-gutter b")
    assert names.first.is_visible() and value(page, "entropy") != "–"  # over the curves, where there is no room beside


@pytest.mark.parametrize(
    ("page_says", "scheme"),
    [
        ({"class": "dark"}, "dark"),
        ({"data-jp-theme-light": "false"}, "dark"),
        ({"data-jp-theme-light": "true"}, "light"),
    ],
    ids=["gradio dark", "jupyter dark", "jupyter light"],
)
def test_the_page_decides_between_light_and_dark(chromium, tree, page_says, scheme):
    """Gradio's and Jupyter's own choice wins over that of the system, which is the other one here."""
    other = {"dark": "light", "light": "dark"}[scheme]
    page = mount(chromium, web.payload(tree), scheme=other)
    seen = page.evaluate(
        """says => {
          const now = () => getComputedStyle(document.querySelector('.wb-view')).color;
          const system = now();
          for (const [name, value] of Object.entries(says)) document.body.setAttribute(name, value);
          return [system, now()];
        }""",
        page_says,
    )
    close(page)
    ink = {name: f"rgb({', '.join(str(int(hue[k : k + 2], 16)) for k in (1, 3, 5))})"
           for name, hue in zip(("light", "dark"), HUES["ink"], strict=True)}  # fmt: skip
    assert seen == [ink[other], ink[scheme]]


def test_hostile_texts_are_text(look, hostile, tmp_path):
    page = look(hostile.capsule(tmp_path / "hostile.html"))
    assert page.evaluate("window.broken") is None and page.locator("img").count() == 0
    assert "<script>window.broken=1</script>" in page.locator(TOKEN).first.inner_text()
    page.get_by_text("Data table").click()
    assert page.evaluate("window.broken") is None and sideways(page) == 0


def test_a_script_put_into_the_page_does_not_run(chromium, tree, tmp_path):
    """The policy holds: what was not there when the page was written is refused."""
    page_text = tree.capsule(tmp_path / "run.html").read_text(encoding="utf-8")
    (tmp_path / "run.html").write_text(page_text.replace("</main>", "</main><script>window.broken=1</script>"))
    page = open_file(chromium, tmp_path / "run.html")
    page.wait_for_selector(TOKEN)
    assert page.evaluate("window.broken") is None and page.seen.errors  # the policy says so
    page.context.close()


@pytest.mark.parametrize("tokens", [0, 1])
def test_short_runs_are_drawn(look, lm, tokens, tmp_path):
    trace = wb.decode(lm, "def f", max_new_tokens=1, level="off")
    trace = wb.Trace(trace.log[:1]) if tokens == 0 else trace
    page = look(trace.capsule(tmp_path / "run.html"))
    assert page.locator(TOKEN).count() == tokens
    page.locator(".wb-play").click(force=True)
    for key in ("ArrowRight", "ArrowLeft", "1", "ArrowRight", "ArrowRight", "ArrowLeft", "3", "ArrowRight", "z", "End"):
        page.keyboard.press(key)
    assert page.inner_text(".wb-place").startswith("no tokens yet" if tokens == 0 else "token 0 of 1")
    assert (at(page) is None) == (tokens == 0)


def test_a_view_that_is_taken_away_leaves_nothing(chromium, tree):
    page = mount(chromium, web.payload(tree))
    page.evaluate("view.destroy()")
    assert page.evaluate("document.getElementById('place').childElementCount") == 0
    page.keyboard.press("ArrowRight")
    close(page)


def test_the_view_asks_for_all_where_rounds_are_missing(chromium, tree):
    page, rounds = mount(chromium, web.payload(tree)), len(tree.rounds)
    assert page.evaluate("data => view.update(data)", web.payload(tree, rounds - 2)) is True
    assert page.locator(TOKEN).count() == len(tree.tokens)
    late = {**web.payload(tree, rounds - 1), "since": rounds + 5}
    assert page.evaluate("data => view.update(data)", late) is False
    assert page.evaluate("data => view.update(data)", {**web.payload(tree, 1), "id": HOSTILE}) is False
    close(page)
