"""The door of a trace: what it lets in never raises later, and costs what the bytes of its file allow."""

import json
import sys
import tracemalloc
from pathlib import Path

import pytest

from tests.hostile.traces import exercise, honest, uses
from workbench.cursor import Replay
from workbench.session import Session
from workbench.trace import Trace, schema
from workbench.trace.door import CELLS, FREE, NAMED, Door
from workbench.trace.slots import last_round

CORPUS = sorted((Path(__file__).parent / "corpus").glob("*.wb"))
RUN = {"type": "run", "schema": schema.SCHEMA, "id": "x", "prompt_ids": [1]}
ROUND = {"type": "round", "round": 0, "index": 0, "mode": "plain", "emitted": 1,
         "tokens": {"token_id": [5], "text": ["a"]}}  # fmt: skip
WRONG = {"int": "x", "id": "x", "float": "x", "bool": 3, "text": 3, "short": 3, "name": 3, "topk": 3, "runs": "x",
         "place": 1.5, "mapping": 3, "mappings": 3, "declared": 3, "columns": 3, "layers": 3, "rows": 3, "ids": 3,
         "texts": 3, "layered": "x", "pair": [1, 2, 3]}  # fmt: skip


def loaded(tmp_path, *events) -> Trace:
    path = tmp_path / "run.wb"
    path.write_text("".join(f"{e if isinstance(e, str) else json.dumps(e)}\n" for e in (RUN, *events)))
    return Trace.load(path)


def numbered(n: int, **more) -> list[dict]:
    return [{**ROUND, "round": i, "index": i, **more} for i in range(n)]


@pytest.mark.parametrize("path", CORPUS, ids=lambda path: path.stem)
def test_a_hostile_file_loads_and_what_it_claims_is_named(path):
    """Counts, layers, heads and runs of 3e8, infinities, texts in place of numbers: each stopped the app or raised."""
    trace = Trace.load(path)
    assert trace.dropped and all("\n" not in problem for problem in trace.dropped)
    for use in range(CORPUS.index(path), len(uses()), len(CORPUS)):  # all uses, some for each file
        exercise(trace, use)


@pytest.mark.parametrize("place", range(5))
def test_honest_traces_come_in_whole(place, tmp_path):
    """What the recorder writes passes with nothing dropped and nothing changed, and all that is done with it works."""
    trace = honest()[place]
    trace.save(tmp_path / "run.wb")
    again = Trace.load(tmp_path / "run.wb")
    assert again.log == trace.log and again.dropped == []
    for use in range(place, len(uses()), 10):
        exercise(again, use)


def groups_and_fields() -> list[tuple[str, schema.Column]]:
    columns = [("tokens" if group == "prompt" else group, c) for group in schema.KEYS if group != "prompt"
               for c in schema.TABLES[group] if c.name not in schema.DERIVED and c.type != "any"]  # fmt: skip
    columns += [("layers", c) for c in schema.TABLES["cache"] if c.name in schema.CACHE_KINDS or c.default is not None]
    return columns + [(kind, c) for kind, fields in schema.EVENTS.items() for c in fields if c.type != "any"]


@pytest.mark.parametrize("group, column", groups_and_fields(), ids=lambda value: getattr(value, "name", value))
def test_every_declared_column_is_checked_by_its_type(group, column):
    """A column is checked by being declared: a value of another type keeps its event outside, or is left out."""
    wrong, door = WRONG[column.type], Door()
    if group == "run":
        door.run(RUN | {column.name: wrong}, 100)
        assert column.name not in door.log[0] and column.name in door.dropped[0]
        return
    door.run(RUN, 100)
    event = json.loads(json.dumps(ROUND))
    if group in schema.KEYS:
        key = schema.KEYS[group]
        needed = [c for c in schema.TABLES[group] if c.required and c.name not in schema.DERIVED]
        event[group] = {**event.get(group, {}), **{c.name: ["x"] if c.type == "short" else [1] for c in needed}}
        event[group] |= {} if key in event[group] else {key: ["target"] if key == "phase" else [5]}
        event[group] |= {column.name: [wrong]}
    elif group == "layers":
        event["cache"] = {"target": {column.name: [wrong]}}
    elif group == "round":
        event[column.name] = wrong
    else:
        event = {"type": group, "round": 0, "reason": "x", column.name: wrong}
    door.enter((event, 10_000, 2))
    assert len(door.log) == 1 and column.name in door.dropped[0]


def test_a_round_that_is_as_declared_comes_in():
    """The control of the test above: without the wrong value its events stay."""
    door = Door()
    door.run(RUN, 100)
    door.enter((json.loads(json.dumps(ROUND)), 100, 2))
    door.enter(({"type": "end", "reason": "length"}, 30, 3))
    assert len(door.log) == 3 and not door.dropped


def test_rounds_come_once_and_in_order(tmp_path):
    """Two writers of one file gave rounds twice: `summary` could not reindex. The first of each number stays."""
    rounds = numbered(3)
    trace = loaded(tmp_path, rounds[0], rounds[2], rounds[1], rounds[2], {**rounds[2], "round": 5, "index": 1}, "")
    assert [event["round"] for event in trace.log[1:]] == [0, 2]
    assert trace.dropped == ["line 4: round 1 comes again, or too late", "line 5: round 2 comes again, or too late",
            "line 6: round 5 has token 1 again"]  # fmt: skip
    assert trace.summary()["rounds"] == 2


def test_what_is_not_finite_becomes_null_and_is_named_in_the_flags(tmp_path):
    """1e999 is infinite to Python and could not be written again."""
    line = json.dumps({**ROUND, "tokens": {**ROUND["tokens"], "p_raw": ["@"], "rank": [1]}}).replace('"@"', "1e999")
    rows = '{"type":"decision","round":0,"signals":{"mu":-1e999},"action":"cut"}'
    trace = loaded(tmp_path, line, rows, line.replace('"round": 0', '"round": 1').replace('"index": 0', '"index": 1'))
    assert not trace.dropped and trace.tokens["p_raw"].isna().all()
    assert [event.get("flags") for event in trace.log[1:]] == [["tokens.p_raw", "signals"], None, ["tokens.p_raw"]]
    trace.save(tmp_path / "again.wb")
    assert Trace.load(tmp_path / "again.wb").log == trace.log


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        ({"tokens": {"token_id": [-1], "text": ["a"]}}, "token ids"),
        ({"tokens": {"token_id": [2**31], "text": ["a"]}}, "token ids"),
        ({"tokens": {"token_id": [True], "text": ["a"]}}, "token ids"),
        ({"tokens": {"token_id": [5], "text": [["a"]]}}, "text"),
        ({"tokens": {"token_id": [5], "text": "a" * 999}}, "text is no list"),
        ({"tokens": {"token_id": [5], "text": ["a"], "source": ["x" * 999]}}, "more than 128 characters"),
        ({"tokens": {"token_id": [5], "text": ["a"], "topk_raw": [[[1, 2], [0.5]]]}}, "probabilities"),
        ({"drafts": {"node": [0]}}, "drafts.node holds values that are not whole numbers"),
        ({"drafts": {"node": [[]]}}, "drafts.node holds values that are not whole numbers"),
        ({"drafts": {"node": [1, 2, 1], "parent": [0, 1, 2]}}, "a node comes twice"),
        ({"drafts": {"node": [1], "rank": [10**400]}}, "whole numbers"),
        ({"bits": {"start": [0]}}, "layer is missing"),
        ({"forwards": {"phase": ["target"], "rows": 1}}, "rows is no list"),
        ({"forwards": {"phase": ["target", "draft"], "rows": [1]}}, "unequal length"),
        ({"prompt": {"token_id": [1, 2], "text": ["a", "b"]}}, "every token of the prompt"),
        ({"cache": {"target": {"payload": [1, None]}}}, "null"),
        ({"cache": {"target": {"payload": [1, 2], "scale": [1]}}}, "layers"),
        ({"figures": {"resident_bytes": "x"}}, "resident_bytes"),
        ({"later": [[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]}, "levels deep"),
        ({"later": 2**64}, "63 bits"),
        ({"context": 2**53}, "whole numbers"),
        ({"depth": 10**6}, "more than it can list"),
    ],
)  # fmt: skip
def test_a_round_that_cannot_be_used_stays_outside(damage, named, tmp_path):
    trace = loaded(tmp_path, {**ROUND, **damage}, {**ROUND, "round": 1, "index": 2**53 - 1})
    assert len(trace.dropped) == 1 and named in trace.dropped[0] and len(trace.rounds) == 1


def test_a_field_of_the_run_that_cannot_be_used_is_left_out_by_name(tmp_path):
    """Decoder, models or versions of another shape broke `headline`, the capsule and the tables."""
    path = tmp_path / "run.wb"
    path.write_text(json.dumps({**RUN, "decoder": 3, "models": [3], "versions": [], "verified": [1], "seed": 2**62}))
    trace = Trace.load(path)
    assert trace.run == {**RUN, "seed": 2**62} and len(trace.dropped) == 4
    exercise(trace, 0)


def test_a_file_has_only_so_many_different_names(tmp_path):
    """Each drafter, role and unknown column is a bar, a line or a column of every table."""
    rounds = numbered(300)
    for number, event in enumerate(rounds):
        event["tokens"] = {**ROUND["tokens"], "source": [f"s{number}"]}
    trace = loaded(tmp_path, *rounds)
    assert schema.NAMES / 2 < len(trace.rounds) <= schema.NAMES and "different names" in trace.dropped[0]
    trace = loaded(tmp_path, *({**event, "ms": {f"x{number}": 1.0}} for number, event in enumerate(numbered(300))))
    assert schema.NAMES / 2 < len(trace.rounds) <= schema.NAMES


def test_of_very_many_damaged_lines_the_first_are_named(tmp_path):
    trace = loaded(tmp_path, *["x"] * 5000)
    assert len(trace.dropped) == NAMED + 1 and trace.dropped[-1] == f"and {5000 - NAMED} more"


def calls_and_peak(act) -> tuple[int, int]:
    """Function calls that something takes, and the most bytes it holds meanwhile."""
    count = 0

    def called(frame, event, arg) -> None:
        nonlocal count
        count += 1

    sys.setprofile(called)
    try:
        act()
    finally:
        sys.setprofile(None)
    tracemalloc.start()
    try:
        act()
        return count, tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


CLAIMS = {
    "plain": {},
    "a cache of many heads": {"cache": {"target": {"live_slots": 9, "payload": 1}}},
    "runs of schema 1": {"forwards": {"phase": ["target"], "runs": [40], "rows": 1}},
    "a new field each": {"figures": {}},
    "nothing that parses": "x",
}


@pytest.mark.parametrize("claim", CLAIMS)
def test_a_file_four_times_as_long_costs_four_times_as_much(claim, tmp_path):
    """Calls and memory of loading, the summary and the tables that grow by claims, whatever a file claims."""
    costs = []
    for n in (40, 160):
        rounds = [CLAIMS[claim]] * n if claim[0] == "n" else numbered(n, **CLAIMS[claim])
        if claim == "a new field each":
            rounds = [{**event, "figures": {f"f{i}": 1}} for i, event in enumerate(rounds)]
        run = {**RUN, "models": [{"role": "target", "layers": 6, "kv_heads": 7}], "schema": 1 if "1" in claim else 2}
        path = tmp_path / "run.wb"
        path.write_text("\n".join(e if isinstance(e, str) else json.dumps(e) for e in (run, *rounds)) + "\n")

        def act(path=path) -> None:
            trace = Trace.load(path)
            trace.summary()
            trace.cache, trace.bits, trace.forwards  # noqa: B018

        costs.append(calls_and_peak(act))
    (calls, peak), (more_calls, more_peak) = costs
    assert more_calls < 4.4 * calls and more_peak < 4.4 * peak + 50_000


def test_tables_have_as_many_cells_as_the_bytes_allow(tmp_path):
    """Caches of 80 layers and 64 heads in rounds of 150 bytes: the first ones are kept, the others lose the cache."""
    run = {**RUN, "models": [{"role": "target", "layers": 80, "kv_heads": 64}]}
    path = tmp_path / "run.wb"
    rounds = numbered(200, cache={"target": {"live_slots": 1, "payload": 1}})
    path.write_text("\n".join(map(json.dumps, (run, *rounds))) + "\n")
    trace = Trace.load(path)
    kept = sum("cache" in event for event in trace.log)
    width = len(schema.TABLES["bits"])
    assert len(trace.rounds) == 200 and 0 < kept < 200
    assert (kept - 1) * 80 * 64 * width < FREE + CELLS * path.stat().st_size < (kept + 2) * 80 * 64 * width * 2


def test_a_cache_that_the_run_does_not_name_stays_in_a_long_trace(tmp_path):
    """Its layers were counted once more in every round, for every round: after 293 of them it was left out."""
    trace = loaded(tmp_path, *numbered(1000, cache={"memory": {"payload": 64}}))
    assert not trace.dropped and len(trace.cache) == 1000


def test_a_broken_line_among_good_ones_stays_outside_alone(tmp_path):
    """Lines are checked many at a time: a bad one, and one that is not finite, change nothing about the others."""
    rounds = numbered(200)
    spoiled = {70: {"depth": "x"}, 71: {"later": float("inf")}, 150: {"tokens": {"token_id": [-1], "text": ["a"]}}}
    for place, damage in spoiled.items():
        rounds[place] = rounds[place] | damage
    trace = loaded(tmp_path, *(json.dumps(event).replace("Infinity", "1e999") for event in rounds))
    assert [event["round"] for event in trace.log[1:]] == [n for n in range(200) if n not in (70, 150)]
    assert [problem.split(":")[0] for problem in trace.dropped] == ["line 72", "line 152"]
    assert [event["round"] for event in trace.log if event.get("flags") == ["later"]] == [71]


def test_views_and_the_app_find_the_rounds_of_a_trace_that_lacks_some(tmp_path):
    """Rounds were looked up by their place in the table: behind a lost line that is another round, or none."""
    rounds = numbered(4)
    trace = loaded(tmp_path, rounds[0], "damaged", rounds[2], rounds[3])
    assert last_round(trace, None) == 3 and last_round(trace, 2) == 2
    with pytest.raises(ValueError, match="round 1 is not in the trace"):
        last_round(trace, 1)
    assert [Replay(trace).round_at(index) for index in range(4)] == [0, 2, 3, 4]
    for use in range(0, len(uses()), 6):
        exercise(trace, use)


def test_tokens_without_texts_are_tokens_all_the_same(tmp_path):
    """A column that a damaged file lacks is empty in every view; sources without texts stopped the replay."""
    tokens = {"token_id": [5], "source": ["target"]}
    trace = loaded(tmp_path, {**ROUND, "tokens": tokens})
    assert [event["tokens"]["text"] for event in trace.steps()] == [[""]] and list(trace.tokens["text"]) == [""]
    for use in range(len(uses())):
        exercise(trace, use)


def test_a_row_is_found_where_rounds_before_it_are_lost(tmp_path):
    """The app counts the tokens that are there; the numbers in a damaged file go on as if none were lost."""
    from workbench.dashboard.visits import Branch

    trace = loaded(tmp_path, ROUND, {**ROUND, "round": 3, "index": 3, "tokens": {"token_id": [7], "text": ["b"]}})
    branch = Branch("damaged", Replay(trace))
    seen = []
    while branch.advance("round", lambda row: seen.append((row["index"], row["text"])))[0]:
        pass
    assert seen == [(0, "a"), (3, "b")]


def test_what_a_step_hands_out_is_not_the_record(toy):
    one = Session(toy, [0, 1], max_new_tokens=4)
    one.step()
    one.step()["tokens"]["token_id"].append(99)
    assert 99 not in one.trace.token_ids and len(one.trace.token_ids) == one.length


def test_forwards_need_their_phase(made_up, tmp_path):
    log = json.loads(json.dumps(made_up.record([(4, 2)]).trace.log))
    for event in log:
        if event["type"] == "round":
            event["forwards"] = {"rows": []}
    (tmp_path / "run.wb").write_text("\n".join(map(json.dumps, log)))
    trace = Trace.load(tmp_path / "run.wb")
    assert "phase is missing" in trace.dropped[0] and trace.forwards.empty and trace.tokens.empty


def test_columns_of_dotted_names_are_counted(made_up, tmp_path):
    log = json.loads(json.dumps(made_up.record([(4, 2)]).trace.log))
    event = next(event for event in log if event.get("tokens"))
    event["tokens"] |= {f"a{number}.x": [1] * event["emitted"] for number in range(500)}
    (tmp_path / "run.wb").write_text("\n".join(map(json.dumps, log)))
    assert "different names" in Trace.load(tmp_path / "run.wb").dropped[0]
