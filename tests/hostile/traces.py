"""Hostile traces and capsules: honest ones with something in them changed, and everything that is done with a trace.

`CORPORA` is what `python -m tests.hostile` draws from. What gets past `Trace.load` never raises again: `exercise` does
with a trace all that the package offers, by its own lists (`schema.TABLES`, `views.__all__`), so that what is new there
is tried here by itself.
"""

import base64
import contextlib
import copy
import gzip
import inspect
import io
import json
import random
import tempfile
import warnings
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

import workbench as wb
from workbench import cli, views, web
from workbench.cursor import Replay
from workbench.dashboard import screen
from workbench.dashboard.paying import paying
from workbench.dashboard.visits import Branch, Visit
from workbench.errors import BadInput
from workbench.experiments.headroom import headroom
from workbench.report import headline
from workbench.report.capsule import capsule_of
from workbench.report.terminal import table
from workbench.trace import Recorder, Step, Trace
from workbench.trace.schema import EVENTS, TABLES
from workbench.views.static import svg
from workbench.web.data import PHASES

__all__ = ["CORPORA", "exercise", "honest", "uses"]

# -- what is done with a trace --------------------------------------------------------------------------------------

OF_0_1 = Path(__file__).parents[1] / "unit" / "trace" / "of_0_1"
Use = Callable[[Trace, Path], Any]
HERE = ("__init__", "load", "tables_from_parquet", "widget")


def _read(name: str) -> Use:
    return lambda trace, folder: getattr(trace, name)


def _figure(make: Callable[[Trace], Any]) -> Use:
    def use(trace: Trace, folder: Path) -> None:
        made = make(trace)
        for figure in made if isinstance(made, (tuple, list)) else [made]:
            if hasattr(figure, "layout"):
                json.loads(figure.to_json())
                views.as_table(figure), views.description(figure), svg(figure)

    return use


def _views() -> dict[str, Use]:
    """All that `workbench.views` offers for one trace or two, with each of its further choices."""
    found: dict[str, Use] = {}
    for name in views.__all__:
        view = getattr(views, name)
        wanted = list(inspect.signature(view).parameters) if inspect.isfunction(view) else []
        if wanted[:1] in (["trace"], ["traces"]):
            found[f"views.{name}"] = _figure(view)
        elif wanted[:2] == ["a", "b"]:
            found[f"views.{name}"] = _figure(lambda trace, view=view: view(trace, trace))
            found[f"views.{name} with another"] = _figure(lambda trace, view=view: view(trace, honest()[0]))
    for by in ("drafter", "entropy"):
        found[f"views.acceptance by {by}"] = _figure(lambda trace, by=by: views.acceptance(trace, by=by))
    for view in (views.draft_tree, views.cache_map, views.bit_map):
        found[f"views.{view.__name__} of every round"] = _figure(
            lambda trace, view=view: [view(trace, int(number)) for number in trace.rounds["round"].head(8)]
        )
    found["views.break_even with itself"] = _figure(lambda trace: views.break_even(trace, trace))
    found["views.headroom"] = _figure(lambda trace: _where_recorded(lambda: views.headroom(headroom(trace))) or [])
    return found


def _where_recorded(act: Callable[[], Any]) -> Any:
    """What needs level `full` says so in one line where the trace was recorded at another."""
    try:
        return act()
    except BadInput:
        return None


def _again(trace: Trace, folder: Path) -> None:
    """Saved and loaded, it is the same, with nothing dropped."""
    for path in (folder / "again.wb", folder / "again.html"):
        (trace.save if path.suffix == ".wb" else trace.capsule)(path)
        again = Trace.load(path)
        assert again.log == trace.log and not again.dropped, again.dropped


def _parquet(trace: Trace, folder: Path) -> None:
    trace.to_parquet(folder / "tables")
    Trace.tables_from_parquet(folder / "tables")


def _replay(trace: Trace, folder: Path) -> None:
    """The app's cursor over an opened trace: every step forward, phase by phase, and what the page is sent of each."""
    branch = Branch("a", Replay(trace))
    for by in ("phase", "round", "token"):
        branch.jump(0)
        for _ in range(12):
            if not branch.advance(by, lambda row: False)[0]:
                break
    for number in trace.rounds["round"].head(12):
        for phase in range(len(PHASES)):
            web.to_json(web.payload(trace, upto=(int(number), phase)))


def _shown(trace: Trace, folder: Path) -> None:
    """All that the app's page shows of an opened trace."""
    visit = Visit("a")
    visit.add("a", Replay(trace))
    visit.branch.jump(visit.branch.run.length)
    screen.panel(visit)
    paying(visit)


def _command(*words: str) -> Use:
    def use(trace: Trace, folder: Path) -> None:
        trace.save(folder / "run.wb")
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = cli.main([words[0], str(folder / "run.wb"), *words[1:]])
        assert code == 0, err.getvalue()

    return use


@cache
def uses() -> dict[str, Use]:
    """Name -> what to do with a trace."""
    found: dict[str, Use] = {}
    for name in [*TABLES, *(n for n in dir(Trace) if not n.startswith("_") and n not in (*HERE, *TABLES))]:
        if not callable(getattr(Trace, name)):
            found[name] = _read(name)
    found |= {name: (lambda trace, folder, name=name: str(getattr(trace, name)())) for name in ("summary", "last_rows")}
    found |= {
        "steps": lambda trace, folder: list(trace.steps()),
        "repr": lambda trace, folder: (repr(trace), trace._repr_mimebundle_()),
        "headline": lambda trace, folder: headline.headline(trace),
        "run line": lambda trace, folder: headline.run_line(trace),
        "payload": lambda trace, folder: [web.to_json(web.payload(trace, since)) for since in (0, 1)],
        "plain": lambda trace, folder: web.plain(trace).encode(),
        "capsule": lambda trace, folder: capsule_of(trace).encode(),
        "again": _again,
        "parquet": _parquet,
        "perfetto": lambda trace, folder: trace.to_perfetto(folder / "perfetto.json"),
        "divergence": lambda trace, folder: _where_recorded(lambda: trace.divergence(trace)),
        "app": _replay,
        "page": _shown,
        "terminal": lambda trace, folder: [table(name, getattr(trace, name), 0) for name in TABLES],
        "show": _command("show"),
        "show --json": _command("show", "--json"),
        "replay": _command("replay"),
        "replay --by token": _command("replay", "--by", "token"),
        "capsule verb": _command("capsule"),
    }
    return found | _views()


def exercise(trace: Trace, only: int | None = None) -> None:
    """Do all that can be done with a trace, or one thing and the figures of its summary. Nothing of it may raise."""
    chosen = uses()
    if only is not None:
        names = list(chosen)
        chosen = {name: chosen[name] for name in ("summary", names[only % len(names)])}
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.filterwarnings("error", module=r"workbench\b")
        for name, use in chosen.items():
            try:
                use(trace, Path(folder))
            except Exception as error:
                raise AssertionError(f"{name} of a trace that was let in: {type(error).__name__}: {error}") from error


# -- honest traces --------------------------------------------------------------------------------------------------


@cache
def honest() -> list[Trace]:
    """Runs of several decoders, levels and caches on the toy model, and a made-up one with the columns it lacks."""
    lm, draft = wb.ToyModel(seed=0), wb.ToyModel(seed=1)
    wb.register_model("hostile-draft", draft)
    prompt = [1, 2, 3, 1, 2, 3]
    chain = wb.Speculative(wb.DraftModel("hostile-draft"))
    tree = wb.Speculative(wb.DraftModel("hostile-draft"), shape=wb.FixedTree(branching=(2, 1)))
    runs = [
        wb.decode(lm, prompt, chain, max_new_tokens=8, seed=1, temperature=0.8, ignore_eos=True),
        wb.decode(lm, prompt, tree, max_new_tokens=6, seed=2, temperature=0.8, level="full", prompt_rows=True),
        wb.decode(lm, prompt, wb.Mirostat(), max_new_tokens=5, seed=3, temperature=1.0, force=[1, 2]),
        wb.decode(lm, prompt, wb.Speculative(wb.CopySpec()), max_new_tokens=6, level="off", ignore_eos=True),
    ]
    return [*runs, _made_up()]


def _made_up() -> Trace:
    """Two layers and two KV heads under a policy and a quantizer, on the device and on the host."""
    models = [{"role": "target", "name": "m", "layers": 2, "kv_heads": [2, 1], "head_dim": [4, 2], "kv_bits": 16}]
    recorder = Recorder(
        {"id": "made-up", "models": models, "prompt_ids": [5, 6], "prompt_text": "ab", "guarantee": "exact"}
    )
    for place in range(3):
        live = 40 + place
        recorder.round(
            Step(
                "plain", {"token_id": [place], "source": ["target"], "entropy_raw_nats": [1.0]}, [f" {place}"],
                forwards={"phase": ["target"], "model": ["target"], "rows": [1], "wall_ms": [1.5],
                          "weight_bytes": [100], "kv_read_bytes": [10]},
                ms={"target": 1.5, "cache": 0.5, "total": 2.5}, emitted=1, context=live,
                cache={"target": {"live_slots": [live, 32], "logical_length": [live, live], "payload": [640, 512],
                                  "scale": [0, 16], "evicted": [0, 1], "tier": ["device", "host"],
                                  "host_bytes": [0, 528], "bits_nominal": [16, 4]}},
                bits={"model": ["target"] * 2, "layer": [1, 1], "head": [0, 0], "start": [0, 32 + place],
                      "length": [32, 1], "bits_k": [4, 2], "bits_v": [4, 4], "codec": ["page"] * 2,
                      "reason": ["quantize"] * 2, "err_rms_k": [0.1, None], "err_rms_v": [0.2, 0.3]},
                cache_events=[
                    {"model": "target", "layer": 1, "head": 0, "op": "evict", "positions": [[place, 1]], "bytes": 8},
                    {"model": "target", "op": "merge", "positions": [[2, 2], [8, 1]], "destination": [8], "bits": 4.0},
                    {"model": "target", "op": "offload", "positions": [9], "destination": "host", "importance": [0.5]},
                ],
                decisions=[{"controller": "c", "signals": {"mu": 1.0}, "action": "cut", "threshold": 0.5}],
                figures={"mu_bits": 3.0, "resident_bytes": 2000},
            )
        )  # fmt: skip
    recorder.mark("breakpoint", {"index": 1}, "entropy > 3")
    recorder.end("length")
    return recorder.trace


# -- what is changed in them ----------------------------------------------------------------------------------------

RAW = {"@inf@": "1e999", "@-inf@": "-1E+999", "@huge@": "9" * 5000, "@deep@": "[" * 3000 + "]" * 3000,
       "@40@": "[" * 40 + "]" * 40, "@long@": f'"{"x" * 3000}"', "@exact@": "1" + "0" * 30}  # fmt: skip
VALUES: list[Any] = [
    None, True, False, -1, 0, 1, 2, 7, 1.5, -0.0, 5e-324, 1e300, 3e8, 300_000_000, 2**31, 2**53, 2**63 - 1, 2**63,
    2**64, 10**400, "", "x", "target", "\ud800", "</script>", "nan", [], [1], [None], [[1]], [[1, 2]], [1, 2, 3],
    [[[0, 300_000_000]]], [[0, 300_000_000]], ["a", "b"], [1.5, None], {}, {"name": 1}, {"settings": 3}, {"a": {}},
    [{}], float("nan"), float("inf"), *RAW,
]  # fmt: skip


def _places(value: Any, found: list[tuple[Any, Any]]) -> list[tuple[Any, Any]]:
    """(container, key) of everything inside."""
    keys = value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    for key in keys:
        found.append((value, key))
        _places(value[key], found)
    return found


def _change(draw: random.Random, events: list[Any]) -> None:
    """One thing somewhere: another value, a name gone or new, a line gone, twice, or elsewhere."""
    line = draw.randrange(len(events))
    act = draw.choice(["value"] * 8 + ["swap", "swap", "gone", "new", "new", "lose", "twice", "move", "grow"])
    places = _places(events[line], [])
    if act == "twice":
        events.insert(draw.randrange(len(events) + 1), copy.deepcopy(events[line]))
    elif act == "lose" and len(events) > 1:
        del events[line]
    elif act == "move":
        events.insert(draw.randrange(len(events)), events.pop(line))
    elif places:
        inside, key = draw.choice(places)
        if act == "swap":
            other, at = draw.choice(_places(draw.choice(events), []) or places)
            inside[key] = copy.deepcopy(other[at])
        elif act == "gone":
            del inside[key]
        elif act == "new" and isinstance(inside, dict):
            names = [c.name for group in (*EVENTS.values(), *TABLES.values()) for c in group]
            inside[draw.choice([*names, "runs", "chain", "x"])] = copy.deepcopy(draw.choice(VALUES))
        elif act == "grow" and isinstance(inside[key], list):
            inside[key] = inside[key] * draw.choice([2, 3, 50])
        else:
            inside[key] = copy.deepcopy(draw.choice(VALUES))


def _written(events: list[Any]) -> bytes:
    text = "\n".join(json.dumps(event, ensure_ascii=True) for event in events) + "\n"
    for mark, raw in RAW.items():
        text = text.replace(json.dumps(mark), raw)
    return text.encode()


def _spoil(draw: random.Random, content: bytes) -> bytes:
    """Bytes changed, lost or put in."""
    for _ in range(draw.randrange(1, 4)):
        at = draw.randrange(len(content) + 1)
        piece = draw.choice(
            [b"", b"\n", b"\r\n", b"\x00", b"\xff", b"\xef\xbb\xbf", b"{", b'"', b"9" * 400, b"<script>"]
        )
        content = content[:at] + piece + content[at + draw.choice([0, 0, 1, 5, 200]) :]
    return content


def _mutated(seed: int) -> bytes:
    """A trace file; the seed says which honest one, and what is changed."""
    draw = random.Random(seed)
    events = copy.deepcopy(draw.choice(_logs()))
    for _ in range(draw.choice([1, 1, 1, 2, 3, 6])):
        _change(draw, events)
    content = _written(events)
    content = gzip.compress(content, 1) if draw.random() < 0.2 else content
    return _spoil(draw, content) if draw.random() < 0.15 else content


@cache
def _logs() -> list[list[Any]]:
    """Those of honest traces, and of traces that version 0.1 wrote, as they are in the file."""
    old = [path.read_text().splitlines() for path in sorted(OF_0_1.glob("*.wb")) if path.stat().st_size < 40_000]
    return [*(trace.log for trace in honest()), *([json.loads(line) for line in lines] for lines in old)]


@cache
def _page() -> str:
    return capsule_of(honest()[0])


def _capsule(seed: int) -> bytes:
    """A capsule: with another trace in it, written again by a browser, or spoiled."""
    draw = random.Random(seed)
    before, rest = _page().split('<script type="application/gzip" id="workbench-trace">')
    packed, after = rest.split("</script>", 1)
    if draw.random() < 0.7:
        content = draw.choice([lambda: _mutated(seed), lambda: b"\0" * draw.choice([10, 10**6, 10**8])])()
        packed = base64.b64encode(gzip.compress(content, 1)).decode()
    tag = draw.choice(['id="workbench-trace"', "type='application/gzip' id='workbench-trace'", "ID=workbench-trace",
                       'id="workbench-trace" type="application/gzip" data-x=""', 'id="other"', "id"])  # fmt: skip
    wide = draw.choice([0, 0, 64])
    packed = "\r\n".join(packed[i : i + wide] for i in range(0, len(packed), wide)) if wide else packed
    text = f"{before}<script {tag}>{packed}</script>{after}"
    text = text.replace(
        "<!doctype html>", draw.choice(["<!doctype html>", "<!DOCTYPE html>", "<!-- saved -->\n<html>", ""])
    )
    content = text.encode()
    return _spoil(draw, content) if draw.random() < 0.4 else content


# -- the corpora ----------------------------------------------------------------------------------------------------


def _tried(content: bytes, use: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "file"
        path.write_bytes(content)
        trace = Trace.load(path)  # a WorkbenchError is an answer
        for problem in trace.dropped:
            assert "\n" not in problem
    exercise(trace, use)


def _parquet_tried(drawn: tuple[int, int]) -> None:
    """Parquet files with another table's content, or spoiled."""
    seed, _ = drawn
    draw = random.Random(seed)
    with tempfile.TemporaryDirectory() as folder:
        draw.choice(honest()).to_parquet(folder)
        path, other = (Path(folder) / f"{draw.choice(list(TABLES))}.parquet" for _ in range(2))
        path.write_bytes(other.read_bytes() if draw.random() < 0.3 else _spoil(draw, path.read_bytes()))
        Trace.tables_from_parquet(folder)


_SEEDS = st.tuples(st.integers(0, 2**63), st.integers(0, 2**16))
CORPORA: dict[str, tuple[st.SearchStrategy, Callable[[Any], None]]] = {
    "traces": (_SEEDS, lambda drawn: _tried(_mutated(drawn[0]), drawn[1])),
    "capsules": (_SEEDS, lambda drawn: _tried(_capsule(drawn[0]), drawn[1])),
    "parquet tables": (_SEEDS, _parquet_tried),
}
