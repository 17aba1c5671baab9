"""The normal form of notebooks: what differs from run to run is gone, what a reader sees stays."""

from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from tests.normalise_notebooks import normalise

FIGURE = "application/vnd.plotly.v1+json"
WIDGET = "application/vnd.jupyter.widget-view+json"


def test_messages_of_one_stream_are_one_output():
    """A kernel cuts what is printed into messages as time has it; the committed file must not depend on that."""
    outputs = [new_output("stream", name="stdout", text=text) for text in ("a\n", "b\n")]
    outputs += [new_output("display_data", {"text/plain": "drawn"}), new_output("stream", name="stdout", text="c\n")]
    notebook = new_notebook(cells=[new_markdown_cell("text"), new_code_cell("…", outputs=outputs)])
    normalise(notebook)
    assert [output.get("text") for output in notebook.cells[1].outputs] == ["a\nb\n", None, "c\n"]


def test_run_to_run_noise_is_dropped_and_data_is_kept():
    data = {FIGURE: {"data": [{"uid": "4f1c", "y": [1, 2]}]}, WIDGET: {"model_id": "9a"}, "text/plain": "figure"}
    output = new_output("display_data", data, metadata={"took": 3})
    cell = new_code_cell("…", outputs=[output], metadata={"execution": {"started": "now"}})
    notebook = new_notebook(cells=[cell], metadata={"widgets": {"state": {}}})
    normalise(notebook)
    assert "widgets" not in notebook.metadata and cell.metadata == {} and output.metadata == {}
    assert output.data == {FIGURE: {"data": [{"y": [1, 2]}]}, "text/plain": "figure"}
