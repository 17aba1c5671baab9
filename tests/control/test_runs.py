"""Runs under a constraint: where they end, forced tokens, going back, several at once, settings beside it, hostile
grammars."""

import json
import re
import time

import pandas as pd
import pytest
import torch
import transformers as tf

import workbench as wb
from tests.engine.small import random_model
from tests.table import speculative
from workbench import web
from workbench.control import constraints
from workbench.control.constraints import compiling, matching
from workbench.control.constraints.base import Masks
from workbench.dashboard import python
from workbench.device.round import choose_round
from workbench.engine.settings import Settings
from workbench.report.headline import headline
from workbench_kernels.distribution import native

PORT = wb.Regex(r"[1-9][0-9]{2,3}\n")
ITEM = wb.JSONSchema(
    {
        "type": "object",
        "properties": {"name": {"enum": ["red", "green"]}, "size": {"enum": [1, 22, 333]}},
        "required": ["name", "size"],
        "additionalProperties": False,
    }
)
LOOP = wb.Regex("(for|while) [a-z]{1,6}( in [a-z]{1,9}\\([0-9]\\))?:\n(    [a-z]{1,8}\\(\\)\n){1,2}")


@pytest.mark.parametrize("constraint", [PORT, ITEM, LOOP], ids=lambda one: one.declared_name)
@pytest.mark.parametrize("how", [{}, {"temperature": 0.9, "seed": 2}], ids=["greedy", "seeded"])
def test_embedded_models_spell_one_text_whatever_drafts_it(constraint, how, lm):
    run = dict(constraint=constraint, max_new_tokens=64, **how)
    plain = wb.decode(lm, "x = ", **run)
    drafters = (wb.DraftModel(), wb.Medusa(), wb.Jacobi())
    for decoder in (wb.Pearl(), *map(wb.Speculative, drafters)):
        assert wb.decode(lm, "x = ", decoder, **run).token_ids == plain.token_ids
    text = plain.text.removesuffix("<|endoftext|>")
    assert plain.end["reason"] == "eos" and plain.end["message"] == ""
    if constraint is ITEM:
        assert set(json.loads(text)) == {"name", "size"}
    else:
        assert re.fullmatch(constraint.pattern, text)


def test_the_mask_comes_before_every_cut_and_processors_cannot_undo_it(toy):
    free = wb.decode(toy, [0, 1, 2], max_new_tokens=8, top_k=1, temperature=1.0)
    run = dict(constraint=wb.Regex("(ad|cb)*"), max_new_tokens=8)
    greedy = wb.decode(toy, [0, 1, 2], **run)
    held = wb.decode(toy, [0, 1, 2], top_k=1, temperature=1.0, **run)
    assert held.token_ids == greedy.token_ids != free.token_ids and re.fullmatch("(ad|cb)*", held.text)
    assert set(held.tokens["cut_by"]) <= {"grammar", "grammar+top_k"} and set(held.tokens["keep_size"]) == {1}
    for cut in ({"top_p": 0.2}, {"min_p": 0.9}, {"typical_p": 0.1}):
        assert re.fullmatch("(ad|cb)*", wb.decode(toy, [0, 1, 2], temperature=1.3, seed=4, **cut, **run).text)
    seen = []

    def everything(ids, scores):
        seen.append(scores.isinf().sum().item())
        return torch.zeros_like(scores)

    held = wb.decode(toy, [0, 1, 2], processors=[everything], temperature=1.0, seed=1, **run)
    assert re.fullmatch("(ad|cb)*", held.text) and set(seen) == {2, 3}
    with pytest.raises(wb.NumericalError, match="left no token that the constraint allows"):
        wb.decode(toy, [0, 1, 2], processors=[lambda ids, s: s.new_tensor([[-torch.inf, 0, -torch.inf, 0]])], **run)


def test_the_columns_are_the_masks_own(toy):
    """At every level that keeps statistics; in the prompt a constraint has no say."""
    trace = wb.decode(toy, [0, 1, 2], constraint=wb.Regex("(ad|c[ab])*"), max_new_tokens=6, prompt_rows=True)
    rows = trace.tokens
    for index, row in rows.iterrows():
        text = trace.text[: row["index"]]
        letters = [one for one in "abcd" if re.fullmatch("(ad|c[ab])*[ac]?", text + one)]
        mass = toy.dist([0, 1, 2, *trace.token_ids[: row["index"]]])[[ord(one) - 97 for one in letters]].sum().item()
        assert row["allowed_count"] == len(letters) and row["allowed_mass"] == pytest.approx(mass, rel=1e-4), index
    assert trace.prompt_tokens["allowed_count"].isna().all()
    off = wb.decode(toy, [0, 1, 2], constraint=wb.Regex("(ad|c[ab])*"), max_new_tokens=6, level="off")
    assert off.token_ids == trace.token_ids and off.tokens["allowed_count"].isna().all()


def test_where_a_run_ends_under_a_constraint(lm, toy):
    """End-of-text where the text may end; nothing left to write is `grammar`; other ends say what is missing."""
    whole = wb.decode(lm, "x = ", constraint=PORT, max_new_tokens=9)
    size = len(whole.token_ids) - 1
    ends = {
        "eos": {},
        "grammar": {"ignore_eos": True},
        "length": {"max_new_tokens": size - 1},
        "stop": {"stop": whole.text[1]},
    }
    for reason, how in ends.items():
        for decoder in (None, wb.Speculative()):
            trace = wb.decode(lm, "x = ", decoder, constraint=PORT, **{"max_new_tokens": 9, **how})
            assert trace.end["reason"] == reason
            assert trace.end["message"] == ("" if reason in ("eos", "grammar") else "the text does not satisfy the"
                                            " constraint: more was to come")  # fmt: skip
            assert trace.token_ids == whole.token_ids[: len(trace.token_ids)]
            assert ("does not satisfy" in headline(trace)["end"]) == (reason in ("length", "stop"))
    other = wb.decode(lm, "x = ", constraint=PORT, eos_ids=[lm.tokenizer.encode("\n")[0]], max_new_tokens=9)
    assert other.end["reason"] != "eos", "the text may not end before its newline"
    stuck = wb.decode(toy, [0, 1], constraint=wb.Regex("(ad|cb)(e|zz)?f"), max_new_tokens=9)  # no e, z or f
    assert stuck.end["reason"] == "grammar" and "no token of the vocabulary goes on" in stuck.end["message"]
    for pattern, why in (("xyz", "no text that this vocabulary can write"), ("a{0}", "no token of 'toy-7' may begin")):
        with pytest.raises(wb.BadInput, match=why):
            wb.Session(toy, [0, 1], constraint=wb.Regex(pattern))


def test_forced_tokens_go_on_inside_and_are_refused_outside(toy):
    run = dict(constraint=wb.Regex("(ad|cb)*"), max_new_tokens=6)
    for decoder in (None, speculative("toy-draft")):
        trace = wb.decode(toy, [0, 1, 2], decoder, force={0: 2, 1: 1, 2: 0}, **run)
        assert trace.text.startswith("cba") and re.fullmatch("(ad|cb)*", trace.text)
    for force in ([2, 2], {0: 1}):
        with pytest.raises(wb.BadInput, match="outside constraint 'regex'"):
            wb.Session(toy, [0, 1, 2], force=force, **run)
    with pytest.raises(wb.BadInput, match="force tokens 0 to 3 without a gap"):
        wb.Session(toy, [0, 1, 2], force={3: 1}, **run)


@pytest.mark.parametrize("decoder", [None, "speculative", "beam"])
def test_steps_back_and_branches_and_replay_keep_to_it(decoder, toy):
    made = {"speculative": speculative("toy-draft"), "beam": wb.Beam(beams=2)}.get(decoder)
    run = dict(constraint=wb.Regex("(a[bd]|c[ab]|db)*"), max_new_tokens=10)
    whole = wb.decode(toy, [0, 1, 2], made, **run)
    session = wb.Session(toy, [0, 1, 2], made, **run)
    for _ in session:
        pass
    assert session.trace.token_ids == whole.token_ids
    session.jump(4)
    same = session.fork()
    same.run()
    assert same.trace.token_ids == whole.token_ids
    token = next(one for one in range(4) if one != whole.token_ids[4] and re.fullmatch("[acd]", "abcd"[one]))
    other = session.fork(token=token)
    other.run()
    assert other.trace.token_ids[:5] == [*whole.token_ids[:4], token]
    assert re.fullmatch(run["constraint"].pattern + "[acd]?", other.text)
    with pytest.raises(wb.BadInput, match="outside constraint"):
        session.fork(token=1)
    free = session.fork(constraint=None)
    free.run()
    assert free.trace.run["constraint"] is None and free.trace.tokens["allowed_count"][4:].isna().all()
    with pytest.raises(wb.BadInput, match="outside constraint|does not allow the text so far"):
        session.fork(constraint=wb.Regex("[xd]*"))
    done = wb.Session(toy, [0, 1, 2], made, constraint=wb.Regex("ad|cb"))
    done.run()
    assert done.ended == "grammar" and done.length == 2
    with pytest.raises(wb.BadInput, match="no token of 'toy-7' may follow the text so far"):
        done.fork()
    assert [row["emitted"] for row in session.replay()]


def test_a_memo_of_one_place_spells_the_same(toy, monkeypatch):
    run = dict(constraint=wb.Regex("(a[bd]|c[ab]|db)*"), max_new_tokens=12, temperature=1.0, seed=3)
    tree = speculative("toy-draft", shape=wb.FixedTree((2, 2, 1)))
    texts = [wb.decode(toy, [0, 1, 2], decoder, **run).token_ids for decoder in (None, tree)]
    monkeypatch.setattr(Masks.__init__, "__defaults__", (1,))
    assert texts == [wb.decode(toy, [0, 1, 2], decoder, **run).token_ids for decoder in (None, tree)]


def test_several_at_once_caches_and_generate(lm):
    """Samples, prompts and rows of a batch spell what lone runs spell; a cache stack changes nothing of it."""
    run = dict(constraint=ITEM, max_new_tokens=24, temperature=0.9)
    samples = wb.decode(lm, "x = ", n=3, **run)
    for number, trace in enumerate(samples):
        assert trace.token_ids == wb.decode(lm, "x = ", sample=number, **run).token_ids
    prompts = ["x = ", "import os\n\n"]
    for prompt, trace in zip(prompts, wb.decode(lm, prompts, wb.Speculative(), **run), strict=True):
        assert trace.token_ids == wb.decode(lm, prompt, **run).token_ids
    stack = wb.Stack(wb.StreamingLLM(sinks=2, window=32, interval=8), wb.KIVI(bits=4))
    long = "import os\n\n\ndef join(first, second):\n    return os.path.join(first, second)\n\n\nx = "
    held = [wb.decode(lm, long, one, cache=stack, **run).token_ids for one in (None, wb.Speculative())]
    assert held[0] == held[1]
    model, ids = lm.model, torch.tensor([lm.tokenizer.encode("x = ")] * 2)
    call = wb.custom_generate(wb.Speculative(), constraint=ITEM, tokenizer=lm.tokenizer)
    model.generate(ids, attention_mask=torch.ones_like(ids), custom_generate=call, max_new_tokens=24,
                   eos_token_id=next(iter(lm.eos_ids)), pad_token_id=0)  # fmt: skip
    greedy = wb.decode(lm, "x = ", constraint=ITEM, max_new_tokens=24)
    assert [trace.token_ids for trace in call.traces] == [greedy.token_ids] * 2
    table = wb.compare(lm, ["x = "], {"plain": wb.Autoregressive(), "spec": wb.Speculative()}, **run)
    assert (table["same_text"] == 1).all()


@pytest.mark.parametrize(("width", "dtype"), [(56, torch.float32), (80, torch.float64)])
def test_drafts_of_another_width_are_held_to_it_by_text(width, dtype):
    """Also where the constraint leaves nothing that the draft knows: then it guesses, and is refused."""
    tokenizer = wb.ToyModel(72).tokenizer  # a letter each
    wb.register_model("narrow-or-wide", random_model(seed=1, vocab_size=width).to(dtype), tokenizer)
    lm = wb.register_model("width-72", random_model(vocab_size=72).to(dtype), tokenizer)
    prompt, run = [5, 9, 12, 7, 5, 9, 12], dict(ignore_eos=True, max_new_tokens=12)
    beyond = "[\u00a1-\u00a8]"  # ids 64 to 71
    constraint = wb.Regex(f"[a-f]{{1,2}}{beyond}{{2,3}}[a-z]?{beyond}[a-z]+")
    for how in ({}, {"temperature": 1.2, "seed": 2, "top_k": 9}):
        plain = wb.decode(lm, prompt, constraint=constraint, **run, **how)
        assert sum(id >= 64 for id in plain.token_ids) >= 3 and re.fullmatch(constraint.pattern, plain.text)
        drafts = wb.DraftModel("narrow-or-wide")
        shapes = (wb.FixedLength(4), wb.FixedTree((2, 2, 1)), wb.DySpec())
        for decoder in (*(wb.Speculative(drafts, shape) for shape in shapes), wb.Pearl("narrow-or-wide")):
            assert wb.decode(lm, prompt, decoder, constraint=constraint, **run, **how).token_ids == plain.token_ids
        rejection = wb.Speculative(drafts, verifier=wb.Rejection())
        chains = wb.Speculative(drafts, wb.IndependentChains(2, 4), wb.KSeq())
        small = wb.EntropyAdaptive("narrow-or-wide", threshold=9.0)
        for decoder in (rejection, chains, small):
            text = wb.decode(lm, prompt, decoder, constraint=constraint, **run, **how).text
            assert re.fullmatch(constraint.pattern, text), decoder


def test_the_rooms_example_runs_as_it_stands(capsys):
    lines = [line[4:] for line in constraints.__doc__.splitlines() if line.startswith("    ")]
    assert len(lines) == 6
    exec("\n".join(lines), {})
    assert "allowed_mass" in capsys.readouterr().out


def test_rounds_stay_on_the_host_and_say_so(toy, monkeypatch):
    monkeypatch.setenv("WORKBENCH_ROUND", "device")
    settings = Settings(constraint=PORT)
    strategy = choose_round(wb.Autoregressive(), settings, {"target": toy})
    assert (strategy.name, strategy.reason) == ("stock", "a constraint's masks are made on the host")


def test_without_the_extra_it_is_one_line(lm, monkeypatch):
    monkeypatch.setattr(matching, "find_spec", lambda name: None)
    for constraint, package in ((PORT, "llguidance"), (wb.PythonMonitor(), "jedi")):
        with pytest.raises(wb.BadInput, match=rf"needs {package}; install it: pip install .*\[constraints\]") as caught:
            wb.Session(lm, "x = ", constraint=constraint)
        assert "\n" not in str(caught.value)
    plain = tf.LlamaForCausalLM(tf.LlamaConfig(vocab_size=8, hidden_size=8, intermediate_size=8, num_hidden_layers=1,
                                               num_attention_heads=1, num_key_value_heads=1))  # fmt: skip
    with pytest.raises(wb.BadInput, match="no tokenizer"):
        wb.Session(plain, [1, 2], constraint=PORT)


HOSTILE = {
    "open": lambda: wb.Regex("("),
    "looks around": lambda: wb.Regex("a(?=b)"),
    "many choices": lambda: wb.Regex("a?" * 30_000),
    "nested": lambda: wb.Regex("(" * 9000 + "a" + ")" * 9000),
    "nothing": lambda: wb.Grammar("start: start"),
    "no grammar": lambda: wb.Grammar("\x00"),
    "a special token": lambda: wb.Grammar('start: "a" | <|endoftext|>'),
    "nested brackets": lambda: wb.Grammar(f"start: {'(' * 9000}'a'{')' * 9000}"),
    "many properties": lambda: wb.JSONSchema({"properties": {str(n): {} for n in range(4000)}}),
    "itself": lambda: wb.JSONSchema({"$ref": "#"}),
    "elsewhere": lambda: wb.JSONSchema({"$ref": "http://localhost/schema"}),
    "half a character": lambda: wb.JSONSchema({"const": "\ud800"}),
    "too long": lambda: wb.Regex("a" * 65_537),
    "no Unicode": lambda: wb.Regex("\ud800"),
    "not a schema": lambda: wb.JSONSchema("[1, 2"),
    "deep": lambda: wb.JSONSchema("[" * 100_000),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_grammars_are_refused_in_one_line_and_soon(case, toy):
    began = time.perf_counter()
    with pytest.raises(wb.BadInput) as caught:
        wb.Session(toy, [0, 1], constraint=HOSTILE[case]())
    assert "\n" not in str(caught.value) and 20 < len(str(caught.value)) < 500
    assert time.perf_counter() - began < matching.LIMIT_S * matching.SLOWEST + 10  # a process starts in its own time


def test_without_its_limit_of_time_a_grammar_holds_the_run_up(toy, monkeypatch):
    """The negative control of the limit: the same grammar is soon found out, or takes as long as it takes."""
    long = wb.JSONSchema({"properties": {str(n): {} for n in range(1500)}})
    for limit, why in ((0.02, "took more than 0.02 s"), (60, "no text that this vocabulary can write")):
        monkeypatch.setattr(matching, "LIMIT_S", limit)
        with pytest.raises(wb.BadInput, match=why):
            wb.Session(toy, [0, 1], constraint=long)


def test_a_real_trace_has_what_the_page_draws_and_makes_the_run_again(lm, tmp_path):
    """The track of allowed mass, drafts that were refused as outside, and the call that gives the same text; in a file
    too."""
    prompt = "for i in range(9):\n    for j in range(9):\n        for "
    run = dict(constraint=wb.Regex("[i-k] in [a-z]{5}\\([0-4]\\):\n"), max_new_tokens=16)
    made = wb.decode(lm, prompt, wb.Speculative(drafter=wb.PromptLookup(ngram=1)), out=tmp_path / "run.wb", **run)
    trace = wb.Trace.load(tmp_path / "run.wb")
    data = web.payload(trace)
    assert data["tokens"]["allowed_mass"] == pytest.approx(made.tokens["allowed_mass"].tolist(), rel=1e-3)
    fates = {*zip(data["drafts"]["fate"], data["drafts"]["reason"], strict=True)}
    assert ("rejected", "grammar") in fates and len([why for _, why in fates if why == "grammar"]) == 1
    assert trace.run["constraint"]["settings"] == {"pattern": run["constraint"].pattern}
    told = {}
    exec(python.of_run(trace), told)
    assert "wb.Regex(pattern=" in python.of_run(trace) and told["trace"].token_ids == made.token_ids


def test_the_limits_of_the_process_that_compiles_are_its_own(toy):
    """Set where it was imported, they held for everything that came after."""
    resource = pytest.importorskip("resource")
    wb.Session(toy, [0, 1], constraint=wb.Regex("[ab]{5}"))
    assert resource.getrlimit(resource.RLIMIT_AS)[0] not in range(compiling.MEMORY + 1)


def test_the_compiled_figures_are_those_of_torch(lm, monkeypatch):
    """Rows in which most is ruled out; where there is no compiler both are torch's."""
    run = dict(constraint=LOOP, max_new_tokens=24, temperature=0.9, top_k=9, seed=1)
    fast = wb.decode(lm, "x = ", wb.Speculative(), **run)
    monkeypatch.setattr(native, "code_for", lambda rows: None)
    slow = wb.decode(lm, "x = ", wb.Speculative(), **run)
    assert fast.token_ids == slow.token_ids
    columns = ["entropy_raw_nats", "entropy_sampled_nats", "p_sampled", "keep_size", "allowed_count", "allowed_mass"]
    pd.testing.assert_frame_equal(fast.tokens[columns], slow.tokens[columns], rtol=1e-3, atol=1e-4)
