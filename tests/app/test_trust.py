"""What visitors of an app may set: the declarations say it, and the server holds them to it."""

import builtins
import dataclasses
import os

import pytest

import workbench as wb
from workbench import declare
from workbench.dashboard.controls import MemberControls, control
from workbench.declare import FAMILIES, describe, get, names, owner_only, register, setting
from workbench.engine.sampling import Sampling
from workbench.errors import BadInput

MEMBERS = [(family, name) for family in FAMILIES for name in names(family)]
OWNERS = [
    (family, name, entry)
    for family, name in MEMBERS
    for entry in describe(get(family, name))
    if entry.trust == "owner" and get(family, name).trust != "owner"  # else nothing of it is free
]


def declared(entry: declare.Field, cls: type) -> dict:
    return next(f.metadata["setting"] for f in dataclasses.fields(cls) if f.name == entry.name)


def test_free_text_says_in_its_declaration_who_may_set_it():
    """Else a path could be added to a method, and every visitor of the app could read the server's files."""
    texts = [(get(*member), entry) for member in MEMBERS for entry in describe(get(*member)) if entry.kind == "str"]
    assert len(texts) > 10
    silent = [f"{cls.__name__}.{entry.name}" for cls, entry in texts
              if not (declared(entry, cls)["trust"] or entry.model)]  # fmt: skip
    assert not silent
    said = {entry.name for _, _, entry in OWNERS}
    assert said == {"model", "small", "weights", "corpus"}


@pytest.fixture
def plug_in():
    """Members of another package: one that forgot to say who may set its text, one that is the owner's altogether."""

    @register("drafter", "forgetful")
    @dataclasses.dataclass(frozen=True)
    class Forgetful(wb.Drafter):
        """Reads a file as soon as it is made."""

        file: str = setting("", help="a file")
        count: int = setting(1, help="a number")

        def __post_init__(self):
            super().__post_init__()
            if self.file:
                open(self.file).close()

    @register("drafter", "runs-code")
    @dataclasses.dataclass(frozen=True)
    class RunsCode(wb.Drafter):
        """Runs what it is told."""

        trust = "owner"
        count: int = setting(1, help="a number")

    yield "forgetful", "runs-code"
    for name in ("forgetful", "runs-code"):
        del declare.registry.KNOWN["drafter"][name]


@pytest.mark.parametrize(("family", "name", "entry"), OWNERS, ids=lambda value: getattr(value, "name", value))
def test_an_owner_s_parameter_is_free_at_its_default_and_among_the_offered_alone(family, name, entry):
    offered = ("mine",)
    assert owner_only(family, name, {}, offered) == []
    assert owner_only(family, name, {entry.name: entry.default}, offered) == []
    assert owner_only(family, name, {entry.name: "mine"}, offered) == ([] if entry.model else [entry.name])
    assert owner_only(family, name, {entry.name: "/etc/passwd"}, offered) == [entry.name]


def test_the_rule_reaches_into_members_and_past_objects(plug_in):
    forgetful, code = plug_in
    assert owner_only("drafter", forgetful, {"file": "/etc/passwd", "count": 3}) == ["file"]
    assert owner_only("drafter", code, {}) == [code]
    deep = {"drafter": "fuse", "drafter.first": "suffix", "drafter.first.corpus": "/etc/passwd"}
    assert owner_only("decoder", "speculative", deep) == ["drafter.first.corpus"]
    made = wb.Speculative(drafter=wb.Fuse(first=wb.DraftModel(model="elsewhere"), second=wb.CopySpec()))
    assert owner_only("decoder", "speculative", declare.flatten(made)) == ["drafter.first.model"]
    assert owner_only("decoder", "speculative", {"drafter": made.drafter}) == ["drafter.first.model"]
    assert owner_only("decoder", "speculative", {"drafter": code}) == [f"drafter.{code}"]


def test_what_a_default_member_has_is_free(plug_in):
    @dataclasses.dataclass(frozen=True)
    class Outer(wb.Drafter):
        """Its author chose a file and a class for everyone."""

        inner: wb.Drafter = setting(wb.DraftModel(model="special"), family="drafter")
        other: wb.Drafter = setting(get("drafter", "runs-code")(), family="drafter")

    register("drafter", "outer")(Outer)
    try:
        assert owner_only("drafter", "outer", {}) == []
        assert owner_only("drafter", "outer", declare.flatten(Outer())) == []
        assert owner_only("drafter", "outer", {"inner": "draft_model", "inner.model": "other"}) == ["inner.model"]
    finally:
        del declare.registry.KNOWN["drafter"]["outer"]


def form_of(**named) -> MemberControls:
    import gradio as gr

    with gr.Blocks():
        return MemberControls("decoder", "decoder", "speculative", **named)


def test_a_visitor_s_file_never_reaches_the_disk(plug_in, monkeypatch):
    """The server refuses before anything is made, so that not even a constructor reads the file."""
    seen = []
    for module, name in ((builtins, "open"), (os, "stat"), (os, "open")):
        real = getattr(module, name)
        monkeypatch.setattr(
            module, name, lambda path, *rest, real=real, **more: (seen.append(str(path)), real(path, *rest, **more))[1]
        )
    for anything in (False, True):
        form = form_of(models=["embedded-draft"], anything=anything)
        values = dict(zip(form.paths, (component.value for component in form.components), strict=True))
        values[("decoder", "speculative", "drafter")] = "forgetful"
        values[("decoder", "speculative", "drafter", "forgetful", "file")] = os.devnull
        if anything:
            assert form.read([*values.values()]).drafter.file == os.devnull
        else:
            with pytest.raises(
                BadInput, match=r"^drafter\.file: only the owner of this app may set that; run your own"
            ):
                form.read([*values.values()])
        assert (os.devnull in seen) == anything


def test_nothing_that_runs_code_can_be_set_through_the_app(app):
    """Processors, rules of one's own when to stop and forced tokens are for Python; their place in the form is none."""
    said = {getattr(block, "label", None) for block in app.blocks.values()}
    assert {"temperature", "stop", "max new tokens"} <= said and not {"processors", "force", "eos ids"} & said
    assert {entry.name for entry in describe(Sampling) if entry.kind not in ("int", "float", "bool")} == {"processors"}


def test_controls_of_the_owner_s_parameters_are_still_there_for_visitors_to_read():
    corpus = next(entry for entry in describe(get("drafter", "suffix")) if entry.name == "corpus")
    assert control(corpus, anything=False).interactive is False and control(corpus).interactive is not False
