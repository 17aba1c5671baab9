"""Every figure as Plotly draws it in a browser, and its static drawing: nothing is cut, no legend under the buttons."""

import json
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests import table
from workbench.views.static import svg

pytestmark = pytest.mark.browser
FIGURES = [name for name in table.VIEWS if name != "headroom"]  # it draws what few traces hold
PLOTLY = Path(find_spec("plotly").origin).parent / "package_data" / "plotly.min.js"
BOXES = """async ([figure, width, drawing]) => {
  document.body.innerHTML = `<div id="plot" style="width:${width}px"></div><div id="drawn">${drawing}</div>`;
  const plot = document.getElementById("plot");
  await Plotly.newPlot(plot, figure.data, figure.layout, {displayModeBar: true});
  const box = (element) => { const b = element.getBoundingClientRect(); return [b.left, b.top, b.right, b.bottom]; };
  const named = (element) => [element.textContent, box(element)];
  return {
    plot: box(plot.querySelector(".main-svg")), buttons: box(plot.querySelector(".modebar")),
    legend: [...plot.querySelectorAll(".legend")].map(box),
    texts: [...plot.querySelectorAll(".infolayer [class*=title] text, .xtick text, .legendtext")].map(named),
    drawn: box(document.querySelector("#drawn > svg")), words: [...document.querySelectorAll("#drawn text")].map(named),
  };
}"""


@pytest.fixture(scope="module")
def page(chromium):
    page = chromium.new_page(viewport={"width": 1000, "height": 1200})
    page.add_script_tag(path=str(PLOTLY))
    yield page
    page.close()


def outside(box: list[float], words: list) -> list[str]:
    left, top, right, bottom = box
    return [text for text, (a, b, c, d) in words if a < left - 1 or b < top - 1 or c > right + 1 or d > bottom + 1]


@pytest.mark.parametrize("width", [760, 380])
@pytest.mark.parametrize("name", FIGURES)
def test_titles_are_whole_and_the_legend_is_not_under_the_buttons(page, made_up, name, width):
    figure = table.VIEWS[name](made_up.record([(4, 2), (0, 0), (4, 4)]).trace)
    seen = page.evaluate(BOXES, [json.loads(figure.to_json()), width, svg(figure)])
    assert outside(seen["plot"], seen["texts"]) == [] and outside(seen["drawn"], seen["words"]) == []
    titles = {figure.layout[axis].title.text for axis in figure.layout.to_plotly_json() if axis[1:5] == "axis"}
    assert titles <= {text for text, _ in seen["texts"]} and titles <= {text for text, _ in seen["words"]}
    for left, top, right, bottom in seen["legend"]:
        a, b, c, d = seen["buttons"]
        assert right <= a or c <= left or bottom <= b or d <= top
