"""A figure in a saved notebook: also drawn and said, so that it is seen where no script runs."""

import base64
import re

from nbclient import NotebookClient
from nbconvert import HTMLExporter
from nbformat.v4 import new_code_cell, new_notebook

from tests.notebooks.test_normalise import FIGURE

CELL = """
import plotly.graph_objects as go
from workbench.views.figure import figure
axes = {"xaxis": {"title": "tokens drafted"}, "yaxis": {"title": "share"}}
figure("made-up", "run", [go.Scatter(x=[1, 2], y=[0.5, 1], mode="lines", name="accepted")], "Half, then all.", **axes)
"""


def test_a_saved_figure_is_in_the_notebook_and_in_its_html():
    notebook = new_notebook(cells=[new_code_cell(CELL)])
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    NotebookClient(notebook, timeout=120).execute()
    (output,) = notebook.cells[0].outputs
    assert set(output.data) == {FIGURE, "image/svg+xml", "text/plain"}
    assert output.data["text/plain"] == "Figure: Half, then all." and output.data[FIGURE]["config"]
    page, _ = HTMLExporter().from_notebook_node(notebook)
    images = re.findall(r'<img [^>]*src="data:image/svg\+xml;base64,([^"]+)"', page)
    (drawn,) = [text for image in images if "tokens drafted" in (text := base64.b64decode(image).decode())]
    assert drawn == output.data["image/svg+xml"]
