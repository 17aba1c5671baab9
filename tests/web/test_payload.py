"""The contract between a trace and the view: what is sent, in deltas or at once, in inert JSON."""

import json
import math
import re
import subprocess
import sys
from copy import deepcopy

import pytest

import workbench as wb
from tests.web import forms
from workbench import web
from workbench.errors import BadTrace
from workbench.trace import Trace, tables
from workbench.trace.schema import TABLES
from workbench.web.data import COLUMNS, SIGNALS


def received(held: dict, delta: dict) -> dict:
    """What a receiver holds after a delta, by the rule the contract states."""
    if delta["since"] == 0:
        return deepcopy(delta)
    assert delta["id"] == held["id"] and delta["since"] <= held["rounds_recorded"]
    joined = {**held, **delta, "since": 0, "first": 0, "names": held["names"] | delta["names"]}
    for table in (*COLUMNS, "slots"):
        before, after = held[table], delta[table]
        kept = sum(round < delta["since"] for round in before.get("round", ()))
        more = len(after.get("round", ()))
        joined[table] = {
            name: before.get(name, [None] * kept)[:kept] + after.get(name, [None] * more)
            for name in {**before, **after}
        }
    return joined


def test_columns_are_those_of_the_schema():
    for table, columns in COLUMNS.items():
        assert set(columns) <= {column.name for column in TABLES.get(table, TABLES["events"])}
    for of, *_ in SIGNALS.values():
        table, column = of.split(".")
        assert column in COLUMNS[table]


def test_the_payload_holds_what_the_tables_say(speculative):
    data, tokens, rounds = web.payload(speculative), speculative.tokens, speculative.rounds
    assert data["length"] == len(tokens) == len(data["tokens"]["text"]) and data["first"] == 0
    assert "".join(data["tokens"]["text"]) == speculative.text
    assert data["tokens"]["entropy_raw_nats"] == pytest.approx(tokens["entropy_raw_nats"].tolist(), rel=1e-4)
    assert data["rounds"]["cache_bytes"] == rounds["cache_bytes"].tolist()
    assert data["rounds_recorded"] == len(rounds) and data["ended"] == "length"
    fates = speculative.drafts["fate"].value_counts().to_dict()
    assert {fate: data["drafts"]["fate"].count(fate) for fate in fates} == fates
    drafted = [kind == "drafted" for kind in data["tokens"]["kind"]]
    assert sum(drafted) == rounds["accepted"].sum()


def test_every_candidate_has_a_text(speculative):
    data = web.payload(speculative)
    asked = {str(token) for dist in data["tokens"]["topk_raw"] for token in dist[0]}
    assert asked <= set(data["names"]) and not any(text.startswith("id ") for text in data["names"].values())
    taken = dict(zip(map(str, data["tokens"]["token_id"]), data["tokens"]["text"], strict=True))
    same = [
        data["names"][token] == text for token, text in taken.items() if token in data["names"] and "\ufffd" not in text
    ]
    assert sum(same) / len(same) > 0.95  # a token that completes a character holds more than its own bytes


def test_a_trace_names_the_candidates_it_knows(toy):
    trace = wb.decode(toy, [0, 1], max_new_tokens=4)
    names = web.payload(trace)["names"]
    assert names and web.payload(trace, text_of=lambda token: f"<{token}>")["names"] == {
        key: f"<{key}>" for key in names
    }


@pytest.mark.parametrize("cuts", [(1,), (2, 3, 9), tuple(range(1, 40))], ids=["one", "some", "each"])
@pytest.mark.parametrize("run", ["tree", "managed"])
def test_deltas_add_up_to_the_whole(request, run, cuts):
    """A live view that received round after round equals one that opened the finished trace; `managed` evicts and
    quantizes, so that what happened to a slot matters."""
    whole = request.getfixturevalue(run)
    growing, held = Trace(whole.log[:1]), None
    starts = [i for i, event in enumerate(whole.log) if event["type"] == "round"]
    ends, since = [*starts[1:], len(whole.log)], 0  # a round's events follow it
    for cut in (*(cut for cut in cuts if cut < len(ends)), len(ends)):
        growing.log[:] = whole.log[: ends[cut - 1]]
        delta = web.payload(growing, since)
        assert delta["rounds"]["round"] == list(range(since, cut))
        held, since = received(held, delta) if held else delta, cut
    assert held == web.payload(whole) and held["slots"]["round"]


def test_a_delta_that_starts_too_early_would_double_rows(tree):
    """The check above can fail: appending without cutting the rounds already held gives another view."""
    held, delta = web.payload(tree), web.payload(tree, since=2)
    assert received(held, delta) == held
    doubled = received({**held, "tokens": {**held["tokens"], "round": [-1] * held["length"]}}, delta)
    assert doubled["tokens"]["text"] != held["tokens"]["text"]


def test_a_delta_without_rounds_has_no_rows(tree):
    delta = web.payload(tree, since=len(tree.rounds))
    assert delta["tokens"] == {} and delta["rounds"] == {} and delta["length"] == len(tree.tokens) == delta["first"]


def test_a_delta_of_a_trace_that_lacks_rounds_starts_at_the_round_of_that_number(tree):
    """Rounds are asked for by number; where some are lost, their places are others."""
    log = [event for event in deepcopy(tree.log) if event.get("type") != "round" or event["round"] != 2]
    lacking = Trace(log)
    numbers = lacking.rounds["round"].tolist()
    assert 2 not in numbers and len(numbers) > 4
    for since in range(numbers[-1] + 2):
        found = web.payload(lacking, since)["rounds"].get("round", [])
        assert list(found) == [number for number in numbers if number >= since]


@pytest.mark.parametrize("tokens", [1, 3])
def test_level_off_and_short_runs_are_drawn(lm, tokens):
    trace = wb.decode(lm, "def f", max_new_tokens=tokens, level="off")
    data = web.payload(trace)
    assert data["length"] == tokens and "entropy_raw_nats" not in data["tokens"] and data["names"] == {}
    assert "cache_bytes" not in data["rounds"]


def test_a_delta_costs_its_own_rounds_only(tree, monkeypatch):
    """Live views ask many times a second: whatever went before is not read again."""
    read = []
    whole = tables._of
    monkeypatch.setattr(tables, "_of", lambda events, *kinds: whole(read.append(len(events)) or events, *kinds))
    web.payload(tree, len(tree.rounds) - 2)
    events = sum(event.get("round", -1) >= len(tree.rounds) - 2 or event["type"] == "end" for event in tree.log)
    assert read and max(read) <= 1 + events < len(tree.log) / 2


def test_what_a_trace_says_of_ids_is_read_on_from_where_it_was(toy):
    class Log(list):
        def __getitem__(self, place):
            found = super().__getitem__(place)
            read.append(len(found) if isinstance(place, slice) else 0)
            return found

    events, read = wb.decode(toy, [0, 1], max_new_tokens=12, ignore_eos=True).log, []
    trace = Trace(Log(events[:9]))
    assert web.payload(trace)["names"] and max(read) >= 8
    for event in events[9:-1]:
        read.clear()
        trace.log.append(event)
        assert web.payload(trace, event["round"])["names"] and max(read) <= 1


def test_the_distributions_at_the_prompt_are_columns_like_those_of_the_tokens(lm):
    trace = wb.decode(lm, "def area(r):\n    return", max_new_tokens=3, prompt_rows=True)
    data, rows = web.payload(trace), trace.prompt_tokens
    prompt = data["prompt"]
    assert prompt["index"] == list(range(-len(rows) - 1, 0)) and "".join(prompt["text"]) == trace.prompt
    assert prompt["token_id"] == trace.run["prompt_ids"]
    assert prompt["entropy_raw_nats"][0] is None  # nothing came before the first
    assert prompt["entropy_raw_nats"][1:] == pytest.approx(rows["entropy_raw_nats"].tolist(), rel=1e-4)
    asked = {str(token) for dist in prompt["topk_raw"] if dist for token in dist[0]}
    assert asked <= set(data["names"]) and set(prompt["source"]) == {"prompt"}
    assert "prompt" not in web.payload(trace, 1)


def test_a_long_prompt_with_distributions_is_cut_at_its_beginning(lm, monkeypatch):
    monkeypatch.setattr(web.data, "PROMPT_ROWS", 4)
    trace = wb.decode(lm, "def area(r):\n    return", max_new_tokens=1, prompt_rows=True)
    prompt = web.payload(trace)["prompt"]
    assert prompt["index"] == [-5, -4, -3, -2, -1] and prompt["text"][0] == "…"
    assert prompt["token_id"] == trace.run["prompt_ids"][-5:]


@pytest.mark.parametrize("run", ["tree", "managed"])
def test_the_bytes_of_a_cache_add_up(request, run):
    """The target's, its free slots and other models' are all that the rounds table counts; by hand, the full cache."""
    trace = request.getfixturevalue(run)
    data, rounds = web.payload(trace)["rounds"], trace.rounds
    parts = zip(*(data[name] for name in ("target_bytes", "free_bytes", "others_bytes")), strict=True)
    assert [sum(one) for one in parts] == (rounds["cache_bytes"] + rounds["host_bytes"]).tolist()
    model, cache = trace.run["models"][0], trace.cache[trace.cache["model"] == "target"]
    lengths = cache.groupby("round")["logical_length"].sum()
    token = model["kv_heads"] * 2 * model["head_dim"] * model["kv_bits"] / 8
    assert data["target_full_bytes"] == pytest.approx((lengths * token).tolist(), rel=1e-4)
    free = cache.groupby("round")[["pad", "staging"]].sum().sum(axis=1)
    assert data["free_bytes"] == free.tolist() and max(data["others_bytes"]) > 0


def test_decisions_are_rows_of_their_round():
    data = web.payload(forms.decisions())
    assert data["decisions"] == {"round": [2], "controller": ["budget gate"], "action": ["stop_draft"],
                                 "threshold": ["3"], "signals": ["entropy 3.41 nats"]}  # fmt: skip


def test_reads_are_sums_over_the_layers_of_the_target():
    trace = forms.reads()
    rounds, table = web.payload(trace)["rounds"], trace.reads
    for name, column in (("units_held", "held"), ("units_read", "read"), ("bytes_fetched", "bytes_fetched")):
        sums = table.groupby("round")[column].sum()
        assert rounds[name] == [sums.get(round) for round in rounds["round"]]
    log = deepcopy(trace.log)
    log[-2]["reads"]["model"] = ["target", "draft"]
    assert web.payload(Trace(log))["rounds"]["units_read"][-1] == 8


def test_forced_tokens_and_branches_are_marks(lm):
    session = wb.Session(lm, "def f(x):", max_new_tokens=6)
    for _ in range(4):
        session.step()
    branch = session.fork(at=2, token=" return")
    branch.step()
    marks = web.payload(branch.trace)["marks"]
    assert marks == [{"index": 2, "text": "forced token"}]
    narrow = session.fork(at=3, cache=wb.Stack(quantizer=wb.KIVI(bits=4)))
    assert web.payload(narrow.trace)["marks"] == [{"index": 3, "text": "from here: autoregressive, cache kivi"}]
    assert web.payload(session.trace)["marks"] == [] and "marks" not in web.payload(branch.trace, 1)


def test_a_column_of_a_plug_in_comes_where_it_holds_numbers(tree):
    log = deepcopy(tree.log)
    for event in log:
        if event["type"] == "round" and event["emitted"]:
            n = event["emitted"]
            event["tokens"] |= {
                "their.surprise": [0.5] * n,
                "words": ["a"] * n,
                "flags": [True] * n,
                "gaps": [None] * n,
            }
            event["tokens"]["whole"] = [*range(n)]
    tokens = web.payload(Trace(log))["tokens"]
    assert tokens["their.surprise"] == [0.5] * len(tokens["round"]) and tokens["whole"][0] == 0
    assert not {"words", "flags", "gaps"} & tokens.keys()


@pytest.mark.parametrize("form", forms.FORMS)
def test_traces_by_hand_are_traces(form, tmp_path):
    """What the tests of the forms draw is let in at the door of a file, whole."""
    trace = forms.FORMS[form]()
    back = wb.Trace.load(trace.save(tmp_path / "run.wb") or tmp_path / "run.wb")
    assert back.log == trace.log and not back.dropped


def test_a_column_that_holds_no_numbers_is_refused(tree):
    log = deepcopy(tree.log)
    next(event for event in log if event["type"] == "round" and event["emitted"])["tokens"]["rank"] = "1; alert()"
    with pytest.raises(BadTrace, match="tokens.rank holds values that are not numbers"):
        web.payload(Trace(log))


def test_a_run_without_tokens_is_drawn(tree):
    data = web.payload(Trace(tree.log[:1]))
    assert data["length"] == data["rounds_recorded"] == 0 and data["tokens"] == {}


def test_json_is_inert_and_finite(hostile):
    text = web.to_json(web.payload(hostile))
    assert text.isascii() and not set("<>&") & set(text) and "NaN" not in text
    assert json.loads(text) == web.payload(hostile)
    with pytest.raises(ValueError):
        web.to_json({"value": math.nan})


def test_the_strip_without_a_script_is_inert(hostile, speculative):
    assert "<script" not in web.plain(hostile) and "<img" not in web.plain(hostile)
    shown = re.sub(r"<[^>]*>", "", web.plain(speculative).split("</pre>")[0])
    assert "heappush" in shown or speculative.text[:20] in shown


def test_the_module_is_one_text_without_a_network():
    whole, body = web.module(), web.module(export=False)
    assert whole.count("export ") == 1 and "export" not in body and "import " not in body
    for word in (
        "http",
        "innerHTML",
        "insertAdjacentHTML",
        "document.write",
        "eval(",
        "fetch(",
        "</script",
        "<!--",
    ):
        assert word not in whole and word not in web.css()
    assert not re.search(r"//\w|url\((?!#)", whole + web.css())  # no address without a scheme, none but in the page


def test_the_module_stays_small():
    assert len(web.module()) < 100_000 and len(web.css()) < 25_000


def test_every_part_of_the_module_is_short():
    parts = {path.relative_to(web.FOLDER).as_posix(): path for path in web.FOLDER.rglob("*.js")}
    assert parts.keys() == {*web.PARTS, *web.SCRIPTS}
    for path in parts.values():
        assert len(path.read_text(encoding="utf-8").splitlines()) < 400, path


def test_what_a_part_imports_is_there_and_used():
    """The parts are joined without their imports, which would hide a wrong one."""
    texts = {name: (web.FOLDER / name).read_text(encoding="utf-8") for name in web.PARTS}
    imports = re.compile(r"^import \{ ([^}]*) \} from \"(\.\.?/[\w-]+\.js)\";\n", re.MULTILINE)
    for name, text in texts.items():
        for names, source in imports.findall(text):
            other = (web.FOLDER / name).parent.joinpath(source).resolve().relative_to(web.FOLDER.resolve()).as_posix()
            for one in names.split(", "):
                assert re.search(rf"^export (?:const|function) {one}\b", texts[other], re.MULTILINE), f"{name}: {one}"
                assert re.search(rf"(?<!\w\.)(?<!\w){one}\b", imports.sub("", text)), (
                    f"{name} imports {one} for nothing"
                )


def test_the_data_needs_no_torch():
    script = "import sys, workbench.web, workbench.report.capsule; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.stdout == "False\n", done.stderr[-2000:]
