"""Execute the tutorial notebooks and write them back in a normal form, ready to commit.

    python tests/normalise_notebooks.py [notebooks/01-first-steps.ipynb ...]

Kept: sources, execution counts, text, HTML, image and Plotly outputs. Dropped: timing, widget state, Plotly's uids and
revisions. What a cell printed is one output, however many messages it came in.
"""

import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient

NOTEBOOKS = Path(__file__).parent.parent / "notebooks"


def normalise(notebook: nbformat.NotebookNode) -> None:
    """Remove from an executed notebook what differs from run to run, in place."""
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    for number, cell in enumerate(notebook.cells):
        cell["id"] = f"cell-{number:02d}"
        cell["metadata"] = {}
        if cell.cell_type == "code":
            cell.outputs = joined(cell.outputs)
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            data.pop("application/vnd.jupyter.widget-view+json", None)
            plot = data.get("application/vnd.plotly.v1+json", {})
            plot.get("layout", {}).pop("uirevision", None)  # it names the runs, whose names are drawn
            for trace in plot.get("data", []):
                trace.pop("uid", None)
            output.pop("metadata", None)
            if output.output_type in ("display_data", "execute_result"):
                output["metadata"] = {}


def joined(outputs: list[nbformat.NotebookNode]) -> list[nbformat.NotebookNode]:
    """The outputs, neighbouring parts of one stream put together."""
    found: list[nbformat.NotebookNode] = []
    for output in outputs:
        if found and output.output_type == "stream" and found[-1].get("name") == output.name:
            found[-1].text += output.text
        else:
            found.append(output)
    return found


def main(paths: list[str]) -> None:
    for path in map(Path, paths or sorted(NOTEBOOKS.glob("*.ipynb"))):
        notebook = nbformat.read(path, as_version=4)
        NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(path.parent)}}).execute()
        normalise(notebook)
        nbformat.validate(notebook)
        nbformat.write(notebook, path)
        print(f"{path.name}: {len(notebook.cells)} cells, {path.stat().st_size // 1000} kB")


if __name__ == "__main__":
    main(sys.argv[1:])
