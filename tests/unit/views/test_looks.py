"""Light and dark pages: contrast of every colour, transparent grounds; words and tables beside every figure."""

import inspect
import re

import plotly.graph_objects as go
import pytest

from tests import table
from workbench import views
from workbench.errors import BadInput
from workbench.views.palette import PAGES, PALETTE, colours, scale

FIGURES = [name for name in table.VIEWS if name != "headroom"]  # it draws what few traces hold
BROWSER_DARK = "#111111"  # JupyterLab's dark page


def luminance(color: str) -> float:
    parts = [int(color[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    red, green, blue = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one: str, other: str) -> float:
    """WCAG 2: (lighter + 0.05) / (darker + 0.05)."""
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def test_contrast_is_that_of_wcag():
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    assert contrast("#e69f00", "#ffffff") < 3  # the plain Okabe-Ito orange would fail


@pytest.mark.parametrize("page", [PAGES["light"]["page"], PAGES["dark"]["page"], BROWSER_DARK])
def test_every_colour_reads_on_light_and_dark_pages(page):
    drawn = {color for group in PALETTE.values() for color in group.values()}
    drawn |= set(colours("kind", [f"kind {n}" for n in range(9)]).values())
    assert {color: round(contrast(color, page), 2) for color in drawn if contrast(color, page) < 3} == {}


def test_text_reads_on_its_page_and_without_a_theme_on_both():
    for theme in ("light", "dark"):
        assert contrast(PAGES[theme]["text"], PAGES[theme]["page"]) >= 7
        assert contrast(PAGES[None]["text"], PAGES[theme]["page"]) >= 4


def over(page: str, shade: str) -> str:
    """A shade `rgba(…)` as it looks on a page."""
    *parts, alpha = map(float, re.findall(r"[\d.]+", shade))
    under = [int(page[place : place + 2], 16) for place in (1, 3, 5)]
    return "#" + "".join(f"{round(alpha * a + (1 - alpha) * b):02x}" for a, b in zip(parts, under, strict=True))


@pytest.mark.parametrize("page", [PAGES["light"]["page"], PAGES["dark"]["page"], BROWSER_DARK])
@pytest.mark.parametrize("color", [PALETTE["signal"]["bits"], PALETTE["slot"]["kept"]])
def test_more_of_a_scale_is_further_from_the_page(color, page):
    steps = [contrast(over(page, shade), page) for shade in scale(color)]
    assert steps == sorted(steps) and steps[0] > 1.25 and steps[-1] > 3


@pytest.mark.parametrize("theme", ["light", "dark", None])
@pytest.mark.parametrize("name", FIGURES)
def test_every_view_takes_a_theme_and_lets_the_page_through(made_up, name, theme):
    figure = table.VIEWS[name](made_up.record([(4, 2), (4, 4)]).trace, theme=theme)
    layout = figure.layout.template.layout
    assert layout.paper_bgcolor == layout.plot_bgcolor == "rgba(0,0,0,0)"
    assert figure.layout.paper_bgcolor is None and layout.font.color == PAGES[theme]["text"]


@pytest.mark.parametrize("name", FIGURES)
def test_every_figure_has_a_sentence_and_a_table_of_its_data(made_up, name):
    figure = table.VIEWS[name](made_up.record([(4, 2), (0, 0), (4, 4)]).trace)
    assert len(views.description(figure)) > 20 and "\n" not in views.description(figure)
    data = views.as_table(figure)
    assert len(data) > 0 and set(data["series"]) <= {trace.name for trace in figure.data}
    titles = {figure.layout[axis].title.text for axis in figure.layout.to_plotly_json() if axis.startswith("yaxis")}
    assert titles & {column for column in data.columns}
    assert inspect.signature(getattr(views, name)).parameters["theme"].default is None


def test_a_table_is_in_plain_text_and_leaves_out_decoration():
    bars = go.Bar(x=["a &lt; b", "c"], y=[1, 2], name="x &amp; y", customdata=[["&#36;1"], ["2"]], meta=["price"])
    lines = go.Scatter(x=[1, None], y=[1, None], name="line", hoverinfo="skip")
    axes = {"xaxis": {"title": {"text": "name"}}, "yaxis": {"title": {"text": "count"}}}
    table = views.as_table(go.Figure([bars, lines], axes))
    assert table.to_dict("list") == {
        "series": ["x & y"] * 2,
        "name": ["a < b", "c"],
        "count": [1, 2],
        "price": ["$1", "2"],
    }


def test_another_theme_is_refused(made_up):
    with pytest.raises(BadInput, match='expected "light", "dark" or None'):
        views.entropy(made_up.record([(0, 0)]).trace, theme="sepia")
