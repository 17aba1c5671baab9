"""Models that a run needs: loaded before it begins, with a line that says how far, and a way to stop it."""

import contextlib
import inspect
import threading
import time

import gradio as gr
import pytest

import workbench as wb
from workbench.dashboard import loading
from workbench.dashboard.form import Form, Wanted
from workbench.dashboard.visits import Visit
from workbench.errors import BadInput, Cancelled


class Asked:
    """A form that asks for one model."""

    def __init__(self, load_all):
        self.load_all = load_all

    def read(self, values):
        wanted = Wanted("some/model", {}, "x", None, {})
        object.__setattr__(wanted, "load_all", self.load_all)
        return wanted


def lines(update: str) -> str:
    return update


def test_a_loading_is_told_in_bytes_and_can_be_cancelled():
    """3.0 of 9.0 GB while it lasts; a cancel ends it at the next bytes, in one line, with nothing left on the page."""
    ended = []

    def load_all(tell):
        try:
            while True:
                tell("some/model", "fetching", 3 * 10**9, 9 * 10**9)
                time.sleep(0.01)
        except Cancelled as error:
            ended.append(error)
            raise

    visit = Visit("page", form=Asked(load_all))
    shown = loading.wait(visit)
    update = next(shown)
    assert "fetching some/model, 3.0 of 9.0 GB" in lines(update)
    with pytest.raises(gr.Error, match="being loaded already"):
        next(loading.wait(visit))
    loading.stop(visit)
    rest = []
    with pytest.raises(gr.Error, match="the loading of some/model was stopped"):
        rest.extend(shown)
    assert ended and lines(rest[-1]) == ""
    assert visit.jobs["loading"].over and visit.message == "the loading of some/model was stopped"


def test_the_line_goes_away_before_an_error_is_said():
    """A model that cannot be loaded leaves no line, and its error is the status."""
    held = threading.Event()

    def load_all(tell):
        held.wait(5)
        raise BadInput("'some/model' has no readable tokenizer")

    visit = Visit("page", form=Asked(load_all))
    shown = loading.wait(visit)
    assert "loading some/model" in lines(next(shown))
    held.set()
    assert lines([update for update in _until_error(shown)][-1]) == ""
    assert visit.message == "'some/model' has no readable tokenizer"


def _until_error(shown):
    with contextlib.suppress(gr.Error):
        yield from shown


def test_what_is_in_memory_needs_no_word():
    """The models of the form, a draft model included, are loaded once, and the next wait is one empty update."""
    named = []

    def tell(name, step, done, total):
        named.append(name)

    decoder = wb.Speculative(drafter=wb.Fuse(wb.CopySpec(), wb.DraftModel("embedded-draft")))
    Wanted("embedded", {"dtype": "float16"}, "x", decoder, {}).load_all(tell)
    assert set(named) == {"embedded", "embedded-draft"}
    named.clear()
    Wanted("embedded", {"dtype": "float16"}, "x", decoder, {}).load_all(tell)
    assert not named


def test_device_and_dtype_are_those_of_the_form():
    """The form begins with what the command line said; the owner may choose, a visitor may not; Python says so too."""
    from workbench.dashboard import python

    with gr.Blocks():
        owner, visitor = [
            Form(gr.Textbox("x"), gr.Radio(["text"]), ["embedded"], own, "cpu", "bfloat16") for own in (True, False)
        ]
    values = [component.value for component in owner.components]
    values[1] = "text"
    assert owner.read(values).where == visitor.read(values).where == {"dtype": "bfloat16"}
    changed = [*values[:3], "auto", "float32", *values[5:]]
    assert owner.read(changed).where == {"device": "auto", "dtype": "float32"}
    with pytest.raises(BadInput, match="only the owner"):
        visitor.read(changed)
    wanted = owner.read(values)
    text = python.call(wanted.model, wanted.prompt, None, {}, wanted.where)
    assert "lm = wb.load('embedded', dtype='bfloat16')" in text
    assert wanted.is_of(wb.load("embedded", dtype="bfloat16")) and not wanted.is_of(wb.load("embedded"))


@pytest.mark.parametrize("name", ["start", "go", "compare", "measure"])
def test_every_run_waits_for_its_models(app, name):
    """The event of a button that decodes comes after the one that loads, and only where that went well."""
    events = {fn.api_name: fn for fn in app.fns.values()}
    after, fn = events[f"load_{name}"], events[name]
    assert fn.trigger_after == after._id and fn.trigger_only_on_success
    assert inspect.isgeneratorfunction(after.fn)
