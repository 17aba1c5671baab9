"""Medusa, Hydra, EAGLE and FSPAD: their distributions, their memory, their weights and the training that makes them."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors import safe_open

import workbench as wb
from tests.engine.test_bytes import walk
from tests.rounding import close, tolerance
from tests.speculation.tiny import TERMS, tiny_heads, tiny_target
from workbench import declare
from workbench.errors import BadInput, Unsupported
from workbench.rounds import Round
from workbench.speculation import DIST
from workbench.speculation.heads import weights
from workbench.training import __main__ as command
from workbench.training.data import Batch, continued, frozen, make_text
from workbench.training.fit import Recipe, fit
from workbench.training.parts import PARTS, STAGES

KINDS = ("medusa", "hydra", "eagle", "fspad")
SHAPES = {"fixed": wb.FixedLength(3), "tree": wb.FixedTree((2, 2, 1)), "confidence": wb.ConfidenceStop(4, 0.5)}
SHAPES |= {"eagle2": wb.Eagle2(8, 3, 3), "dyspec": wb.DySpec(6)}
VERIFIERS = {"seeded": wb.SeededMatch(), "rejection": wb.Rejection()}
PROMPT = [1, 4, 2, 0, 3, 3, 1]
SEEDED = {"temperature": 0.8, "seed": 5}
AGREES = {"medusa": 0.25, "hydra": 0.35, "eagle": 0.6, "fspad": 0.6}  # with the target's best token, at depth 1


def drafter(kind: str, place: str = "embedded") -> wb.RowDrafter:
    if kind in ("eagle", "fspad"):
        return wb.Eagle(kind, place)
    return {"medusa": wb.Medusa, "hydra": wb.Hydra}[kind](place)


@pytest.fixture(scope="module")
def tiny():
    return tiny_target()


@pytest.fixture(scope="module")
def folder(tiny, tmp_path_factory) -> str:
    """Parts of all kinds, trained for a few steps."""
    place = tmp_path_factory.mktemp("heads")
    for kind in KINDS:
        tiny_heads(tiny, kind, place)
    return str(place)


# -- the text is plain decoding's ------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_tiny_texts_are_those_of_plain_decoding(tiny, folder, kind):
    """Greedy and seeded under every shape; the counters add up."""
    for name, shape in SHAPES.items():
        for settings in ({}, SEEDED):
            expected = wb.decode(tiny, PROMPT, max_new_tokens=30, **settings).token_ids
            for verifier in VERIFIERS.values() if name == "tree" and not settings else [wb.SeededMatch()]:
                trace = wb.decode(
                    tiny, PROMPT, wb.Speculative(drafter(kind, folder), shape, verifier), max_new_tokens=30, **settings
                )
                assert trace.token_ids == expected, (name, settings)
                rounds = trace.rounds[trace.rounds["mode"] != "prefill"]
                own = trace.tokens["source"].isin(["target", "bonus", "residual"])
                assert 0 < rounds["accepted"].sum() == (~own).sum() < rounds["drafted"].sum() == len(trace.drafts)
                assert rounds["emitted"].sum() == 30 and len(rounds) < 30


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("settings", [{}, SEEDED], ids=["greedy", "seeded"])
def test_embedded_texts_are_those_of_plain_decoding(lm, held_out, kind, settings):
    """And what ships drafts well enough to save a quarter of the target's forwards."""
    prompt = held_out[8][-300:]
    expected = wb.decode(lm, prompt, max_new_tokens=40, ignore_eos=True, **settings).token_ids
    trace = wb.decode(lm, prompt, wb.Speculative(drafter(kind)), max_new_tokens=40, ignore_eos=True, **settings)
    assert trace.token_ids == expected
    assert trace.summary()["target_forwards"] < 40 * 3 / 4


@pytest.mark.parametrize("kind", ("hydra", "eagle"))
def test_ends(tiny, folder, kind):
    """A prompt of one token, the end of the context, and an end of text inside an accepted path."""
    decoder = wb.Speculative(drafter(kind, folder), SHAPES["tree"])
    for prompt in ([2], PROMPT):
        whole = wb.decode(tiny, prompt, max_new_tokens=1000, **SEEDED).token_ids
        found = wb.decode(tiny, prompt, decoder, max_new_tokens=1000, **SEEDED)
        assert found.token_ids == whole and len(whole) == tiny.context - len(prompt)
        assert found.end["reason"] == "length"
        for eos in (0, 3):
            ended = wb.decode(tiny, prompt, decoder, max_new_tokens=1000, eos_ids=frozenset({eos}), **SEEDED).token_ids
            assert ended == whole[: whole.index(eos) + 1]


@pytest.mark.parametrize("kind", ("medusa", "eagle"))
def test_useless_weights_change_no_token(tiny, folder, kind, monkeypatch):
    """Heads of pure noise: fewer accepted, the same text."""
    lm = replaced(tiny, kind, folder, monkeypatch)
    decoder = wb.Speculative(drafter(kind, folder), SHAPES["tree"])
    expected = wb.decode(tiny, PROMPT, max_new_tokens=40, **SEEDED).token_ids
    assert wb.decode(lm, PROMPT, decoder, max_new_tokens=40, **SEEDED).token_ids == expected


def replaced(lm, kind: str, folder: str, monkeypatch):
    """The target with the parts it has loaded forgotten, and their files read as noise."""

    def noise(file, tensors=torch.Tensor):
        generator = torch.Generator().manual_seed(1)
        return lambda state, *rest: original(
            file, {name: torch.randn(value.shape, generator=generator) for name, value in state.items()}, *rest
        )

    original = torch.nn.Module.load_state_dict
    monkeypatch.setattr(lm, "_parts", {})
    monkeypatch.setattr(torch.nn.Module, "load_state_dict", lambda self, *rest: noise(self)(*rest))
    return lm


# -- the distributions are the papers'
# -----------------------------------------------------------------------------------------


def proposed(session: wb.Session, shape=SHAPES["tree"], **changes):
    """The tree of the round to come, the state untouched."""
    state = session.state.fork()
    state.settings = replace(state.settings, **changes)
    with torch.inference_mode():
        return session.decoder.drafter.propose(state, Round(state, "plain"), shape, 8, False)


def features(lm, tokens: list[int]) -> torch.Tensor:
    """[n, width] final hidden states by a fresh pass of the stock model."""
    with torch.no_grad():
        return lm.model.base_model(torch.tensor([tokens]), use_cache=False).last_hidden_state[0]


def reference(kind: str, lm, module, tokens: list[int], path: list[int]) -> torch.Tensor:
    """[V] the distribution after a path of drafted tokens below a text, from nothing but the text: no cache, no
    batch."""
    true, drafted = features(lm, tokens[:-1]), [tokens[-1], *path]
    embedded = lm.model.get_input_embeddings()
    if kind == "medusa":
        head = module.heads[len(path)]
        state = true[-1] + head.out(torch.nn.functional.silu(head.into(true[-1])))
    elif kind == "hydra":
        head = module.heads[len(path)]
        joined = torch.cat([true[-1], *module.token(embedded(torch.tensor(drafted)))])
        state = true[-1] + head.out(torch.nn.functional.silu(head.into(joined)))
    else:
        known = torch.cat([torch.zeros_like(true[:1]), true])  # before each token of the text
        for length in range(len(tokens), len(tokens) + len(drafted)):
            ids = torch.tensor((tokens + path)[:length])
            pairs = torch.cat([known, embedded(ids)], -1)[None]
            causal = torch.ones(length, length, dtype=torch.bool).tril()

            def attend(q, k, v, causal=causal):
                k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], 1) for x in (k, v))
                scores = (q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5).masked_fill(~causal, -torch.inf)
                return scores.softmax(-1) @ v

            following, states = module(pairs, torch.arange(length), attend)
            state = states[0, -1]
            known = torch.cat([known, following[0, -1:]])
    return lm.model.get_output_embeddings()(state).log_softmax(-1)


@pytest.mark.parametrize("kind", KINDS)
def test_every_distribution_is_the_papers_formula(tiny, folder, kind):
    """In every round, after every node: what the cache and the batching give equals a pass over the whole text."""
    session = wb.Session(
        tiny, PROMPT, wb.Speculative(drafter(kind, folder), SHAPES["tree"]), max_new_tokens=24, **SEEDED
    )
    module, checked, worst = None, 0, []
    while session.step() and not session.ended:
        tree, tokens = proposed(session), list(session.state.tokens)
        part = session.decoder.drafter
        module = part.model(tiny).module if hasattr(part, "model") else part.module(tiny)
        for node, row in tree.raw.items():
            path = [tree.tokens[n] for n in tree.path(node)]
            with torch.no_grad():
                expected = reference(kind, tiny, module, tokens, path)
            assert close(row, expected, TERMS), (len(tokens), path)
            worst.append((row - reference(kind, tiny, module, tokens[:-1] + [(tokens[-1] + 1) % 5], path)).abs().max())
        checked += len(tree.raw)
    assert checked > 30
    # the check sees the pending token, but for Medusa, which does not
    assert (max(worst) < tolerance(TERMS, 10)) if kind == "medusa" else (max(worst) > 1e-2)


@pytest.mark.parametrize("kind", ("hydra", "eagle"))
def test_children_follow_the_stored_rows(tiny, folder, kind):
    """Density distribution: over 500 seeds the first child of the root and of its first child are draws from their
    rows."""
    from scipy.stats import chisquare

    session = wb.Session(tiny, PROMPT, wb.Speculative(drafter(kind, folder)), max_new_tokens=24, temperature=0.8)
    session.step()
    counts, row = torch.zeros(5), None
    below, rows = torch.zeros(5), torch.zeros(5)
    for seed in range(500):
        tree = proposed(session, wb.FixedLength(2), seed=seed)
        assert tree.kinds[1:] == [DIST, DIST]
        counts[tree.tokens[1]] += 1
        below[tree.tokens[2]] += 1
        row, rows = tree.rows[0].exp(), rows + tree.rows[1].exp()
    assert chisquare(counts, row / row.sum() * 500).pvalue > 1e-4
    assert chisquare(below, rows / rows.sum() * 500).pvalue > 1e-4
    assert chisquare(counts, torch.roll(row, 1) / row.sum() * 500).pvalue < 1e-4  # it can fail


# -- memory -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ("medusa", "eagle"))
def test_forks_go_on_alike_and_a_change_of_drafters_changes_no_token(tiny, folder, kind):
    expected = wb.decode(tiny, PROMPT, max_new_tokens=60, **SEEDED).token_ids
    session = wb.Session(tiny, PROMPT, wb.Speculative(drafter(kind, folder)), max_new_tokens=60, **SEEDED)
    session.run(rounds=4)
    middle = session.fork(at=session.length)
    within = session.fork(at=5)
    other = session.fork(at=session.length, decoder=wb.Speculative(wb.CopySpec(ngram=1)))
    other.run(rounds=3)
    list(session)
    for branch in (
        session,
        middle,
        within,
        other.fork(at=other.length, decoder=session.decoder),  # its memory is gone
        session.fork(at=9, decoder=wb.Autoregressive()),
        session.fork(at=9, decoder=wb.Speculative(drafter("hydra" if kind == "eagle" else "eagle", folder))),
        session.fork(at=9, cache=wb.StreamingLLM(sinks=4, window=200)),  # the target reads its prompt again
    ):
        list(branch)
        assert branch.trace.token_ids == expected
    assert session.trace.rounds["drafted"].tolist() == middle.trace.rounds["drafted"].tolist()
    again = other.fork(at=other.length, decoder=session.decoder)
    again.run(rounds=3)
    assert again.trace.rounds["drafted"].iloc[-2:].min() > 0  # and is there again a round later


@pytest.mark.parametrize("kind", ("hydra", "eagle"))
def test_bytes_are_counted_at_every_round(tiny, folder, kind):
    session = wb.Session(tiny, PROMPT, wb.Speculative(drafter(kind, folder)), max_new_tokens=40, **SEEDED)
    for _ in session:
        found = walk(session.state)
        assert session.trace.rounds["cache_bytes"].iloc[-1] == found == walk(session.state.fork()) > 0
        for runner in session.state.runners.values():
            assert runner.store.length < len(session.state.tokens) and runner.store.staged == 0


# -- weights ----------------------------------------------------------------------------------------------------------


def refusal(work) -> str:
    with pytest.raises((BadInput, Unsupported)) as caught:
        work()
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("kind", KINDS)
def test_foreign_targets_are_refused_with_the_remedy(tiny, lm, toy, folder, kind, tmp_path):
    other = tiny_target("tiny-other", seed=4)  # the same sizes, other weights
    for target, place in ((other, folder), (tiny, "embedded"), (lm, folder), (tiny, str(tmp_path))):
        said = refusal(lambda t=target, p=place: wb.decode(t, [1, 2], wb.Speculative(drafter(kind, p))))
        assert f"python -m workbench.training {kind} --target {target.name} --out DIR" in said
    assert "hidden states" in refusal(lambda: wb.decode(toy, [1, 2], wb.Speculative(drafter(kind))))
    wrong = weights.find("medusa" if kind != "medusa" else "hydra", folder)
    assert "holds" in refusal(lambda: wb.decode(tiny, [1, 2], wb.Speculative(drafter(kind, str(wrong)))))


def test_weights_fit_their_target_in_any_dtype():
    half = wb.load("embedded", dtype="bfloat16")
    for kind in KINDS:
        part = drafter(kind)
        part.check(half)
    assert next(part.model(half).module.parameters()).dtype == torch.bfloat16
    assert part.model(half) is part.model(half)


@pytest.mark.parametrize("kind", KINDS)
def test_what_ships_is_small_and_agrees_with_the_target(kind):
    file = weights.find(kind, "embedded")
    assert file.stat().st_size < {"medusa": 1.5e6, "hydra": 3e6, "eagle": 3e6, "fspad": 4e6}[kind]
    with safe_open(file, "pt") as opened:
        facts = opened.metadata()
    figures = json.loads(facts["facts"])["held-out"]
    assert facts["target"] == "embedded" and figures["top-1 at depth 1"] >= AGREES[kind]
    assert figures["top-1 at depth 1"] > figures["top-1 at depth 4"]
    told = (file.parent / "README.md").read_text()
    assert all(f"| {kind} | {name} | {value:.3f} |" in told for name, value in figures.items())


# -- training ---------------------------------------------------------------------------------------------------------


def test_text_is_the_targets_own(tiny):
    """Rows at temperature 0 are greedy continuations; the same call gives the same text; batches depend on the step."""
    starts = make_text(tiny, tokens=4 * 24, window=24, start=6, held_out=2).train[:, :6]
    rows = continued(tiny, starts, 24, [0.0] * len(starts), torch.Generator())
    for row in rows:
        assert row[6:].tolist() == wb.decode(tiny, row[:6].tolist(), max_new_tokens=18).token_ids
    text = make_text(tiny, tokens=20 * 24, window=24, start=6, held_out=2)
    assert (text.train == make_text(tiny, tokens=20 * 24, window=24, start=6, held_out=2).train).all()
    assert (text.batch(3, 96) == text.batch(3, 96)).all() and not (text.batch(3, 96) == text.batch(4, 96)).all()
    seen = {tuple(row) for step in range(5) for row in text.batch(step, 96)}
    assert seen == {tuple(row) for row in text.train}  # an epoch sees every window


@pytest.mark.parametrize("kind", KINDS)
def test_training_lowers_the_loss_and_goes_on_where_it_stopped(tiny, kind, tmp_path):
    text = make_text(tiny, tokens=48 * 24, window=24, start=6, held_out=4)
    part, recipe = PARTS[kind], Recipe(24 * 128, 128, warmup=2, autocast=False)
    whole = fit(kind, part, tiny, text, tmp_path / "a", recipe=recipe, quiet=True)
    stopped = fit(kind, part, tiny, text, tmp_path / "b", minutes=0.0005, recipe=recipe, quiet=True)
    steps = torch.load(tmp_path / "b" / f"{kind}.pt")["step"]
    assert 0 < steps < recipe.steps
    assert fit(kind, part, tiny, text, tmp_path / "b", recipe=recipe, quiet=True) == stopped
    states = [torch.load(tmp_path / name / f"{kind}.pt")["model"] for name in "ab"]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert all(p.requires_grad for p in tiny.model.parameters())  # the target's weights are thawed
    with pytest.raises(SystemExit, match="another recipe"):
        fit(kind, part, tiny, text, tmp_path / "b", recipe=replace(recipe, seed=9), quiet=True)
    fresh, trained = part.make(**part.shape(tiny)), weights.load(kind, part.make, str(whole), tiny)
    with frozen(tiny), torch.no_grad():
        batch = Batch(tiny, text.held_out)
        losses = [part.loss(module, batch, torch.Generator().manual_seed(0)).item() for module in (fresh, trained)]
    assert losses[1] < losses[0] - 0.02


def test_the_command_knows_every_registered_recipe(capsys):
    """A part or a stage of the embedded models each, with a line that says which."""
    assert sorted([*PARTS, *STAGES]) == declare.names("recipe") and {"target", "target-long", "draft"} == set(STAGES)
    with pytest.raises(SystemExit):
        command.main(["--help"])
    shown = capsys.readouterr().out
    for name in declare.names("recipe"):
        assert name in shown and declare.get("recipe", name).__doc__.endswith(".")


def test_the_command_trains_a_part_for_any_target(tiny, tmp_path, capsys):
    command.main(["medusa", "--target", "tiny", "--out", str(tmp_path), "--tokens", "4096", "--text", "6000"])
    assert capsys.readouterr().out.strip().endswith("medusa.safetensors")
    trace = wb.decode(tiny, PROMPT, wb.Speculative(wb.Medusa(str(tmp_path))), max_new_tokens=8)
    assert trace.rounds["drafted"].sum() > 0
    command.main(["card", "--out", str(tmp_path)])
    assert f"# Trained parts of `{tiny.name}`" in (tmp_path / "README.md").read_text()
    with pytest.raises(SystemExit):
        command.main(["medusa", "--target", "/nowhere", "--out", str(tmp_path)])


def test_eagles_pass_over_the_prompt_is_booked(tiny, folder):
    passes = wb.decode(tiny, [1, 2, 3, 4, 0, 1], wb.Speculative(wb.Eagle(weights=folder)), max_new_tokens=4).forwards
    prompt = passes[(passes["phase"] == "prefill") & (passes["model"] == "draft")]
    assert prompt["rows"].tolist() == [5]
