"""The form without a browser: controls from declarations, presets, the run as Python, inert text, events."""

import json
import re

import gradio as gr
import pytest

import workbench as wb
from tests.app.test_transport import refused
from tests.app.visitor import PROMPT, Visitor
from workbench import declare, web
from workbench.dashboard import python
from workbench.dashboard.controls import _nests
from workbench.dashboard.figures import FIGURES
from workbench.dashboard.form import GATHER
from workbench.dashboard.presets import presets
from workbench.dashboard.visits import VISITS
from workbench.trace.slots import OPS


def test_every_declared_parameter_has_a_control_with_its_help(app):
    infos = {getattr(block, "info", None) or "" for block in app.blocks.values()}
    for family in ("decoder", "drafter", "shape", "policy", "quantizer"):
        for name in declare.names(family):
            for entry in declare.describe(declare.get(family, name)):
                assert any(info.startswith(entry.help) for info in infos), (family, name, entry.name)


def test_a_member_made_of_its_own_family_is_not_offered_within_itself(app):
    """Such a drafter once made the app build controls without end."""
    nesting = [name for name in declare.names("drafter") if _nests("drafter", name)]
    drafters = [
        {value for _, value in block.choices}
        for block in app.blocks.values()
        if ("copyspec", "copyspec") in (getattr(block, "choices", None) or ())
    ]
    assert set(declare.names("drafter")) in drafters
    for name in nesting:
        assert sum(name in offered for offered in drafters) < len(drafters)


def evaluated(code: str) -> wb.Trace:
    space: dict = {}
    exec(code, space)
    return space["trace"]


@pytest.mark.parametrize("name", list(presets()))
def test_a_preset_fills_the_form_and_copies_as_python(visitor, name):
    """What the form asks for, the call that is copied, and the run of the app give one text."""
    chosen = presets()[name]
    visitor.fire("preset", {"name": name})
    assert chosen.look in visitor.view["line"] and visitor.get("prompt") == chosen.prompt
    visitor.set("max new tokens", 10)
    visitor.fire("start")
    run = VISITS[visitor.name].branch.run
    assert run.decoder == chosen.decoder and run.settings.cache == chosen.cache
    if name == "long context":
        return  # reading it takes seconds; the next test evaluates a call with a cache
    visitor.fire("run", {})
    visitor.watch()
    visitor.fire("copy")
    trace = evaluated(visitor.get("code"))
    assert trace.text == visitor.text != ""
    if name == "copy-heavy edit":
        assert evaluated(python.of_session(run)).text == visitor.text


def test_a_branch_copies_as_python_too(visitor):
    visitor.start(tokens=10).step().step().step()
    visitor.set("temperature", 0.9)
    visitor.set("top k", 20)
    visitor.fire("resettle", {})
    visitor.fire("run", {})
    visitor.watch()
    visitor.fire("fork", {"index": 5, "text": " if"})
    visitor.fire("run", {})
    visitor.watch()
    trace = evaluated(visitor.get("code"))
    assert trace.text == visitor.text and trace.tokens["text"][5] == " if"


def test_the_form_takes_a_cache_stack(visitor):
    visitor.set("cache policy", "h2o")
    policy = VISITS[visitor.name].form.families[1]  # other policies and the draft's cache have such a field too
    controls = dict(zip(policy.paths, policy.components, strict=True))
    visitor.shown[controls["policy", "h2o", "budget"]._id] = 64
    visitor.set("cache quantizer", "kivi")
    visitor.shown[VISITS[visitor.name].form.stack["requantize"]._id] = "never"
    visitor.start(tokens=64)
    visitor.fire("run", {})
    visitor.watch()
    stack = VISITS[visitor.name].branch.run.settings.cache
    assert stack.policy.budget == 64 and stack.quantizer.declared_name == "kivi"
    assert stack.during_prompt and stack.requantize == "never"
    slots = web.payload(VISITS[visitor.name].branch.run.trace)["slots"]
    narrowed = {round for round, op in zip(slots["round"], slots["op"], strict=True) if OPS[op] == "width"}
    assert narrowed == {56}  # the round of token 55 brings the committed length to 64, a boundary
    visitor.fire("copy")
    assert evaluated(visitor.get("code")).text == visitor.text


def test_the_form_takes_a_constraint(visitor):
    """And a grammar that is none, or that never ends to compile, is a line; the page goes on."""

    def asks(family: str, field: str, value: str) -> None:
        controls = dict(zip(constraint.paths, constraint.components, strict=True))
        visitor.shown[controls["constraint", family, field]._id] = value
        visitor.set("constraint", family)

    constraint = VISITS[visitor.name].form.families[-1]
    for pattern, why in (("(", "unclosed group"), ("a?" * 20_000, "took more than 1 s"), ("", "1 to 65536 bytes")):
        asks("regex", "pattern", pattern)
        assert why in refused(visitor, "start") and len(visitor.status) < 500
    asks("grammar", "lark", 'start: A\nA: /[1-9]+/ "\\n"')
    visitor.start(tokens=9, decoder="speculative", prompt="x = ")
    visitor.fire("run", {})
    visitor.watch()
    assert re.fullmatch(r"[1-9]+\n?", visitor.text.removesuffix("<|endoftext|>")), visitor.text
    assert "greedy · grammar" in [chip["run"] for chip in json.loads(visitor.get("setup"))["chips"]]
    visitor.fire("copy")
    assert evaluated(visitor.get("code")).text == visitor.text


def test_every_figure_has_words_and_a_table(visitor):
    visitor.set("level", "full")
    visitor.start(tokens=6, decoder="speculative").fire("run", {})
    visitor.watch()
    found = visitor.fire("figures")
    for place, title in enumerate(FIGURES):
        about, plot = found[2 * place : 2 * place + 2]
        assert f"<h3>{title}</h3>" in about and about.count("<details") == 1 and "<th" in about, title
        drawn = json.loads(plot["value"]["plot"])["data"]
        assert plot["visible"] and (drawn or title == "break-even"), title  # that one lacks a plain run
    visitor.fire("forget")
    assert sum(not part["visible"] for part in visitor.fire("figures")[1::2]) == len(FIGURES)


def test_text_of_model_and_prompt_is_inert(visitor):
    hostile = "</script><img src=x onerror=alert(1)> {{7*7}} ${7*7} `x`"
    visitor.start(tokens=2, prompt=hostile).step()
    visitor.fire("fork", {"index": 0, "text": "<"})
    assert visitor.view["prompt"] == hostile  # set as text, never as markup
    assert "<" not in visitor.get("view")
    visitor.set("left", 0)
    visitor.set("right", 1)
    for html in (*visitor.fire("beside"), visitor.get("setup"), visitor.get("status")):
        assert "<img" not in str(html) and "</script" not in str(html)
    from workbench.dashboard.html import inert, shown

    for safe in (inert(hostile), shown(hostile)):
        assert not set("<>{}$`") & set(safe)


def test_other_models_may_be_named_on_this_machine_only():
    import gradio as gr

    from workbench.dashboard import build_app

    closed = Visitor(build_app(anything=False), "closed")
    for info in ("", "the draft model"):
        number = closed.find("model", info)
        before, closed.shown[number] = closed.shown[number], "somebody/something"
        with pytest.raises(gr.Error, match="not in the list of choices"):
            closed.start(decoder="speculative")
        closed.shown[number] = before


def test_every_event_of_the_app_is_private_and_named(app):
    known = {"start", "go", "step", "run", "pause", "tick", "pick", "lost", "figures", "choose", "forget", "edited"}
    known |= {"fork", "resettle", "beside", "add", "compare", "stop", "beat", "open", "copy", "save", "capsule"}
    assert known | {"perfetto", "csv", "json", "preset", "loaded"} <= {fn.api_name for fn in app.fns.values()}
    assert all(fn.api_visibility == "private" for fn in app.fns.values() if fn.api_name != "closed")


def test_no_event_of_the_server_takes_the_controls_of_the_form_one_by_one(app, visitor):
    """Gradio's page spends time with every event on each control that was an input or output of any: the form goes as
    one text, which the browser makes."""
    parts = [len(fn.inputs) + len(fn.outputs) for fn in app.fns.values() if fn.fn is not None]
    assert len(parts) > 60 and max(parts) < 32
    gathered = [fn for fn in app.fns.values() if fn.fn is None and len(fn.inputs) > 500]
    assert {fn.js for fn in gathered} == {VISITS[visitor.name].form.script(GATHER)}
    assert len({tuple(fn.inputs) for fn in gathered}) == 1


@pytest.mark.parametrize(
    "text", ["", "[]", "{", "3", '{"values": []}', '{"values": {}}', "[" * 9000, '{"values": [NaN]}', '{"values": "x"}']
)
def test_what_is_no_form_is_refused_in_one_line(visitor, text):
    visitor._gather = lambda told: visitor.set("filled", text)
    assert "a value that does not fit its control" in refused(visitor, "start")
    assert refused(visitor, "go") and VISITS[visitor.name].branches == []


def test_the_view_is_one_module_that_fetches_nothing():
    from workbench.dashboard.screen import module

    code = module()
    assert code.count("export ") == 1 and code.endswith("export { connect, beside };\n")
    assert not re.search(r"^import|\bimport\(", code, re.MULTILINE) and "function mount(" in code
    assert "innerHTML" not in code and "http" not in code


def test_a_plain_form_is_a_short_call():
    code = python.call("embedded", PROMPT, None, {"temperature": 0.0, "max_new_tokens": 5, "cache": None})
    assert code.count("=") == 4 and "max_new_tokens=5" in code


def test_an_optional_number_is_off_where_its_field_is_empty(visitor):
    """These fields are texts: a field for numbers, once drawn, sends 0 for nothing."""
    for text, value in (("", None), (" 40 ", 40)):
        visitor.set("top k", text)
        visitor.fire("start")
        assert VISITS[visitor.name].branch.run.settings.sampling.top_k == value
    visitor.set("top k", "1e3")
    with pytest.raises(gr.Error, match="top_k: expected an integer of at least 1, got"):
        visitor.fire("start")


def kept(visitor) -> str:
    """The form as the browser keeps it."""
    form = VISITS[visitor.name].form
    return json.dumps({"key": form.key, "values": [visitor.shown[one._id] for one in form.components]})


def limits(visitor) -> str:
    return {chip["group"]: chip["text"] for chip in json.loads(visitor.get("setup"))["chips"]}["Limits"]


def test_a_form_that_the_browser_kept_comes_back_and_can_be_reset_or_taken_from_the_run(app, visitor):
    visitor.set("max new tokens", 33)
    again = Visitor(app, "again", empty=False, kept=kept(visitor))
    assert again.get("max new tokens") == 33 and limits(again).startswith("33 tokens")
    again.fire("reset")
    assert again.get("max new tokens") == 96 and limits(again).startswith("96 tokens")
    visitor.set("temperature", 0.5)
    visitor.start(tokens=7, decoder="speculative")
    visitor.fire("reset")
    visitor.fire("adopt")
    assert visitor.get("max new tokens") == 7 and visitor.get("temperature") == 0.5
    chips = json.loads(visitor.get("setup"))["chips"]
    assert all(chip["text"] == chip["run"] for chip in chips)


@pytest.mark.parametrize("change", [{"key": "another"}, {"values": [1]}, {"values": None}])
def test_what_was_kept_of_another_form_is_left(app, visitor, change):
    text = json.dumps(json.loads(kept(visitor)) | change)
    assert limits(Visitor(app, "again", empty=False, kept=text)).startswith("96 tokens")


def test_an_opened_run_as_python_gives_its_text_again(visitor):
    visitor.fire("preset", {"name": "cache cliff"})
    assert "force={" in visitor.get("code")  # it went on from another run
    assert evaluated(visitor.get("code")).text == visitor.text


def test_what_does_not_fit_the_rest_of_the_form_is_named_and_why(visitor):
    def refused() -> dict[str, dict[str, str]]:
        visitor.fire("edited")
        return json.loads(visitor.get("setup"))["refused"]

    visitor.fire("preset", {"name": "cache cliff"})  # drafts end where the draft model is not sure
    found = json.loads(visitor.get("setup"))["refused"]
    assert {"copyspec", "suffix"} <= found["choose-decoder-speculative-drafter"].keys()
    assert found["choose-decoder-speculative-shape"].keys() == {"del"}
    assert "exit layers" in found["choose-decoder-speculative-shape"]["del"]
    assert not any("cache" in place for place in found)  # a stack of nothing is not complete, and stays
    visitor.set("decoder", "autoregressive")
    assert refused() == {}
