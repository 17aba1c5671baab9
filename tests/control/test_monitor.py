"""Behind a dot only names that are there are written, each to its end; elsewhere nothing changes."""

import sys
import time
from types import SimpleNamespace

import pytest

import workbench as wb
from workbench.control.constraints import python_monitor
from workbench.control.constraints.base import Masks

CODE = """class Point:
    def __init__(self, abscissa, ordinate):
        self.abscissa = abscissa
        self.ordinate = ordinate

    def norm(self):
        return self."""


def masks_of(lm, code: str, **settings) -> Masks:
    return Masks(wb.PythonMonitor(**settings), lm, lm.tokenizer.encode(code), lm.eos_ids)


def allowed(lm, code: str, *texts: str) -> dict[str, bool]:
    """Whether each text, as its one token, may come behind the code."""
    mask = masks_of(lm, code).allowed(lm.tokenizer.encode(code))
    ids = {text: lm.tokenizer.encode(text, add_special_tokens=False) for text in texts}
    assert all(len(found) == 1 for found in ids.values()), ids
    return {text: bool(mask[found[0]]) for text, found in ids.items()}


def test_only_a_whole_name_may_be_closed(lm):
    assert allowed(lm, CODE, "a", "o", "x", "(", " ") == {"a": True, "o": True, "x": False, "(": False, " ": False}
    assert allowed(lm, CODE + "absciss", "a", "(", "s") == {"a": True, "(": False, "s": False}
    assert allowed(lm, CODE + "abscissa", "(", "s", ".") == {"(": True, "s": False, ".": True}
    for code, whole in ((CODE, False), (CODE + "absci", False), (CODE + "abscissa", True)):
        assert masks_of(lm, code).complete(lm.tokenizer.encode(code)) == whole
        assert masks_of(lm, code).allowed(lm.tokenizer.encode(code))[next(iter(lm.eos_ids))] == whole


class Few:
    """A tokenizer of a few pieces, the first of which is code."""

    def __init__(self, *pieces: str):
        self.pieces = pieces

    def __len__(self):
        return len(self.pieces)

    def decode(self, ids, **options):
        return "".join(self.pieces[i] for i in ids)


@pytest.mark.parametrize(("code", "known"), [(CODE[:-1], {".ab"}), ("x = [1]\nx", {".append", ".app"})])
def test_a_token_that_holds_the_dot_is_judged_before_it_is_written(code, known):
    tokenizer = Few(code, ".", ".ab", ".append", ".app", ".b(", " = 1")
    few = SimpleNamespace(name="few", tokenizer=tokenizer, vocab_size=len(tokenizer))
    mask = Masks(wb.PythonMonitor(), few, [0], frozenset()).allowed([0]).tolist()
    assert {piece for piece, one in zip(tokenizer.pieces, mask, strict=True) if one} == {code, ".", " = 1", *known}


@pytest.mark.parametrize("code", ["unknown_thing.", "# see self.", "'''a.", "x = 1.", "x = 1\nx.nothing_of_that_name"])
def test_where_there_are_no_names_all_is_allowed(code, lm):
    """Neither in comments and texts, nor behind what nobody knows."""
    mask = masks_of(lm, code).allowed(lm.tokenizer.encode(code))
    assert mask.sum() == lm.vocab_size - sum(not piece for piece in python_monitor.pieces_of(lm)) + len(lm.eos_ids)


def test_a_run_is_monitored_and_a_speculative_one_is_the_same(lm):
    run = dict(max_new_tokens=10, constraint=wb.PythonMonitor())
    free = wb.decode(lm, CODE, max_new_tokens=10)
    plain, drafted = wb.decode(lm, CODE, **run), wb.decode(lm, CODE, wb.Speculative(), **run)
    assert plain.token_ids == drafted.token_ids != free.token_ids
    assert plain.text.startswith(("abscissa", "ordinate", "norm")) and not free.text.startswith(("absc", "ord", "norm"))
    assert plain.tokens["allowed_count"].min() < 20 and drafted.drafts["fate"].eq("accepted").any()


def test_jedi_is_given_so_much_text_and_so_much_time(lm, monkeypatch):
    """And what it raises is no reason to stop."""
    seen = []

    class Script:
        def __init__(self, code):
            seen.append(code)

        def complete(self):
            if "slow" in seen[-1]:
                time.sleep(5)
            raise RecursionError

    monkeypatch.setitem(sys.modules, "jedi", SimpleNamespace(Script=Script))
    monitor = wb.PythonMonitor(reach=100, seconds=0.2)
    assert monitor.names("y = 1\n" * 90 + "y.") == frozenset()
    assert len(seen[0]) <= 100 and seen[0].startswith("y = 1\n") and seen[0].endswith("\ny.")
    with pytest.raises(wb.WorkbenchError, match="less reach"):
        monitor.names("slow.")
    assert monitor.trust == "owner"
