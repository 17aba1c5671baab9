"""The trace as an object: text, replay, display; the schema page; the package's independence of torch."""

import ast
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

import workbench
from workbench.trace import Recorder, Step, Trace
from workbench.trace.schema import EVENTS, TABLES, markdown


def test_the_texts_of_the_tokens_join_to_the_text(made_up):
    trace = made_up.record([(4, 2), (4, 4)]).trace
    assert "".join(trace.tokens["text"]) == trace.text != ""
    assert trace.tokens["token_id"].tolist() == trace.token_ids


def test_steps_replay_the_rounds_with_full_columns(made_up):
    """Replay needs no model: a recorder fed with the steps of a trace writes the same rounds again."""
    recorder = made_up.record([(4, 2), (0, 0), (4, 4)])
    again = Recorder(made_up.run_event())
    for event in recorder.trace.steps():
        n = len(event["tokens"].get("token_id", ()))
        assert all(len(column) == n for column in event["tokens"].values())
        names = ("mode", "drafts", "forwards", "bits", "drafted", "accepted", "emitted", "depth", "context")
        step = Step(
            **{name: event[name] for name in names}, tokens={k: v for k, v in event["tokens"].items() if k != "text"}
        )
        step.bonus, step.budget, step.ms = event.get("bonus", False), event.get("budget"), event["ms"]
        step.cache = event["cache"]
        again.round(replace(step, texts=event["tokens"].get("text", [])))
    for event in (*again, *recorder):  # what logging cost is measured anew
        event.get("ms", {}).pop("recording", None)
    assert list(again)[1:] == list(recorder)[1:]


def test_the_display_is_short_inert_and_the_same_every_time(made_up):
    recorder = Recorder(made_up.run_event(id="random", prompt_text="<script>alert(1)</script>"))
    recorder.round(Step("plain", tokens={"token_id": [1], "source": ["target"]}, emitted=1, texts=["<img onerror=x>"]))
    recorder.end("eos")
    bundle = recorder.trace._repr_mimebundle_()
    assert bundle["text/plain"] == repr(recorder.trace) == "Trace(speculative, 1 tokens in 1 rounds, ended: eos)"
    tags = []
    parser = HTMLParser()
    parser.handle_starttag = lambda tag, attributes: tags.append(tag)
    parser.feed(bundle["text/html"])
    assert set(tags) == {"div", "b", "pre", "span"}
    assert "random" not in bundle["text/html"]


def test_the_schema_page_names_every_column_once_with_its_unit():
    page = markdown()
    for name, columns in {**EVENTS, **TABLES}.items():
        assert f"### {name}\n" in page
        for column in columns:
            assert f"| `{column.name}` |" in page and column.description, column.name
        assert len({column.name for column in columns}) == len(columns), name
    assert "| `entropy_raw_nats` | float, may be missing | nats |" in page


@pytest.mark.parametrize("package", ["trace", "views"])
def test_no_model_or_front_end_library_is_imported(package):
    allowed = {"workbench.trace", "workbench.errors", "workbench.views", "workbench.aliases", "workbench.members"}
    for path in (Path(workbench.__file__).parent / package).glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) else []
            for name in names:
                assert name.split(".")[0] not in ("torch", "transformers", "gradio", "ipywidgets", "anywidget"), path
                assert not name.startswith("workbench.") or ".".join(name.split(".")[:2]) in allowed, (path, name)


def test_trace_is_built_from_a_log_alone():
    trace = Trace([{"type": "run", "schema": 1}])
    assert repr(trace) == "Trace(unnamed decoder, 0 tokens in 0 rounds, not ended)"
