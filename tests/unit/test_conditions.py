"""The language of `run(until=...)`: what it means, what it refuses, and that it never runs anything."""

import math
import random

import numpy as np
import pandas as pd
import pytest

from workbench import conditions
from workbench.conditions import ALIASES, parse
from workbench.errors import BadInput
from workbench.trace.schema import TABLES

ROW = {
    "entropy_raw_nats": 3.25,
    "token_id": 17,
    "text": " yield",
    "source": "residual",
    "bonus": False,
    "rank": 2,
    "drafted": 4,
    "accepted": 1,
    "p_raw": 1e-4,
    "decision": None,
    "margin": math.nan,
    "mode": "chain",
}


@pytest.mark.parametrize(
    ("text", "holds"),
    [
        ("entropy > 3", True),
        ("entropy_raw_nats <= 3", False),
        ("3 < entropy", True),
        ("p < 1e-3", True),
        ("p>=.0001 and p<=1E-4", True),
        ("entropy > -1.5", True),
        ("id == 17", True),
        ("accepted < drafted", True),
        ("accepted == drafted", False),
        ("token == ' yield'", True),
        ('token != " yield"', False),
        ("source == 'residual' and mode == \"chain\"", True),
        ("bonus", False),
        ("not bonus", True),
        ("bonus == false", True),
        ("bonus != False", False),
        ("rank", True),
        ("decision", False),
        ("not decision", True),
        ("margin", False),
        # precedence: not, then and, then or
        ("rank == 2 or rank == 3 and bonus", True),
        ("(rank == 2 or rank == 3) and bonus", False),
        ("not bonus and rank == 2", True),
        ("not (bonus or rank == 2)", False),
        ("not not (((rank == 2)))", True),
        ("  rank==2\n", True),
    ],
)
def test_meaning(text, holds):
    assert parse(text)(ROW) is holds


@pytest.mark.parametrize("sign", ["<", "<=", ">", ">=", "==", "!="])
@pytest.mark.parametrize("missing", [None, math.nan, np.float64("nan"), pd.NA], ids=["None", "nan", "numpy", "NA"])
def test_no_comparison_with_a_missing_value_holds(sign, missing):
    """`!=` included; and its negation holds, so that `not` keeps its meaning."""
    for row in ({}, {"rank": missing}):
        assert parse(f"rank {sign} 1")(row) is False
        assert parse(f"drafted {sign} rank")({**row, "drafted": 3}) is False
        assert parse(f"not rank {sign} 1")(row) is True
        assert parse("rank")(row) is False


def test_rows_of_a_data_frame():
    """numpy's numbers and booleans answer with plain True and False."""
    frame = pd.DataFrame({"rank": [1, 5], "bonus": [True, False], "entropy_raw_nats": [0.5, np.nan]})
    rows = frame.to_dict("records")
    assert [parse("rank > 1")(row) for row in rows] == [False, True]
    assert [parse("bonus")(frame.iloc[i]) for i in range(2)] == [True, False]
    assert [parse("entropy < 1")(frame.iloc[i]) for i in range(2)] == [True, False]


@pytest.mark.parametrize(
    ("written", "meant"), [(r"'\n'", "\n"), (r"'it\'s'", "it's"), (r'"\\"', "\\"), ("'a(b'", "a(b")]
)
def test_texts_with_escapes(written, meant):
    assert parse(f"token == {written}")({"text": meant}) is True
    assert parse(f"token == {written}")({"text": meant + "x"}) is False


def test_what_a_condition_says_of_itself():
    condition = parse(" entropy > 3 and not bonus ")
    assert condition.text == "entropy > 3 and not bonus"
    assert condition.names == {"entropy_raw_nats", "bonus"}
    assert "entropy > 3 and not bonus" in repr(condition)


def test_names_are_the_columns_of_the_tokens_and_rounds_tables():
    """Every column that holds one number, text or truth value, and no other; aliases point at such columns."""
    listed = {column.name for table in ("tokens", "rounds") for column in TABLES[table]}
    known = conditions.columns()
    assert listed - set(known) == {"attribution", "topk_raw", "topk_sampled"}
    assert set(ALIASES.values()) <= set(known) and not set(ALIASES) & listed
    for name in known:
        assert parse(name)({name: 1}) is True
    for alias, name in ALIASES.items():
        assert parse(alias).names == {name}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "expected text such as"),
        ("   ", "expected text such as"),
        ("entropy >", "expected a column, a number or a quoted text at character 10: entropy >^"),
        ("entropy >> 3", "expected a comparison (< <= > >= == !=) at character 13: entropy >> 3^"),
        ("entropy = 3", "cannot read this at character 9: entropy ^= 3"),
        ("entropy > 3 4", "expected 'and', 'or' or the end at character 13"),
        ("1 < entropy < 3", "expected one comparison, and another after 'and' at character 12: 1 < entropy^ < 3"),
        ("(entropy > 3", "'(' was never closed at character 1: ^(entropy > 3"),
        ("entropy > 3)", "unmatched ')' at character 12: entropy > 3^)"),
        ("and", "expected a column"),
        ("not", "expected a column"),
        ("3", "expected a comparison"),
        ("'x'", "expected a comparison"),
        ("token == 'x", "cannot read this at character 10"),
        (r"token == '\q'", "unknown escape \\q in the text"),
        ("token > 3", "this is number and is compared with text at character 9"),
        ("entropy == 'high'", "this is text and is compared with number"),
        ("bonus == 1", "this is number and is compared with true or false"),
        (
            "entropi > 3",
            "unknown name 'entropi' (did you mean 'entropy'?) at character 1: ^entropi > 3; aliases: entropy, ",
        ),
        ("topk_raw", "unknown name 'topk_raw'"),
        ("q > 0.5", "unknown name 'q'"),
        ("entropy > 3_0", "cannot read this"),
        ("entropy > 0x10", "cannot read this"),
        ("entropy > 3 ; rank", "cannot read this at character 13"),
        ("(" * 200 + "bonus" + ")" * 200, "more than 50 levels"),
        ("not " * 200 + "bonus", "more than 50 levels"),
        ("rank > 1 or " * 200 + "bonus", "at most 1000 characters, got 2405"),
    ],
    ids=range(27),
)
def test_what_is_refused(text, says):
    with pytest.raises(BadInput) as caught:
        parse(text)
    assert says in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("value", [None, 3, b"entropy > 3", ["entropy > 3"], len])
def test_only_text_is_parsed(value):
    with pytest.raises(BadInput, match="expected text such as"):
        parse(value)


@pytest.mark.parametrize(
    "attempt",
    [
        "__import__('os')",
        "__import__('os').system('true') == 0",
        "().__class__",
        "rank.__class__ == 1",
        "(lambda: 1)()",
        "open('/etc/passwd')",
        "[x for x in rank]",
        "rank if bonus else 1",
        "f'{rank}' == '1'",
        "rank := 3",
        "rank > 10 ** 10",
        "rank == 1\x00",
        "`id`",
        "rank == {}",
    ],
)
def test_python_is_no_condition(attempt):
    with pytest.raises(BadInput) as caught:
        parse(attempt)
    assert "\n" not in str(caught.value)


def grown(draw: random.Random, depth: int) -> tuple[str, str]:
    """A random condition, and the same in Python's words."""
    kind = draw.choice(["test", "flag"] if depth == 0 else ["not", "and", "or", "brackets"])
    space = draw.choice([" ", "  ", "\n"])
    if kind == "flag":
        return "bonus", "row['bonus']"
    if kind == "test":
        name, sign, number = (
            draw.choice(["rank", "drafted"]),
            draw.choice(["<", "<=", ">", ">=", "==", "!="]),
            draw.randint(0, 4),
        )
        return f"{name}{space}{sign} {number}", f"row['{name}'] {sign} {number}"
    left, right = grown(draw, depth - 1), grown(draw, depth - 1)
    if kind == "not":
        return f"not{space}({left[0]})", f"(not ({left[1]}))"
    if kind == "brackets":
        return f"({left[0]})", f"({left[1]})"
    return f"({left[0]}) {kind}{space}({right[0]})", f"(({left[1]}) {kind} ({right[1]}))"


@pytest.mark.parametrize("seed", range(60))
def test_nested_conditions_mean_what_python_means(seed):
    """Against Python's own `and`, `or`, `not` on every row of a small grid."""
    draw = random.Random(seed)
    ours, python = grown(draw, draw.randint(0, 5))
    condition = parse(ours)
    for rank in range(5):
        for drafted in (0, 3):
            for bonus in (True, False):
                row = {"rank": rank, "drafted": drafted, "bonus": bonus}
                assert condition(row) is bool(eval(python, {"row": row})), ours
