"""The static drawing of a figure: what stands where, that it holds text and no code, and that it stays small."""

import base64
import io
import re
from xml.etree import ElementTree

import numpy as np
import plotly.graph_objects as go
import plotly.io as pio
import pytest
from PIL import Image

from tests import table
from workbench import views
from workbench.views.axes import Axis
from workbench.views.figure import CONFIG, Figure, figure, inert
from workbench.views.static import LIMIT, WIDTH, svg

FIGURES = [name for name in table.VIEWS if name != "headroom"]  # it draws what few traces hold
PLOTLY = "application/vnd.plotly.v1+json"
SPACE = "{http://www.w3.org/2000/svg}"
TAGS = {"svg", "path", "rect", "text", "tspan", "image"}


def drawn(traces, **layout) -> ElementTree.Element:
    return ElementTree.fromstring(svg(figure("test", "run", traces, "One sentence.", **layout)))


def texts(root) -> dict[str, ElementTree.Element]:
    return {"".join(found.itertext()): found for found in root.iter(f"{SPACE}text")}


def paths(root, **wanted) -> list[list[tuple[str, list[float]]]]:
    """The commands of every path with such attributes."""
    found = [path for path in root.iter(f"{SPACE}path") if wanted.items() <= path.attrib.items()]
    parts = (re.findall(r"([A-Za-z])([^A-Za-z]*)", path.get("d")) for path in found)
    return [[(c, [float(n) for n in re.findall(r"-?[\d.]+", rest)]) for c, rest in path] for path in parts]


def place(root, label: str, axis: str) -> float:
    return float(texts(root)[label].get(axis))


@pytest.mark.parametrize("theme", ["light", None])
@pytest.mark.parametrize("name", FIGURES)
def test_every_view_is_drawn_with_its_words_and_holds_no_code(made_up, name, theme):
    shown = table.VIEWS[name](made_up.record([(4, 2), (0, 0), (4, 4)]).trace, theme=theme)
    text = svg(shown)
    root = ElementTree.fromstring(text)
    assert len(text.encode()) < LIMIT and root.get("aria-label") == views.description(shown)
    assert {element.tag.removeprefix(SPACE) for element in root.iter()} <= TAGS
    names = {key for element in root.iter() for key in element.attrib}
    assert not names & {"id", "class"} and not any(key.startswith("on") for key in names)
    assert all(element.get("href", "data:image/png;").startswith("data:image/png;") for element in root.iter())
    words, layout = texts(root), shown.layout.to_plotly_json()
    titles = {part["title"]["text"] for key, part in layout.items() if key[1:5] == "axis" and part.get("visible", True)}
    assert titles <= set(words)
    if layout["showlegend"]:
        assert {one.name for one in shown.data if one.showlegend is not False and one.type != "heatmap"} <= set(words)
    assert root.get("fill") == shown.layout.template.layout.font.color


def test_points_of_a_line_stand_on_the_scale_of_the_axes():
    line = go.Scatter(x=[0, 10, 20], y=[0, 1, 4], mode="lines", line={"color": "red"})
    root = drawn([line], xaxis={"title": "across", "range": [0, 20]}, yaxis={"title": "up", "range": [0, 4]})
    (((_, a), (_, b), (_, c)),) = paths(root, stroke="red")
    assert b[0] - a[0] == pytest.approx(c[0] - b[0], abs=0.2)
    assert a[1] - b[1] == pytest.approx((a[1] - c[1]) / 4, abs=0.2) and a[1] > b[1] > c[1]  # up is a smaller number
    assert b[1] == pytest.approx(place(root, "1", "y") - 4, abs=0.2)
    assert b[0] == pytest.approx(place(root, "10", "x"), abs=0.2)


@pytest.mark.parametrize(("shape", "commands"), [("linear", "ML"), ("hv", "MHV"), ("vh", "MVH"), ("hvh", "MHVH")])
def test_lines_take_their_steps_and_stop_at_gaps(shape, commands):
    line = go.Scatter(x=[0, 1, 2, 3, 4], y=[1, 2, None, 3, 5], mode="lines", line={"color": "red", "shape": shape})
    (path,) = paths(drawn([line]), stroke="red")
    assert "".join(command for command, _ in path) == commands * 2


def test_dashes_and_widths_are_kept():
    line = go.Scatter(x=[0, 1], y=[0, 1], mode="lines", line={"color": "red", "dash": "dot", "width": 3})
    (path,) = [path for path in drawn([line]).iter(f"{SPACE}path") if path.get("stroke") == "red"]
    assert path.get("stroke-dasharray") and path.get("stroke-width") == "3"


def test_a_logarithmic_axis_and_one_of_categories_have_equal_steps():
    line = go.Scatter(x=["a", "b", "c"], y=[1, 10, 100], mode="lines", line={"color": "red"})
    root = drawn([line], yaxis={"type": "log"}, xaxis={"type": "category"})
    (((_, a), (_, b), (_, c)),) = paths(root, stroke="red")
    assert a[1] - b[1] == pytest.approx(b[1] - c[1], abs=0.2) and b[0] - a[0] == pytest.approx(c[0] - b[0], abs=0.2)
    assert {"1", "10", "100", "a", "b", "c"} <= set(texts(root))
    assert place(root, "b", "x") == pytest.approx(b[0], abs=0.2)


def test_ticks_are_round_numbers_or_those_asked_for():
    axis = Axis({}, [0, 97])
    axis.fit(axis.numbers([0, 97]), 0)
    axis.pixels = (0, 500)
    assert [label for _, label in axis.ticks(70)] == ["0", "20", "40", "60", "80"]
    axis = Axis({"tickformat": ".0%", "range": [0, 1], "dtick": 0.5}, [])
    axis.fit(np.empty(0), 0)
    axis.pixels = (0, 500)
    assert axis.ticks(70) == [(0, "0%"), (0.5, "50%"), (1, "100%")]


def test_bars_are_grouped_stacked_or_laid_on_a_base():
    def boxes(mode, **more):
        bars = [go.Bar(x=["a", "b"], y=[1, 3], marker={"color": c}, **more) for c in ("red", "blue")]
        root = drawn(bars, barmode=mode, yaxis={"range": [0, 8]})
        both = [[part for part in paths(root, fill=c)[0] if part[0] != "z"] for c in ("red", "blue")]
        return [[(path[n][1][0], path[n][1][1], path[n + 1][1][0], path[n + 2][1][0]) for n in (0, 4)] for path in both]

    (a, b), (c, d) = boxes("group")  # each left, low, right, high
    assert a[2] == pytest.approx(c[0]) and b[0] - a[0] == pytest.approx(d[0] - c[0])
    assert b[1] - b[3] == pytest.approx(3 * (a[1] - a[3]), abs=0.3)
    (a, _), (c, _) = boxes("stack")
    assert a[0] == c[0] and c[1] == pytest.approx(a[3])
    (a, _), _ = boxes("overlay", base=[2, 2])
    assert a[1] - a[3] == pytest.approx((boxes("overlay")[0][0][1] - a[1]) / 2, abs=0.3)


def test_areas_are_stacked():
    heights = {"red": [1, 1], "blue": [2, 4]}
    areas = [go.Scatter(x=[0, 1], y=y, stackgroup="s", line={"color": color}) for color, y in heights.items()]
    root = drawn(areas, yaxis={"range": [0, 5]})
    low, high = (paths(root, stroke=c)[0] for c in ("red", "blue"))
    unit = low[0][1][1] - high[0][1][1]
    assert low[0][1][1] - high[1][1][1] == pytest.approx(2 * unit, abs=0.2)
    assert len(paths(root, fill="blue")[0]) == 5  # there along its top, back along the other's, closed


def image_of(root) -> tuple[np.ndarray, dict]:
    element = next(root.iter(f"{SPACE}image"))
    data = base64.b64decode(element.get("href").partition(",")[2])
    return np.array(Image.open(io.BytesIO(data)).convert("RGBA")), element.attrib


def test_a_map_is_an_image_with_a_pixel_for_each_of_the_page():
    scale = [[0, "#000000"], [1, "rgba(255,0,0,0.5)"]]
    heat = go.Heatmap(x=[0, 1], y=["a", "b"], z=[[0, 1], [None, 1]], zmin=0, zmax=1, colorscale=scale, showscale=False)
    root = drawn([heat], yaxis={"autorange": "reversed", "type": "category"})
    pixels, attributes = image_of(root)
    high, wide = pixels.shape[:2]
    assert (int(attributes["width"]), int(attributes["height"])) == (wide, high)
    corners = [pixels[y, x].tolist() for y in (high // 4, 3 * high // 4) for x in (wide // 4, 3 * wide // 4)]
    assert corners == [[0, 0, 0, 255], [255, 0, 0, 128], [0, 0, 0, 0], [255, 0, 0, 128]]
    assert place(root, "a", "y") < place(root, "b", "y")


def test_cells_have_their_gaps_and_more_cells_than_pixels_are_thinned():
    heat = go.Heatmap(x=[0, 1, 2], y=[0], z=[[1, 1, 1]], zmin=0, zmax=1, colorscale=[[0, "#000000"], [1, "#ffffff"]])
    heat.update(xgap=1, showscale=False)
    pixels, _ = image_of(drawn([heat]))
    assert (pixels[10, :, 3] == 0).sum() == 2
    many = np.arange(4000) % 7
    heat.update(x=np.arange(4000), z=[many], zmax=6, xgap=0)
    pixels, _ = image_of(drawn([heat]))
    assert pixels.shape[1] < WIDTH and (pixels[..., 3] == 255).all()


def test_marks_are_as_many_as_points_and_differ_in_shape():
    symbols = ("circle", "square", "diamond", "x", "star", "circle-open", "triangle-down-open", "line-ew-open")
    found = {}
    for symbol in symbols:
        marks = go.Scatter(x=[1, 2, 3], y=[1, 2, None], mode="markers", marker={"color": "red", "symbol": symbol})
        (path,) = [p for p in drawn([marks]).iter(f"{SPACE}path") if "red" in (p.get("fill"), p.get("stroke"))]
        assert path.get("d").count("M") == 2
        found[symbol] = (re.sub(r"M[\d.]+ [\d.]+", "", path.get("d")), path.get("fill"))
    assert len(set(found.values())) == len(symbols)


def test_notes_lines_and_the_legend_are_drawn():
    lines = [go.Scatter(x=[0, 1], y=[0, 1], mode="lines", name=f"a long name of a line, {n}") for n in range(5)]
    lines.append(go.Scatter(x=[0], y=[0], mode="lines", name="unnamed", showlegend=False))
    shape = {"type": "line", "x0": 0.5, "x1": 0.5, "y0": 0, "y1": 1, "yref": "paper", "line": {"color": "red"}}
    note = {"text": "first<br>second", "x": 0.5, "y": 1, "yref": "paper", "showarrow": False}
    root = drawn(lines, shapes=[shape], annotations=[note])
    (((_, a), (_, b)),) = paths(root, stroke="red")
    assert a[0] == b[0] and float(texts(root)["firstsecond"].get("x")) == a[0]
    rows = {place(root, line.name, "y") for line in lines[:5]}
    assert len(rows) > 1 and max(rows) <= 400 and "unnamed" not in texts(root)


def test_hostile_text_is_text_and_what_xml_cannot_hold_is_replaced():
    evil = '</text><script>alert(1)</script>" onload="x\x00\x1b\ud800 &amp; ]]>'
    marks = go.Scatter(x=[0], y=[0], mode="markers+text", text=[inert(evil)], name=inert(evil))
    root = drawn([marks], xaxis={"title": inert(evil)})
    assert {element.tag.removeprefix(SPACE) for element in root.iter()} <= TAGS
    (shown,) = {text for text in texts(root) if "script" in text}
    assert shown == '</text><script>alert(1)</script>" onload="x��? &amp; ]]>'


def test_a_long_run_stays_within_the_limit_and_is_still_drawn(made_up):
    trace = made_up.record([(n % 5, n % 3 if n % 5 > 2 else 0) for n in range(700)]).trace
    for name in FIGURES:
        text = svg(table.VIEWS[name](trace))
        assert len(text.encode()) <= LIMIT and "too much to draw" not in text, name


def test_what_does_not_fit_says_so():
    many = [go.Scatter(x=[0, 1], y=[n, n + 1], name=f"line {n} " + 40 * "x") for n in range(2000)]
    assert "too much to draw here" in svg(figure("test", "run", many, "Many lines."))


def test_a_notebook_gets_plotlys_data_the_drawing_and_the_sentence(made_up, monkeypatch):
    monkeypatch.setattr(pio.renderers, "default", "plotly_mimetype")
    shown = views.signals(made_up.record([(4, 2)]).trace)
    bundle = shown._repr_mimebundle_()
    assert isinstance(shown, go.Figure) and isinstance(shown, Figure)
    assert bundle["text/plain"] == f"Figure: {views.description(shown)}" and bundle["image/svg+xml"] == svg(shown)
    assert bundle[PLOTLY]["config"] == CONFIG and CONFIG["showSendToCloud"] is CONFIG["displaylogo"] is False
    assert [one["type"] for one in bundle[PLOTLY]["data"]] == [one.type for one in shown.data]


def test_what_only_plotly_draws_is_shown_without_a_drawing(monkeypatch):
    monkeypatch.setattr(pio.renderers, "default", "plotly_mimetype")
    marks = go.Scatter(x=[1, 2], y=[1, 2], mode="markers", marker={"symbol": ["circle", "square"]})
    assert set(figure("test", "run", [marks], "Two marks.")._repr_mimebundle_()) == {"text/plain", PLOTLY}
