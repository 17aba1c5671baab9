"""The comparison of notebooks: it must fail where the text differs, and only there."""

import os
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import nbformat
from nbformat.v4 import new_code_cell, new_notebook, new_output

ROOT = Path(__file__).parents[2]
TABLE = "from IPython.display import HTML; HTML('<b>now</b>')"
FIGURE = """from IPython.display import display
display({"text/plain": "Figure: took 2 ms.", "image/svg+xml": "<svg>2</svg>"}, raw=True)"""


def printed(text: str) -> list:
    return [new_output("stream", name="stdout", text=text)]


CELLS = {
    "same text": (new_code_cell("print(1 + 1)", execution_count=1, outputs=printed("2\n")), True),
    "other text": (new_code_cell("print(1 + 1)", execution_count=2, outputs=printed("3\n")), False),
    "other drawing": (
        new_code_cell(
            TABLE,
            execution_count=3,
            outputs=[
                new_output(
                    "execute_result",
                    {"text/plain": "<IPython.core.display.HTML object>", "text/html": "<b>then</b>"},
                    execution_count=3,
                )
            ],
        ),
        True,
    ),
    "other figure": (
        new_code_cell(
            FIGURE,
            execution_count=4,
            outputs=[new_output("display_data", {"text/plain": "Figure: took 1 ms.", "image/svg+xml": "<svg>1</svg>"})],
        ),
        True,
    ),
    "an error": (new_code_cell("1 / 0", execution_count=5), False),
}


def test_text_is_compared_and_drawings_are_not(tmp_path):
    notebook = new_notebook(cells=[cell for cell, _ in CELLS.values()])
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    path, report = tmp_path / "made-up.ipynb", tmp_path / "report.xml"
    nbformat.write(notebook, path)
    command = [sys.executable, "-m", "pytest", "-p", "conftest", "-c", str(ROOT / "pyproject.toml")]
    done = subprocess.run(
        [*command, "--rootdir", str(tmp_path), "-p", "no:cacheprovider", f"--junitxml={report}", str(path)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert report.exists(), done.stdout + done.stderr
    passed = [case.find("failure") is None for case in ElementTree.parse(report).iter("testcase")]
    assert passed == [expected for _, expected in CELLS.values()], done.stdout
