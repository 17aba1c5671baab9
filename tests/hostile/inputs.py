"""Hostile settings, prompts, conditions, command lines, declared values, session calls, processors and stop rules."""

import contextlib
import functools
import inspect
import io
import os
import tempfile
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hypothesis import strategies as st

import workbench as wb
from workbench import conditions, declare
from workbench.engine.prompt import encode_prompt
from workbench.errors import BadInput

SETTINGS = (
    "temperature", "top_k", "top_p", "min_p", "typical_p", "processors", "cache", "max_new_tokens", "stop",
    "ignore_eos", "seed", "sample", "level", "force", "prompt_rows", "eos_ids", "sampling", "constraint",
)  # fmt: skip


class Unprintable:
    def __repr__(self):
        raise RuntimeError("no repr")


def endless():
    while True:
        yield 1


NUMBERS = [
    0, 1, -1, 2, 3, 2**31, 2**63 - 1, 2**63, 2**64, -(2**63) - 1, 10**18, 10**400, 10**5000, 0.5, 1.0, 1.7, 1e-300,
    5e-324, 1e-7, 1e308, float("inf"), float("-inf"), float("nan"), 1j, Fraction(1, 2), Decimal("NaN"), True,
]  # fmt: skip
OBJECTS = [
    None, False, b"", b"ab", bytearray(b"a"), object, int, Unprintable(), len, str.upper, np.int64(2), np.float32(0.5),
    np.bool_(True), np.array(1), np.array([1, 2]), np.eye(2), np.array("a"), torch.tensor(1), torch.tensor([1, 2]),
    torch.tensor(0.5), torch.ones(2, 2), range(3), range(10**12), frozenset({1}), wb.SeededMatch(), wb.SeededMatch,
    wb.H2O(),
    Ellipsis, NotImplemented, memoryview(b"ab"), slice(3),
]  # fmt: skip
TEXTS = ["", " ", "\n", "\x00", "\ud800", "\ufffd", "é" * 50, "a" * 300, "None", "nan", "1e999", "0x10", "-0", "true",
         "speculative", "h2o", "kivi", "fixed", "../../x", "%s%n", "{}", "\x1b[31m", "１"]  # fmt: skip
words = st.one_of(st.sampled_from(TEXTS), st.text(st.characters(), max_size=12))
scalars = st.one_of(
    st.sampled_from(NUMBERS), st.integers(-5, 70), st.floats(), words, st.binary(max_size=4), st.sampled_from(OBJECTS)
)
odd = st.one_of(
    scalars,
    st.lists(scalars, max_size=3),
    st.lists(st.lists(scalars, max_size=2), max_size=2),
    st.tuples(scalars, scalars),
    st.dictionaries(st.one_of(st.integers(-3, 99), words, st.sampled_from([None, 1.5, 10**9])), scalars, max_size=3),
    st.just(None).map(lambda _: endless()),
)
likely = {  # beside odd values: values of a right kind, so that runs start and later checks are met
    "temperature": st.floats(0, 3),
    "top_k": st.integers(1, 6),
    "max_new_tokens": st.integers(1, 5),
    "stop": st.lists(st.one_of(st.text(min_size=1, max_size=3), st.just(len)), max_size=2),
    "force": st.one_of(
        st.lists(st.integers(-1, 5), max_size=4), st.dictionaries(st.integers(-1, 9), st.integers(0, 4))
    ),
    "level": st.sampled_from(["off", "default", "full"]),
    "seed": st.integers(0, 2**63),
    "constraint": st.sampled_from([wb.Regex("a*b?"), wb.Regex("("), wb.Grammar("start: start"), "regex"]),
}


@functools.cache
def toy():
    return wb.ToyModel(vocab_size=4, seed=7, sharpness=1.2, context=24)


@functools.cache
def embedded():
    return wb.load("embedded")


@functools.cache
def folder() -> Path:
    """A folder of this process with a trace in it."""
    path = Path(tempfile.mkdtemp(prefix="hostile-"))
    wb.decode(toy(), [0, 1], max_new_tokens=4, out=path / "run.wb")
    return path


# -- settings, processors and stop rules ------------------------------------------------------------------------------

a_setting = st.sampled_from(SETTINGS).flatmap(
    lambda name: st.tuples(st.just(name), st.one_of(odd, likely.get(name, odd)))
)
some_settings = st.lists(a_setting, min_size=1, max_size=3).map(dict)


def with_settings(values: dict[str, Any]) -> None:
    values = {name: tame(value) if name in ("processors", "stop") else value for name, value in values.items()}
    wb.Session(toy(), [0, 1, 2], **{"max_new_tokens": 3, **values}).run(rounds=3)


def tame(value: Any) -> Any:
    """Callables that raise on what they are given are the caller's own: others stand for them."""
    if isinstance(value, list | tuple):
        return type(value)(tame(item) for item in value)
    return (lambda *given: given[-1]) if callable(value) and not isinstance(value, type) else value


def with_results(values: tuple[Any, Any]) -> None:
    """A processor and a stop rule of the caller's that return anything."""
    scores, stop = values
    wb.decode(toy(), [0, 1, 2], processors=[lambda ids, given: scores], stop=lambda new: stop, max_new_tokens=2)


results = st.one_of(
    odd,
    st.sampled_from([torch.zeros(1, 4), torch.full((1, 4), float("nan")), torch.zeros(4, 1), torch.zeros(1, 4).half()]),
)

# -- prompts and session calls ----------------------------------------------------------------------------------------

chat = st.lists(
    st.dictionaries(st.sampled_from(["role", "content", "x"]), st.one_of(words, scalars), max_size=3), max_size=2
)
prompts = st.one_of(odd, words, chat, st.lists(st.integers(-1, 9000), max_size=5), st.text(max_size=200))


def with_prompt(prompt: Any) -> None:
    encode_prompt(embedded(), prompt)


CALLS = ("step", "run", "back", "jump", "fork", "round_at", "edit", "attach", "recomputed")
NAMES = ("by", "until", "rounds", "steps", "to", "at", "token", "index", "contexts", "then", "scale", *SETTINGS)
calls = st.lists(
    st.tuples(
        st.sampled_from(CALLS), st.lists(odd, max_size=2), st.dictionaries(st.sampled_from(NAMES), odd, max_size=2)
    ),
    min_size=1,
    max_size=3,
)


def with_calls(asked: list[tuple[str, list, dict]]) -> None:
    """Calls on a session; arguments that Python itself refuses for their number or names are no case."""
    session = wb.Session(toy(), [0, 1, 2], max_new_tokens=6)
    session.run(rounds=3)
    for name, positional, named in asked:
        call = getattr(session, name)
        try:
            inspect.signature(call).bind(*positional, **named)
        except TypeError:
            continue
        if name == "run":
            positional, named = tame(positional), {key: tame(value) for key, value in named.items()}
            if any(isinstance(value, type) for value in (*positional, *named.values())):
                continue
        call(*positional, **named)


# -- conditions -------------------------------------------------------------------------------------------------------

PIECES = [
    "entropy", "rank", "p", "index", "text", "token", "source", "and", "or", "not", "(", ")", ">", "<", "==", "!=", "3",
    "0.5", "1e999", "-1", "'a'", '"', "'", "in", "abs", "**", "//", "\\", ";", ",", "[", "]", ".", "True", "\x00",
]  # fmt: skip
texts = st.one_of(
    words,
    st.lists(st.sampled_from(PIECES), max_size=30).map(" ".join),
    st.tuples(st.sampled_from(["(", "not ", "-", "entropy>", "1<"]), st.integers(1, 5000)).map(lambda n: n[0] * n[1]),
)
ROW = {"index": 3, "entropy_raw_nats": 0.5, "rank": 1, "p_raw": 0.4, "text": "a", "token_id": 2, "source": "target"}


def with_condition(text: Any) -> None:
    conditions.parse(text)(ROW)


# -- declared values --------------------------------------------------------------------------------------------------


@st.composite
def declared(draw) -> tuple[str, str, dict]:
    family = draw(st.sampled_from(declare.FAMILIES))
    name = draw(st.sampled_from(declare.names(family)))
    fields = [entry.name for entry in declare.describe(declare.get(family, name))] or ["x"]
    inner = st.sampled_from(["length", "budget", "seed", "cache", "x", ""])
    keys = st.one_of(
        st.sampled_from(fields), st.tuples(st.sampled_from(fields), inner).map(".".join), st.sampled_from([None, 5, ""])
    )
    values = st.dictionaries(keys, odd, min_size=1, max_size=3)
    return (
        draw(st.one_of(st.just(family), scalars) if draw(st.integers(0, 20)) == 0 else st.just(family)),
        name,
        draw(values),
    )


def with_declared(value: tuple[Any, str, dict]) -> None:
    """Built from flat values, as `--set` and forms do; and from a form with the same values."""
    family, name, values = value
    try:
        made = declare.build(family, name, values)
    except BadInput:
        settings = {key: item for key, item in values.items() if isinstance(key, str) and "." not in key}
        declare.from_dict({"family": family, "name": name, "settings": settings})
        return
    assert declare.from_dict(declare.to_dict(made)) == made


# -- command lines ----------------------------------------------------------------------------------------------------

numbers = st.one_of(
    st.sampled_from(["0", "-1", "1.5", "nan", "inf", "1e999", "9" * 30, "9" * 5000, "", "x", "1_0", "０"]), words
)
files = st.sampled_from(["run.wb", "none.wb", "", ".", "a/b/c.wb", "n" * 300, "nul\x00", "\udcff", "run.html"])


def option(name: str, values) -> st.SearchStrategy:
    return values.map(lambda value: [name, str(value)])


sampling = [option(f"--{name}", numbers) for name in ("temperature", "top-k", "top-p", "min-p", "typical-p", "seed")]
set_ = st.tuples(st.sampled_from(["drafter", "shape.length", "cache.budget", "shape", "x"]), numbers).map("=".join)
general = [
    *sampling, option("--stop", words), option("--level", words), option("--cache", words), option("--device", words),
    option("--decoder", st.one_of(words, st.just("speculative"))), option("--set", st.one_of(words, set_)),
    option("--dtype", words), st.just(["--ignore-eos"]),
]  # fmt: skip
a_file, a_word = files.map(lambda name: [name]), words.map(lambda word: [word])
kinds = st.sampled_from(["decoders", "shapes", "refusals", "models"]).map(lambda kind: [kind])
speeds = st.sampled_from(["inf", "nan", "0", "-1", "x", "1e9", "1e999"])
VERBS = {
    "run": [
        *general, option("--until", texts), option("--force-ids", numbers), option("--max-new-tokens", numbers),
        option("--prompt-file", files), st.just(["--chat"]), st.just(["--json"]), option("--out", files), a_word,
    ],
    "compare": [*general, option("--arm", st.one_of(words, words.map("a=".__add__))), option("--repeats", numbers)],
    "verify": [option("--set", words), option("--tokens", numbers), option("--cache", words)],
    "list": [kinds, a_word],
    "show": [
        a_file, option("--table", words), option("--rows", numbers), st.just(["--json"]), option("--perfetto", files),
        st.just(["--table", "tokens"]),
    ],
    "replay": [a_file, option("--by", words), option("--speed", speeds)],
    "capsule": [
        a_file, option("--out", files), option("--title", words), option("--note", words), st.just(["--overwrite"]),
    ],
}  # fmt: skip
lines = st.one_of(
    st.sampled_from(list(VERBS)).flatmap(
        lambda verb: st.lists(st.one_of(VERBS[verb]), max_size=4).map(lambda parts: [verb, *sum(parts, [])])
    ),
    st.lists(words, max_size=3),
)


def with_command(words: list[str]) -> None:
    """Exit code 0 or 1, or 2 with one line; files are looked for and written in a folder of their own."""
    from workbench.cli import VARIABLE, main

    words = _short(
        [str(folder() / word) if word in ("run.wb", "none.wb", "a/b/c.wb", "run.html") else word for word in words]
    )
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), _raising(VARIABLE):
        try:
            code = main(words)
        except SystemExit as end:  # --help
            code = end.code
    assert code in (0, 1, 2), code
    assert code != 2 or err.getvalue().count("\n") == 1, err.getvalue()


def _short(words: list[str]) -> list[str]:
    """With few tokens, so that what is taken is soon done; what is verified is a decoder that is not there."""
    few = ["--max-new-tokens", "2"] if words[:1] in (["run"], ["compare"]) and "--max-new-tokens" not in words else []
    return [*words, *few, *(["--decoder", "none"] if words[:1] == ["verify"] else [])]


@contextlib.contextmanager
def _raising(variable: str):
    """A fault in the code is raised, not told of in a line."""
    os.environ[variable] = "1"
    try:
        yield
    finally:
        os.environ.pop(variable, None)


CORPORA = {
    "settings": (some_settings, with_settings),
    "results": (st.tuples(results, results), with_results),
    "prompts": (prompts, with_prompt),
    "calls": (calls, with_calls),
    "conditions": (texts, with_condition),
    "declared": (declared(), with_declared),
    "commands": (lines, with_command),
}
