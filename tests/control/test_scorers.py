"""Scorers: values known by hand, texts chosen by them, and what they must refuse or survive."""

import math
import os
import random
import time
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

import workbench as wb
from tests.cache.conftest import PROMPT
from tests.cache.conftest import small as small  # a fixture
from workbench import declare
from workbench.control.scorers import programs, unit_tests
from workbench.dashboard.controls import MemberControls
from workbench.errors import BadInput

DRAWN = {"temperature": 1.1, "seed": 3, "max_new_tokens": 12}
needs_limits = pytest.mark.skipif(os.name != "posix", reason="a system that does not limit processes")


def won(trace: wb.Trace):
    """The row of the hypothesis that became the text."""
    return trace.hypotheses[trace.hypotheses["fate"] == "won"].iloc[-1]


# -- log-probability, and a reward of one's own ------------------------------------------------------------------------


@pytest.mark.parametrize("by", ["sum", "mean"])
def test_the_log_probability_is_that_of_the_trace_and_best_of_by_it_is_best_of(small, by):
    scored = wb.decode(small, PROMPT, wb.BestOf(scorer=wb.LogProbability(by)), **DRAWN)
    assert scored.token_ids == wb.decode(small, PROMPT, wb.BestOf(by=by), **DRAWN).token_ids
    logp = -scored.tokens["surprisal_nats"]
    assert won(scored)["score"] == pytest.approx(logp.sum() if by == "sum" else logp.mean(), abs=1e-4)
    assert won(scored)["fate"] == "won" and (scored.hypotheses["fate"] == "pruned").sum() == 3


def test_beams_by_their_log_probability_are_beams_without_a_penalty(small):
    texts = set()
    for shift in range(4):
        prompt, more = PROMPT[shift:], {"max_new_tokens": 14, "eos_ids": [shift]}
        plain = wb.decode(small, prompt, wb.Beam(3, length_penalty=0.0, early_stopping="always"), **more)
        scored = wb.decode(small, prompt, wb.Beam(3, scorer=wb.LogProbability()), **more)
        assert scored.token_ids == plain.token_ids
        texts.add(tuple(scored.token_ids))
    assert len(texts) > 2


def test_a_reward_chooses_among_samples_and_steers_beams(toy):
    def reward(text: str) -> float:
        return text.count("c") - 0.01 * len(text)

    samples = wb.decode(toy, [0, 1], n=6, **DRAWN)
    best = wb.decode(toy, [0, 1], wb.BestOf(6, scorer=wb.Reward(reward)), **DRAWN)
    assert best.text == max((one.text for one in samples), key=reward) != samples[0].text
    assert won(best)["score"] == pytest.approx(reward(best.text))
    assert best.run["decoder"]["settings"]["scorer"]["settings"] == {"function": "reward"}
    beams = wb.decode(toy, [0, 1], wb.Beam(3, scorer=wb.Reward(reward)), max_new_tokens=12)
    one = wb.decode(toy, [0, 1], wb.Beam(1, scorer=wb.Reward(lambda text: -text.count("b"))), max_new_tokens=12)
    assert one.run["guarantee"] == "own" and one.text.count("b") < 3
    assert wb.decode(toy, [0, 1], wb.Beam(1), max_new_tokens=12).text.count("b") > 9
    assert reward(beams.text) > reward(wb.decode(toy, [0, 1], wb.Beam(3), max_new_tokens=12).text)


def test_a_search_with_a_scorer_forked_in_the_middle_is_the_straight_search(toy):
    for decoder, more in (
        (wb.BestOf(3, scorer=wb.Reward(len)), DRAWN),
        (wb.Beam(3, scorer=wb.LogProbability("mean")), {}),
    ):
        session = wb.Session(toy, [0, 1, 2], decoder, **{"max_new_tokens": 12, **more})
        session.run(rounds=6)
        branch = session.fork()
        session.run()
        session._snapshots = {}
        branch.run()
        session.jump(0, round=3)
        again = session.fork()
        again.run()
        assert session.trace.token_ids == branch.trace.token_ids == again.trace.token_ids
        straight = wb.decode(toy, [0, 1, 2], decoder, **{"max_new_tokens": 12, **more})
        assert straight.token_ids == session.trace.token_ids


@dataclass(frozen=True)
class Says(wb.Scorer):
    """Answers what it was told to."""

    found: Any

    declared_name = "says"

    def score(self, r, hypotheses):
        return self.found


@pytest.mark.parametrize(
    "found", [[1.0], [1.0, float("nan"), 2.0], [0, math.inf, 1], ["1", 2, 3], None, 3.0, "abc"], ids=str
)
def test_what_is_not_a_number_for_each_is_refused_in_a_line(toy, found):
    with pytest.raises(BadInput, match="scorer says: expected 3 finite numbers, got") as caught:
        wb.decode(toy, [0, 1], wb.BestOf(3, scorer=Says(found)), **DRAWN)
    assert "\n" not in str(caught.value)
    tensor = wb.decode(toy, [0, 1], wb.BestOf(3, scorer=Says(torch.tensor([1.0, 3.0, 2.0]))), **DRAWN)
    assert tensor.token_ids == wb.decode(toy, [0, 1], sample=1, **DRAWN).token_ids


# -- a linear head -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cache", [None, wb.H2O(budget=16), wb.KIVI()], ids=lambda one: one and one.declared_name)
def test_a_linear_head_reads_the_state_behind_the_last_token(small, tmp_path, cache):
    """As one forward over the whole text gives it where nothing is evicted; texts are those of the samples."""
    width = small.embed([0]).shape[-1]
    weight = torch.randn(width, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    save_file({"weight": weight[None], "bias": torch.tensor([0.5])}, tmp_path / "head.safetensors")
    head = wb.LinearHead(str(tmp_path / "head.safetensors"))
    trace = wb.decode(small, PROMPT, wb.BestOf(3, scorer=head), cache=cache, **DRAWN)
    texts = [one.token_ids for one in wb.decode(small, PROMPT, n=3, cache=cache, **DRAWN)]
    assert trace.token_ids in texts
    last = trace.hypotheses[trace.hypotheses["round"] == trace.hypotheses["round"].max()]
    if cache is None:
        wanted = []
        for text in texts:
            ids = [*PROMPT, *text]
            with torch.inference_mode():
                state = small.forward(ids, range(len(ids)), small.new_store(), want=("hidden",)).hidden[-1]
            wanted.append(float(state.double() @ weight) + 0.5)
        assert sorted(last["score"]) == pytest.approx(sorted(wanted), abs=1e-3)
        assert trace.token_ids == texts[max(range(3), key=wanted.__getitem__)]
    scoring = trace.forwards[trace.forwards["phase"] == "score"]
    assert len(scoring) == 3 and set(scoring["round"]) == {trace.rounds["round"].max()}
    steered = wb.decode(small, PROMPT, wb.Beam(2, scorer=head), cache=cache, max_new_tokens=5)
    assert (steered.forwards["phase"] == "score").sum() > 5


def test_a_head_that_does_not_fit_is_refused_before_any_work(small, toy, tmp_path):
    save_file({"weight": torch.zeros(3)}, tmp_path / "short.safetensors")
    save_file({"other": torch.zeros(3)}, tmp_path / "other.safetensors")
    (tmp_path / "text.safetensors").write_text("no tensors")
    for name, why in (("short.safetensors", r"weight \[3\]"), ("other.safetensors", "got none"), ("none", "got none"),
                      ("text.safetensors", "got none"), ("", "got none")):  # fmt: skip
        with pytest.raises(BadInput, match=why) as caught:
            wb.Session(small, PROMPT, wb.BestOf(scorer=wb.LinearHead(str(tmp_path / name))))
        assert "\n" not in str(caught.value)
    with pytest.raises(BadInput, match="hidden"):
        wb.Session(toy, [0], wb.BestOf(scorer=wb.LinearHead("none")))


# -- programs ----------------------------------------------------------------------------------------------------------

TWIN = {  # the language said again, with numpy-free Python expressions
    "range": "list(range(A, B, C))", "repeat": "[A for _ in range(B)]", "list": "list(ALL)",
    "tile": "[x for _ in range(B) for x in A]", "reverse": "list(reversed(A))",
    "replace": "[C if x == B else x for x in A]", "slice": "A[B:C]", "every": "[A[i] for i in range(0, len(A), B)]",
    "add": "[x + y for x, y in zip(A, S)]", "subtract": "[x - y for x, y in zip(A, S)]", 
    "mod": "[x % y for x, y in zip(A, S)]",
    "largest": "sorted(A)[::-1][:B]", "smallest": "sorted(A)[:B]", "even": "[x for x in A if not x & 1]",
    "odd": "[x for x in A if x & 1]", "nonzero": "[x for x in A if x != 0]",
    "sums": "[sum(A[: i + 1]) for i in range(len(A))]", "concat": "[*A, *B]",
    "interleave": "[v for i in range(min(len(A), len(B))) for v in (A[i], B[i])]",
}  # fmt: skip


def a_program(source: random.Random) -> tuple[str, list[int]]:
    """A random program, and what the twin makes of it."""
    known: dict[str, list[int]] = {}
    lines = []
    while len(lines) < source.randint(2, 8):
        name = source.choice(
            [name for name, (kinds, _) in programs.FUNCTIONS.items() if known or not set(kinds) & {*"sx"}]
        )
        kinds = programs.FUNCTIONS[name][0]
        kinds = "n" * source.randint(0, 6) if kinds == "*" else kinds
        words = [source.choice([*known]) if kind == "s" or (kind == "x" and source.random() < 0.5)
                 else str(source.randint(1, 9)) for kind in kinds]  # fmt: skip
        values = [known[word] if word in known else int(word) for word in words]
        A, B, C = (*values, None, None, None)[:3]
        scope = {
            "A": A,
            "B": B,
            "C": C,
            "ALL": values,
            "S": [B] * len(A) if isinstance(A, list) and isinstance(B, int) else B,
        }
        try:
            made = eval(TWIN[name], scope)
        except ZeroDivisionError:
            continue
        if len(made) <= 200 and all(abs(x) < 2**30 for x in made):
            known[f"v{len(lines)}"] = made
            lines.append(f"v{len(lines)} = {name}({', '.join(words)})")
    return "\n".join([*lines, f"output {list(known)[-1]}"]), known[list(known)[-1]]


def test_programs_are_what_another_interpreter_makes_of_them():
    source, used, lengths = random.Random(1), set(), set()
    for _ in range(600):
        text, wanted = a_program(source)
        written, bits = programs.run(text + source.choice(["", "\n", "\nrest (", "\n\n= 3"]))
        assert written == wanted, text
        assert bits > math.log2(len(programs.FUNCTIONS) + 1) * text.count("\n")
        used |= {line.split("= ")[1].split("(")[0] for line in text.split("\n")[:-1]}
        lengths.add(len(written))
    assert used == {*programs.FUNCTIONS} == {*TWIN} and len(lengths) > 20


def test_the_score_is_whether_and_how_shortly_a_program_writes_the_item():
    item = [0, 2, 4, 6, 8] * 3
    short, long = "a = range(0, 10, 2)\nb = tile(a, 3)\noutput b", f"a = list({', '.join(map(str, item))})\noutput a"
    scorer = wb.Kolmogorov(item=item)
    line = math.log2(len(programs.FUNCTIONS) + 1)
    assert scorer.value(short) == pytest.approx(1 - (3 * line + 4 * 8 + 1) / 120)  # b: `a` is the one earlier line
    assert scorer.value(short) > 0 > scorer.value(long) > -1 == scorer.value("a = range(0, 10, 2)\noutput a")
    partly = wb.Kolmogorov(item=item, exact=False)
    assert partly.value("a = range(0, 10, 2)\noutput a") == pytest.approx(5 / 15 - (2 * line + 24) / 120)
    assert partly.value("output a") == partly.value("") == -1
    for bad in ((), [256], [-1], ["x"], [0] * 2000):
        with pytest.raises(BadInput, match="item"):
            wb.Kolmogorov(item=bad)


HOSTILE = [
    "a = repeat(1, 999999999)\noutput a", "a = range(0, 999999999, 1)\noutput a", "a = range(0, 5, 0)\noutput a",
    "a = list(2)\n" + "a = tile(a, 1024)\n" * 60 + "output a",
    "a = list(1)\n" + "a = concat(a, a)\n" * 60 + "output a",
    "a = list(999999999, 9)\n" + "a = sums(a)\na = add(a, a)\n" * 30 + "output a", "a = mod(a, 0)\noutput a",
    "a = list(1)\na = mod(a, 0)\noutput a", "a = list(" + "9" * 5000 + ")\noutput a", "a = " + "list(" * 5000,
    "a = list(1)\na = every(a, -1)\noutput a", "a = repeat(1, -5)\noutput a", "\n" * 10**6, "(" * 10**6,
    "a = list(1)\n" * 10**5, "a = list(١)\noutput a", "a = __import__(1)\noutput a", "output output",
    "a = list(1,,2)\noutput a", "a=list()\noutput a", "a = reverse(5)\noutput a", "a = range(1, 2)\noutput a",
    "\x00\ud800", "a = list(" + "1," * 3000 + "1)\noutput a",
]  # fmt: skip


def test_hostile_programs_end_at_once_and_never_fail():
    started = time.perf_counter()
    for text in HOSTILE:
        found = programs.run(text)
        assert found is None or (len(found[0]) <= programs.LENGTH and math.isfinite(found[1])), text[:40]
    assert programs.run("a=list()\noutput a")[0] == [] and programs.run(HOSTILE[0]) is None
    assert time.perf_counter() - started < 5


@settings(max_examples=150, deadline=None)
@given(st.randoms(use_true_random=False), st.text(max_size=3), st.integers(0, 200), st.integers(0, 9))
def test_broken_programs_are_none_or_some_program(source, text, place, cut):
    program, _ = a_program(source)
    found = programs.run(program[:place] + text + program[place + cut :])
    assert found is None or all(isinstance(x, int) and abs(x) <= programs.LARGEST for x in found[0])


# -- unit tests in a process of their own ------------------------------------------------------------------------------

TESTS = "assert f(2) == 4\n\nassert f(3) == 9\nassert f(1) == 2"
ESCAPES = {
    "loop": "while True: pass", "sleep": "import time\ntime.sleep(99)", "memory": "x = bytearray(10 ** 10)",
    "eater": "x = []\nwhile True: x.append(bytearray(10 ** 6))", "fork": "import os\nwhile True: os.fork()",
    "spawn": "import subprocess\nsubprocess.run(['sleep', '99'])", "exec": "import os\nos.execv('/bin/true', ['true'])",
    "socket": "import socket\nsocket.socket()", "write": "open('../gone', 'w')",
    "kill": "import os\nos.kill(os.getppid(), 9)",
    "ctypes": "import ctypes", "syntax": "def f(", "exit": "raise SystemExit", "leave": "import os\nos._exit(3)",
    "threads": "import threading, time\nwhile True: threading.Thread(target=time.sleep, args=(99,)).start()",
}  # fmt: skip


@needs_limits
def test_the_share_of_tests_that_pass():
    scorer = wb.UnitTests(TESTS)
    assert scorer.value("def f(x): return x * x") == pytest.approx(2 / 3)
    assert scorer.value("def f(x): return 2 * x\nprint('x' * 10 ** 7)") == pytest.approx(2 / 3)
    assert scorer.value("open('mine', 'w').write('x')\ndef f(x): return x * x if x > 1 else 2") == 1


@needs_limits
@pytest.mark.parametrize("name", ESCAPES)
def test_what_a_text_may_not_do_costs_it_its_tests_and_little_time(name, monkeypatch):
    """Even behind a sound function; and nothing of it is left behind."""
    started, children, start = time.perf_counter(), [], unit_tests.subprocess.Popen
    monkeypatch.setattr(unit_tests.subprocess, "Popen", lambda *a, **k: children.append(start(*a, **k)) or children[0])
    assert wb.UnitTests(TESTS, timeout=1.0).value(f"def f(x): return x * x\n{ESCAPES[name]}") == 0
    assert time.perf_counter() - started < 15
    with pytest.raises(ProcessLookupError):
        os.killpg(children[0].pid, 0)


@needs_limits
def test_samples_are_chosen_by_their_tests(lm):
    tests = wb.UnitTests("assert x != 0\nassert x > 1", timeout=5)
    trace = wb.decode(lm, "x = ", wb.BestOf(3, scorer=tests), temperature=1.0, max_new_tokens=3, stop="\n")
    assert won(trace)["score"] == tests.value("x = " + trace.text) == trace.hypotheses["score"].tail(3).max()


def test_what_cannot_be_run_is_refused_before_any_work(toy, monkeypatch):
    for scorer, why in (
        (wb.UnitTests(), "1 to 100 tests"),
        (wb.UnitTests("a\n" * 101), "got 101"),
        (wb.Reward(), "expected a function"),
    ):
        with pytest.raises(BadInput, match=why):
            wb.Session(toy, [0], wb.BestOf(scorer=scorer))
        with pytest.raises(BadInput, match=why):
            wb.Session(toy, [0], wb.Beam(scorer=scorer))
    monkeypatch.setattr(unit_tests, "find_spec", lambda name: None)
    with pytest.raises(BadInput, match="limits processes"):
        wb.Session(toy, [0], wb.BestOf(scorer=wb.UnitTests("x")))
    with pytest.raises(BadInput, match="callable"):
        wb.Reward("len")


def test_visitors_of_an_app_are_refused_what_is_the_owners():
    import gradio as gr

    for name, values in (("unit_tests", {"scorer.tests": "x"}), ("unit_tests", {}), ("reward", {})):
        assert declare.owner_only("decoder", "best_of", {"scorer": name, **values}) == [f"scorer.{name}"]
    head = {"scorer": "linear_head", "scorer.weights": "/etc/passwd"}
    assert declare.owner_only("decoder", "beam", head) == ["scorer.weights"]
    assert declare.owner_only("decoder", "best_of", {"scorer": "kolmogorov", "scorer.item": "1,2"}) == []
    with gr.Blocks():
        form = MemberControls("decoder", "decoder", "best_of", anything=False)
    values = [component.value for component in form.components]
    assert ("decoder", "best_of", "scorer", "reward", "function") not in form.paths
    for name, refused in (("log_probability", False), ("unit_tests", True)):
        values[[*form.paths].index(("decoder", "best_of", "scorer"))] = name
        if refused:
            with pytest.raises(BadInput, match=r"only the owner of this app may set that"):
                form.read(values)
        else:
            assert form.read(values).scorer.declared_name == name
