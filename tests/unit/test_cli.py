"""The command line, called in process: what it prints, where, and its exit codes."""

import io
import json
import re
import subprocess
import sys
from types import SimpleNamespace

import pytest

from workbench.cli import main
from workbench.members import MEMBERS
from workbench.speculation.heads import weights
from workbench.trace import Trace

RUN = ["run", "def f(x):", "--max-new-tokens", "6"]


@pytest.fixture
def call(capsys):
    """Call the command line; gives exit code, stdout, stderr."""

    def run(*words: str) -> tuple[int, str, str]:
        capsys.readouterr()
        code = main([str(word) for word in words])
        return code, *capsys.readouterr()

    return run


@pytest.fixture
def refused(call):
    """Call the command line, which must refuse: exit code 2, nothing on stdout, one line on stderr; gives the line."""

    def run(*words: str) -> str:
        code, out, err = call(*words)
        assert (code, out) == (2, "")
        assert err.startswith("workbench: ") and err.count("\n") == 1, err
        return err

    return run


@pytest.fixture
def saved(made_up, tmp_path):
    """A made-up trace file of three rounds."""
    made_up.record([(4, 2), (4, 4), (4, 0)], out=tmp_path / "run.wb").end("length")
    return tmp_path / "run.wb"


# -- run ----------------------------------------------------------------------------------------------------------


def test_run_prints_the_text_and_writes_the_trace(call, tmp_path):
    out = tmp_path / "run.wb"
    code, text, facts = call(
        *RUN, "--decoder", "speculative", "--set", "shape.length=3", "--set", "drafter=copyspec", "--out", out
    )
    trace = Trace.load(out)
    assert code == 0 and len(trace.token_ids) == 6 and not trace.dropped
    assert text == trace.text + "\n"
    assert trace.run["decoder"]["settings"]["shape"]["settings"]["length"] == 3
    assert trace.end["reason"] == "length"
    for word in ("tokens / target forward", "accepted", "mean entropy", "cache", "bits / element", "exact"):
        assert word in facts


def test_run_takes_every_sampling_setting_and_repeats_itself(call, tmp_path):
    words = [*RUN, "--temperature", "0.9", "--top-k", "50", "--top-p", "0.95", "--min-p", "0.01", "--typical-p", "0.99"]
    runs = [call(*words, "--seed", "7", "--json")[1] for _ in range(2)]
    texts = [json.loads(run)["text"] for run in runs]
    assert texts[0] == texts[1] != json.loads(call(*words, "--seed", "8", "--json")[1])["text"]
    call(*words, "--out", tmp_path / "run.wb", "--quiet")
    assert Trace.load(tmp_path / "run.wb").run["sampling"] == {
        "temperature": 0.9, "top_k": 50, "top_p": 0.95, "min_p": 0.01, "typical_p": 0.99, "processors": [],
    }  # fmt: skip


def test_run_quiet_prints_the_text_alone(call):
    code, text, facts = call(*RUN, "--quiet")
    assert code == 0 and text.strip() and facts == ""


def test_run_reads_the_prompt_from_a_file_and_from_standard_input(call, tmp_path, monkeypatch):
    (tmp_path / "prompt.txt").write_text("def f(x):")
    plain = call(*RUN, "--quiet")[1]
    words = ["--max-new-tokens", "6", "--quiet"]
    assert call("run", "--prompt-file", tmp_path / "prompt.txt", *words)[1] == plain
    monkeypatch.setattr(sys, "stdin", io.StringIO("def f(x):"))
    assert call("run", "--prompt-file", "-", *words)[1] == plain


def test_run_stops_where_a_condition_holds(call, tmp_path):
    out = tmp_path / "run.wb"
    code, _, _ = call("run", "def f(x):", "--max-new-tokens", "40", "--until", "index >= 3", "--out", out)
    trace = Trace.load(out)
    assert code == 0 and len(trace.token_ids) == 4
    assert (trace.end["reason"], trace.end["message"]) == ("stop", "until index >= 3")


def test_run_scores_forced_ids(call, tmp_path):
    call(*RUN, "--force-ids", "5,6,7", "--out", tmp_path / "run.wb")
    assert Trace.load(tmp_path / "run.wb").token_ids == [5, 6, 7]


def test_ctrl_c_keeps_the_trace_and_says_130(call, tmp_path, monkeypatch):
    from workbench.session import Session

    whole, rounds = Session.run, []

    def interrupted(session, *args, **named):
        rounds.append(1)
        if len(rounds) > 2:
            raise KeyboardInterrupt
        return whole(session, *args, **named)

    monkeypatch.setattr(Session, "run", interrupted)
    code, _, _ = call(*RUN, "--out", tmp_path / "run.wb")
    trace = Trace.load(tmp_path / "run.wb")
    assert code == 130 and len(trace.token_ids) == 2 and trace.end["reason"] == "interrupted"


def test_terminal_control_characters_of_the_text_are_escaped():
    from workbench.report.terminal import escaped

    assert escaped("a\x1b[2J\r\u202eb\n\tü") == "a\\x1b[2J\\r\\u202eb\n\tü"


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--decoder", "speculatve"], "unknown decoder 'speculatve'"),
        (["--decoder", "speculative", "--set", "shap.length=4"], "no parameter 'shap.length'"),
        (["--decoder", "speculative", "--set", "shape.length=0"], "expected an integer in [1, 64], got 0"),
        (["--decoder", "speculative", "--set", "shape.length=four"], "expected an integer in [1, 64], got 'four'"),
        (["--decoder", "speculative", "--set", "drafter=nobody"], "unknown drafter 'nobody'"),
        (["--set", "shape.length"], "expected name=value"),
        (["--temperature", "-1"], "temperature"),
        (["--top-p", "1.5"], "expected a number in (0, 1], got 1.5"),
        (["--top-k", "many"], "--top-k"),
        (["--seed", "-3"], "seed"),
        (["--level", "loud"], "level: expected one of off, default, full"),
        (["--max-new-tokens", "0"], "max_new_tokens"),
        (["--until", "entrop > 3"], "did you mean 'entropy'?"),
        (["--force-ids", "1,x"], "expected integers"),
        (["--force-ids", "999999"], "id 999999"),
        (["--model", "./no/such/folder"], "no model directory"),
        (["--dtype", "int3"], "unknown dtype 'int3'"),
        (["--device", "abacus"], "abacus"),
        (["--chat"], "no chat template"),
        (["--decoder", "mirostat", "--top-p", "0.5"], "mirostat"),
        (["--frobnicate"], "--frobnicate"),
        (["--prompt-file", "prompt.txt"], "not both"),
    ],
)
def test_run_refuses_bad_input_in_one_line(refused, words, line):
    assert line in refused(*RUN, *words)


def test_run_refuses_prompts_that_cannot_work(refused, tmp_path):
    assert "empty" in refused("run", "")
    assert "expected a prompt" in refused("run")
    assert "context" in refused("run", "x = 1\n" * 3000)
    assert "expected a text file" in refused("run", "--prompt-file", tmp_path / "none.txt")
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    assert "UTF-8" in refused("run", "--prompt-file", tmp_path / "latin.txt")


def test_run_does_not_write_over_a_file(refused, call, saved):
    before = saved.read_bytes()
    assert "exists already" in refused(*RUN, "--out", saved)
    assert saved.read_bytes() == before
    assert call(*RUN, "--out", saved, "--overwrite", "--quiet")[0] == 0
    assert len(Trace.load(saved).token_ids) == 6


def test_run_refuses_a_folder_that_is_not_there(refused, tmp_path):
    assert "choose an existing folder" in refused(*RUN, "--out", tmp_path / "no" / "run.wb")


# -- list ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "names"),
    [
        ("decoders", ["autoregressive", "entropy_adaptive", "mirostat", "speculative"]),
        ("drafters", ["copyspec", "draft_model"]),
        ("shapes", ["confidence", "fixed", "tree"]),
        ("verifiers", ["greedy", "seeded", "rejection"]),
        ("models", ["embedded", "embedded-draft"]),
    ],
)
def test_list_names_every_member(call, kind, names):
    code, out, _ = call("list", kind)
    found = [line.split()[0] for line in out.splitlines()]
    assert code == 0 and set(names) <= set(found)


def test_list_with_a_name_shows_parameters_bounds_and_defaults(call):
    shape = call("list", "shapes", "fixed")[1]
    assert all(word in shape for word in ("length", "an integer in [1, 64]", "tokens", "default 4"))
    decoder = call("list", "decoders", "speculative")[1]
    assert "one of aded, copyspec, draft_model" in decoder and "default seeded" in decoder


def test_list_names_what_cannot_go_together(call):
    lines = call("list", "refusals")[1].splitlines()
    assert any(line.split()[:2] == ["copyspec", "tree"] and "drafts one chain" in line for line in lines)
    assert all("kseq" in line for line in call("list", "refusals", "kseq")[1].splitlines())


def test_verify_gives_a_verdict_and_its_exit_code(call):
    code, text, _ = call("verify", "--decoder", "speculative", "--set", "shape.length=2", "--tokens", "8")
    assert code == 0 and "the guarantee holds" in text
    found = json.loads(call("verify", "--decoder", "autoregressive", "--tokens", "4", "--json")[1])
    assert found["badge"] in ("exact", "seeded") and found["holds"] is True


def test_list_names_policies_and_quantizers(call):
    for kind, family in (("policies", "policy"), ("quantizers", "quantizer")):
        found = [line.split()[0] for line in call("list", kind)[1].splitlines()]
        assert found == sorted(name for known, name, *_ in MEMBERS if known == family)


def test_list_refuses_unknown_names(refused):
    assert "did you mean 'mirostat'?" in refused("list", "decoders", "mirostatt")
    assert "no model is called" in refused("list", "models", "gigantic")
    assert "invalid choice" in refused("list", "colours")


# -- show and replay ------------------------------------------------------------------------------------------------


def test_show_prints_figures_text_and_rounds(call, saved):
    code, out, err = call("show", saved)
    trace = Trace.load(saved)
    assert code == 0 and err == ""
    assert trace.text in out and "6 of 12 (50%)" in out and "chain" in out


@pytest.mark.parametrize("name", ["tokens", "rounds", "drafts", "forwards", "cache", "bits", "events"])
def test_show_prints_every_table(call, saved, name):
    code, out, _ = call("show", saved, "--table", name, "--rows", "2")
    frame = getattr(Trace.load(saved), name)
    assert code == 0
    assert f"… {len(frame) - 2} more rows" in out if len(frame) > 2 else "more rows" not in out


def test_show_writes_json_and_parquet(call, saved, tmp_path):
    code, out, _ = call("show", saved, "--json", "--parquet", tmp_path / "tables")
    assert code == 0 and json.loads(out)["summary"]["num_accepted_tokens"] == 6
    assert Trace.tables_from_parquet(tmp_path / "tables")["tokens"].equals(Trace.load(saved).tokens)


def test_show_reads_what_is_left_of_a_damaged_trace_and_names_the_rest(call, saved):
    saved.write_bytes(saved.read_bytes()[:-20])
    code, out, err = call("show", saved)
    assert code == 0 and "chain" in out
    assert err == f"dropped from {saved}: line 6: cut off\n"


@pytest.mark.parametrize("command", ["show", "replay"])
def test_traces_that_cannot_be_read_are_refused_in_one_line(refused, command, tmp_path, saved):
    assert "cannot read" in refused(command, tmp_path / "none.wb")
    (tmp_path / "text.wb").write_text("hello\n")
    assert "is not a trace" in refused(command, tmp_path / "text.wb")
    head, *rest = saved.read_text().splitlines()
    (tmp_path / "new.wb").write_text("\n".join([json.dumps({**json.loads(head), "schema": 99}), *rest, ""]))
    assert "has schema 99" in refused(command, tmp_path / "new.wb")


def test_show_refuses_bad_options(refused, saved):
    assert "--rows" in refused("show", saved, "--rows", "-1")
    assert "invalid choice: 'birds'" in refused("show", saved, "--table", "birds")
    assert "choose a folder you may write to" in refused("show", saved, "--parquet", saved / "inside")


def test_replay_marks_what_was_drafted_kept_and_refused(call, saved):
    code, out, _ = call("replay", saved)
    _, prefill, first, whole, none = out.splitlines()
    assert code == 0 and "prefill" in prefill
    assert "2/4" in first and first.count("[") == 2 and first.count("~ ab~") == 2 and "!" in first
    assert whole.count("[") == 4 and whole.rstrip().endswith("+") and "~" not in whole
    assert "[" not in none and none.count("~ ab~") == 4
    assert "\x1b" not in out


def test_replay_by_token_gives_the_text_with_marks(call, saved):
    _, out, _ = call("replay", saved, "--by", "token")
    body = out.split("\n", 1)[1]
    trace = Trace.load(saved)
    assert "".join(c for c in body if c not in "[]+!\n") == trace.prompt + trace.text


def test_replay_keeps_the_recorded_pace(saved, monkeypatch):
    from workbench.report import terminal

    waits = []
    monkeypatch.setattr(terminal, "time", SimpleNamespace(sleep=waits.append))
    terminal.replay(Trace.load(saved), io.StringIO(), speed=2.0)
    recorded = [event["ms"]["total"] for event in Trace.load(saved).steps()]
    assert waits == pytest.approx([ms / 2000 for ms in recorded])


def test_replay_uses_colours_where_asked(saved):
    from workbench.report.terminal import replay

    replay(Trace.load(saved), out := io.StringIO(), speed=float("inf"), colour=True)
    assert "\x1b[32m" in out.getvalue() and "\x1b[0m" in out.getvalue()


def test_replay_refuses_a_pace_of_nothing(refused, saved):
    for speed in ("0", "-1", "nan"):
        assert "expected a number above 0" in refused("replay", saved, "--speed", speed)


def test_show_and_replay_do_without_torch(saved):
    """They are for machines that cannot run the model, and have to be quick."""
    code = (
        "import sys; from workbench.cli import main\n"
        f"assert main(['show', {str(saved)!r}]) == main(['replay', {str(saved)!r}]) == 0\n"
        "assert not {'torch', 'transformers', 'gradio', 'plotly'} & set(sys.modules), 'heavy imports'"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


# -- compare, lab, the whole ----------------------------------------------------------------------------------------


def test_compare_prints_the_arms_side_by_side(call):
    words = ["compare", "def f(x):", "--max-new-tokens", "6", "--arm", "plain=autoregressive"]
    arms = ["--arm", "tree=speculative,drafter=draft_model,shape=tree,shape.branching=2,1"]
    code, out, _ = call(*words, *arms)
    assert code == 0 and out.splitlines()[0].split() == ["arm", "plain", "tree"]
    for row in ("tokens_per_target_forward", "draft_acceptance_rate", "cache_bytes", "same_text", "speedup"):
        assert row in out
    table = json.loads(call(*words, *arms, "--json")[1])
    assert table["plain"]["tokens"] == 6 and table["tree"]["same_text"] == 1


def test_compare_refuses_bad_input(refused):
    assert "at least one prompt" in refused("compare", "--arm", "plain=autoregressive")
    assert "at least one prompt" in refused("compare", "def f(x):")
    assert "expected name=decoder" in refused("compare", "def f(x):", "--arm", "autoregressive")
    assert "unknown decoder" in refused("compare", "def f(x):", "--arm", "a=nothing")


def test_lab_copies_notebooks_without_writing_over_any(tmp_path):
    from workbench.cli.lab import command, notebooks

    first = sorted(place.name for place in notebooks(tmp_path).glob("*.ipynb"))[0]
    (tmp_path / first).write_text("mine")
    assert notebooks(tmp_path) == tmp_path and (tmp_path / first).read_text() == "mine"
    assert first in (tmp_path / "README.md").read_text()  # the index that the notebooks link to
    words = command(tmp_path, 8899, browser=False)
    assert f"--LabApp.default_url=/lab/tree/{first}" in words and "--ServerApp.ip=127.0.0.1" in words


def test_help_names_every_command_and_is_quick():
    code = "import sys, workbench.cli as c\ntry: c.main(['--help'])\nexcept SystemExit: pass\n"
    code += "assert not {'torch', 'pandas', 'gradio'} & set(sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    for name in ("run", "list", "show", "replay", "compare", "app", "lab"):
        assert f"\n    {name} " in done.stdout


def test_unknown_commands_are_refused_in_one_line(refused):
    assert "invalid choice: 'frobnicate'" in refused("frobnicate")
    assert "COMMAND" in refused()


def test_parts_are_made_by_the_training_under_the_models_name(monkeypatch, tmp_path, capsys):
    """One process a part, in the user's cache; the first that fails ends it. Its folder is found by that name."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    asked, statuses = [], iter((0, 0, 3))

    def run(command, check):
        asked.append(command)
        return SimpleNamespace(returncode=next(statuses))

    monkeypatch.setattr(subprocess, "run", run)
    assert main(["models", "make", "smollm2", "--parts", "medusa,eagle", "--minutes", "5"]) == 0
    folder = tmp_path / "decoding-workbench" / "parts" / "smollm2"
    assert [command[3] for command in asked] == ["medusa", "eagle"]
    assert asked[0][4:8] == ["--target", "smollm2", "--out", str(folder)] and asked[0][-2:] == ["--minutes", "5.0"]
    assert "weights='smollm2'" in capsys.readouterr().out
    assert main(["models", "make", "smollm2", "--parts", "hydra,eagle"]) == 3 and len(asked) == 3
    folder.mkdir(parents=True)
    weights.find.cache_clear()
    assert weights.find("medusa", "smollm2") == folder / "medusa.safetensors"


def test_a_constraint_is_named_and_its_parameters_are_set(call):
    words = ["run", "x = ", "--max-new-tokens", "6", "--decoder", "speculative"]
    code, out, _ = call(*words, "--constraint", "regex", "--set", "constraint.pattern=[0-4]{2}")
    assert code == 0 and re.match(r"[0-4]{2}<\|endoftext\|>$", out)
    for more, why in (([], "name the constraint"), (["--constraint", "regexp"], "did you mean 'regex'")):
        code, _, err = call(*words, "--set", "constraint.pattern=[0-4]{2}", *more)
        assert code == 2 and why in err and err.count("\n") == 1
