"""Drafting with the target's own layers: Kangaroo, layer skipping, and the shapes that steer them."""

from dataclasses import replace
from itertools import combinations

import pytest
import torch
from scipy import stats

import workbench as wb
from tests.engine.test_bytes import ledger, walk
from tests.rounding import close
from tests.speculation.tiny import TERMS, tiny_heads, tiny_target
from workbench.errors import BadInput, Unsupported
from workbench.experiments.skipping import per_layer
from workbench.models.adapter import wrap
from workbench.rounds import Round
from workbench.speculation import DIST, DraftTree
from workbench.speculation.drafters.layer_skip import evenly

PROMPT = [1, 4, 2, 0, 3, 3, 1]
SEEDED = {"temperature": 0.8, "seed": 5}
TREE, CHAIN, PAIR = wb.FixedTree((2, 2, 1)), wb.FixedLength(3), wb.FixedTree((2,))


def llama(layers: int = 4, context: int = 96):
    return tiny_target(f"tiny of {layers} layers", context=context, layers=layers)


@pytest.fixture(scope="module")
def tiny():
    return llama()


@pytest.fixture(scope="module")
def weights(tiny, tmp_path_factory) -> str:
    """Adapters behind layers 1 and 2, trained for a few steps."""
    return tiny_heads(tiny, "kangaroo", tmp_path_factory.mktemp("heads"))


def everyone(weights: str) -> dict[str, wb.RowDrafter]:
    return {
        "kangaroo": wb.Kangaroo(weights, (1,)),
        "kangaroo-2": wb.Kangaroo(weights, (1, 2)),
        "bare": wb.Kangaroo(None, (2,)),
        "layer_skip": wb.LayerSkip((1, 2)),
    }


NAMES = list(everyone(""))


def same_text(lm, prompt, decoder, tokens: int = 40, **settings) -> wb.Trace:
    expected = wb.decode(lm, prompt, max_new_tokens=tokens, **settings).token_ids
    trace = wb.decode(lm, prompt, decoder, max_new_tokens=tokens, **settings)
    assert trace.token_ids == expected
    return trace


# -- the text is plain decoding's ------------------------------------------------------------------------------------


@pytest.mark.parametrize("settings", [{}, SEEDED], ids=["greedy", "seeded"])
def test_any_skip_set_and_any_exit_leave_the_text_as_it_is(tiny, settings):
    drafters = [wb.LayerSkip(skip, share=0) for count in range(4) for skip in combinations(range(4), count)]
    drafters += [wb.Kangaroo(None, (exit,)) for exit in (1, 2, 3)]
    expected = wb.decode(tiny, PROMPT, max_new_tokens=12, **settings).token_ids
    for drafter in drafters:
        trace = wb.decode(tiny, PROMPT, wb.Speculative(drafter, CHAIN), max_new_tokens=12, **settings)
        assert trace.token_ids == expected, drafter
        if drafter == wb.LayerSkip(share=0):  # the whole target drafts: all accepted
            assert trace.rounds["accepted"].sum() == trace.rounds["drafted"].sum() > 0


@pytest.mark.parametrize("name", NAMES)
def test_every_shape_and_verifier_on_a_random_llama(tiny, weights, name):
    """The counters add up, and every round's target pass holds the whole tree once."""
    drafter = everyone(weights)[name]
    cases = [
        (TREE, wb.SeededMatch(), SEEDED),
        (wb.ConfidenceStop(4, 0.4), wb.SeededMatch(), SEEDED),
        (wb.Eagle2(max_nodes=6, width=2, depth=3), wb.Greedy(), {}),
        (wb.AdaptiveConfidence(4), wb.Rejection(), {}),
    ]
    if "exits" in drafter.gives:
        cases += [(wb.Del(4), wb.SeededMatch(), SEEDED), (wb.Del(4), wb.Rejection(), {})]
    for shape, verifier, settings in cases:
        trace = same_text(tiny, PROMPT, wb.Speculative(drafter, shape, verifier), 20, **settings)
        rounds = trace.rounds[trace.rounds["mode"] != "prefill"]
        own = trace.tokens["source"].isin(["target", "bonus", "residual"])
        assert rounds["accepted"].sum() == (~own).sum() and rounds["emitted"].sum() == 20
        assert rounds["drafted"].sum() == len(trace.drafts) > 0
        passes = trace.forwards[trace.forwards["phase"] == "target"]
        assert passes["rows"].tolist() == (rounds["drafted"] + 1).tolist()


@pytest.mark.parametrize("family", ["gpt2", "gpt_neox"])
def test_other_architectures(family):
    """Learned positions and parallel residuals: the resumed pass is the whole one; prompts of one token as well."""
    import transformers

    torch.manual_seed(1)
    if family == "gpt2":
        config = transformers.GPT2Config(
            vocab_size=5, n_embd=16, n_layer=3, n_head=2, n_positions=64, initializer_range=0.3
        )
        lm = wrap(transformers.GPT2LMHeadModel(config).eval())
    else:
        sizes = dict(hidden_size=16, intermediate_size=32, num_hidden_layers=3, num_attention_heads=2)
        config = transformers.GPTNeoXConfig(vocab_size=5, max_position_embeddings=64, initializer_range=0.3, **sizes)
        lm = wrap(transformers.GPTNeoXForCausalLM(config).eval())
    for drafter in (wb.Kangaroo(None, (1, 2)), wb.LayerSkip((1,))):
        for prompt in (PROMPT, [2]):
            shape = wb.Del(3) if "exits" in drafter.gives else TREE
            same_text(lm, prompt, wb.Speculative(drafter, shape), 24, ignore_eos=True, **SEEDED)
            same_text(lm, prompt, wb.Speculative(drafter, TREE), 24, ignore_eos=True)


EMBEDDED = {
    "kangaroo": wb.Speculative(wb.Kangaroo()),
    "kangaroo-tree": wb.Speculative(wb.Kangaroo(exits=(4,)), TREE),
    "del": wb.Speculative(wb.Kangaroo(exits=(2, 4)), wb.Del()),
    "layer_skip": wb.Speculative(wb.LayerSkip()),
}


@pytest.mark.parametrize(
    "name, settings", list(zip(EMBEDDED, ({}, SEEDED, {}, SEEDED), strict=True)), ids=list(EMBEDDED)
)
def test_embedded_texts_are_those_of_plain_decoding(lm, held_out, name, settings):
    trace = same_text(lm, held_out[1][-400:], EMBEDDED[name], 32, ignore_eos=True, **settings)
    assert trace.rounds["accepted"].sum() > 3


def test_shipped_adapters_agree_with_the_target(lm, held_out):
    """On held-out text, far more often than the target's own head does at these layers, the later exit more often."""
    ids = lm.tokenizer.encode(held_out[4])[:400]
    out = lm.forward(ids, range(len(ids)), lm.new_store(), want=(2, 4))
    best, shares = out.logits.argmax(-1), {}
    (model,) = wb.Kangaroo(exits=(2, 4)).runners(lm).values()
    for layer, exit in enumerate((2, 4)):
        store = model.new_store()
        rows = model.forward(out.states[exit], range(len(ids)), store, layers=(layer,)).logits
        shares[exit] = (rows.argmax(-1) == best).float().mean().item()
        bare = (lm.exit_logits(out.states[exit]).argmax(-1) == best).float().mean().item()
        assert shares[exit] > max(0.45, bare + 0.2)
    assert shares[4] > shares[2]


@pytest.mark.parametrize("name", ["kangaroo-2", "layer_skip"])
def test_ends(tiny, weights, name):
    """A prompt of one token, the end of the context, and an end of text inside an accepted path."""
    decoder = wb.Speculative(everyone(weights)[name], TREE)
    for prompt in ([2], PROMPT):
        whole = same_text(tiny, prompt, decoder, 1000, **SEEDED)
        assert len(whole.token_ids) == tiny.context - len(prompt) and whole.end["reason"] == "length"
        for eos in whole.token_ids[:2]:
            ended = wb.decode(tiny, prompt, decoder, max_new_tokens=1000, eos_ids=frozenset({eos}), **SEEDED).token_ids
            assert ended == whole.token_ids[: whole.token_ids.index(eos) + 1]


# -- layers, rows and bytes ------------------------------------------------------------------------------------------


def test_a_drafted_token_passes_every_layer_once(tiny, weights):
    """Kangaroo's point. A drafter that lets the target read its tree anew fails the same count."""

    class Again(wb.Kangaroo):
        def drafted(self, state, builder):
            state.memory["kangaroo"].expanded = []

    def rows(drafter) -> list[int]:
        """Rows that each layer was given beyond one for every node and root."""
        counts, hooks = [0] * 4, []
        for number, layer in enumerate(tiny._engine.base_model.layers):

            def count(module, args, kwargs, number=number):
                counts[number] += (args[0] if args else kwargs["hidden_states"]).shape[1]

            hooks.append(layer.register_forward_pre_hook(count, with_kwargs=True))
        try:
            rounds = wb.decode(tiny, PROMPT, wb.Speculative(drafter, TREE), max_new_tokens=12).rounds
        finally:
            for hook in hooks:
                hook.remove()
        nodes = len(PROMPT) - 1 + int((rounds["drafted"] + (rounds["mode"] != "prefill")).sum())
        return [found - nodes for found in counts]

    for exits in ((1,), (2, 1)):
        assert rows(wb.Kangaroo(weights, exits)) == [0, 0, 0, 0]
    again = rows(Again(weights, (2,)))
    assert again[0] == again[1] > 0 == again[2] == again[3]
    skipping = rows(wb.LayerSkip((1, 2)))
    assert skipping[1] == skipping[2] == 0 < skipping[0] == skipping[3]


def test_passes_over_some_layers_are_booked_as_such(tiny):
    """Half the layers, half the bytes; the halves of a round's passes add up to whole ones."""
    trace = wb.decode(tiny, PROMPT, wb.Speculative(wb.Kangaroo(None, (2,)), CHAIN), max_new_tokens=8)
    passes = trace.forwards[trace.forwards["phase"] != "prefill"]
    assert set(passes["weight_bytes"]) == {tiny.weights_read(1) // 2}
    for _, one in passes.groupby("round"):
        early, late = (one[one["phase"] == phase] for phase in ("draft", "target"))
        assert early["kv_write_bytes"].sum() == late["kv_write_bytes"].sum()
        root = early["context"].iloc[0]
        assert early["context"].tolist() == [root, root + 1, root + 2, root + 3] and late["context"].tolist() == [root]


def test_layers_hold_different_lengths_while_drafting_and_the_same_after(tiny, weights):
    """Exit layers hold the nodes that were read, the others none: staging in the ledger; a round leaves nothing."""
    decoder = wb.Speculative(wb.Kangaroo(weights, (2,)), CHAIN)
    session = wb.Session(tiny, PROMPT, decoder, max_new_tokens=30)
    session.step()
    state = session.state.fork()
    proposed(decoder.drafter, state, CHAIN)
    early = state.runners["target"].store.ledger()["staging"]
    assert early[0] == early[1] > 0 == early[2] == early[3]
    session.step()
    assert sum(sum(runner.store.ledger()["staging"]) for runner in session.state.runners.values()) == 0
    assert set(session.state.memory) == set()


@pytest.mark.parametrize("name", NAMES)
def test_bytes_walk_at_every_round(tiny, weights, name):
    """Nothing is held that the ledger does not name; caches hold committed text only."""
    drafter = everyone(weights)[name]
    session = wb.Session(
        tiny, PROMPT, wb.Speculative(drafter, wb.Del(4) if "exits" in drafter.gives else TREE), max_new_tokens=30
    )
    for _ in session:
        state = session.state
        assert walk(state) == ledger(state) == session.trace.rounds["cache_bytes"].iloc[-1] > 0
        for runner in state.runners.values():
            assert runner.store.length == len(state.tokens) - 1 and runner.store.staged == 0


@pytest.mark.parametrize(
    "name, settings", [*((name, SEEDED) for name in NAMES), ("kangaroo-2", {})], ids=[*NAMES, "kangaroo-2-greedy"]
)
def test_forks_rewinding_and_changes_of_drafter(tiny, weights, name, settings):
    """Both sides of a fork go on equal; a drafter that comes late drafts with what it has; one that left is no loss."""
    drafter = everyone(weights)[name]
    decoder = wb.Speculative(drafter, wb.Del(4) if "exits" in drafter.gives else TREE)
    plain = wb.decode(tiny, PROMPT, max_new_tokens=48, **settings).token_ids
    session = wb.Session(tiny, PROMPT, decoder, max_new_tokens=48, **settings)
    session.run(rounds=4)
    copy, left = session.fork(), session.fork(decoder=wb.Autoregressive())
    late = wb.Session(tiny, PROMPT, wb.Autoregressive(), max_new_tokens=48, **settings)
    late.run(rounds=12)
    late = late.fork(decoder=decoder)
    for one in (session, copy, left, late):
        one.run()
        assert one.trace.token_ids == plain
    again = session.fork(at=3)
    again.run()
    assert again.trace.token_ids == plain
    assert session.trace.rounds["drafted"].tolist() == copy.trace.rounds["drafted"].tolist()
    assert late.trace.rounds["drafted"].sum() > 0


# -- distributions
# ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["kangaroo", "layer_skip"])
def test_drawn_nodes_follow_their_stored_rows(tiny, weights, name):
    """Density distribution, over seeds: the first child of the root, and the second given the first, without
    replacement."""
    drafter = everyone(weights)[name]
    session = wb.Session(tiny, PROMPT, wb.Speculative(drafter, PAIR, wb.Rejection()), **SEEDED)
    session.step()
    seeds = 400
    first, second, row = torch.zeros(5), torch.zeros(5), None
    for seed in range(seeds):
        state = session.state.fork()
        state.settings = replace(state.settings, seed=seed)
        tree = proposed(drafter, state, PAIR)
        assert tree.kinds[1:] == [DIST, DIST] and (row is None or torch.allclose(row, tree.rows[0]))
        row = tree.rows[0]
        first[tree.tokens[1]] += 1
        second[tree.tokens[2]] += 1
    p = row.double().exp()
    odds = p / (1 - p)
    following = p * (odds.sum() - odds)  # P(second = x): over all other first tokens y, p(y)·p(x)/(1 − p(y))
    assert agrees(first, p) and agrees(second, following)
    assert not agrees(first, p.roll(1))  # the test can fail


def agrees(counts: torch.Tensor, dist: torch.Tensor) -> bool:
    expected = dist.double() / dist.double().sum() * counts.double().sum()
    return stats.chisquare(counts.double().numpy(), expected.numpy()).pvalue > 1e-4


def proposed(drafter, state, shape) -> DraftTree:
    with torch.inference_mode():
        return drafter.propose(state, Round(state, "plain"), shape, 8, False)


def test_the_row_of_an_exit_is_that_of_the_cut_model(tiny):
    """Without adapter, an exit's row is what a model of the first layers alone would say."""
    short = llama()
    short.model.model.layers = short.model.model.layers[:2]
    session = wb.Session(tiny, PROMPT, wb.Speculative(wb.Kangaroo(None, (2,)), CHAIN), temperature=1.0)
    session.step()
    state = session.state.fork()
    tree, root = proposed(session.decoder.drafter, state, CHAIN), len(state.tokens) - 1
    expected = short.model(torch.tensor([[*state.tokens, *tree.tokens[1:]]])).logits[0].detach().log_softmax(-1)
    for node in range(3):
        assert close(tree.rows[node], expected[root + node], TERMS)
        assert (tree.rows[node] - expected[root + node + 1]).abs().max() > 1e-2  # not that of its neighbour


def test_states_wanted_by_number_are_those_between_the_layers(tiny):
    expected = tiny.model(torch.tensor([PROMPT]), output_hidden_states=True).hidden_states
    found = tiny.forward(PROMPT, range(len(PROMPT)), tiny.new_store(), want=("hidden", 1, 3))
    part = tiny.forward(PROMPT, range(len(PROMPT)), tiny.new_store(), want=(1, 3), layers=range(2), logits_at=())
    assert close(found.hidden, expected[4][0].detach(), TERMS)
    for number in (1, 3):
        assert close(found.states[number], expected[number][0].detach(), TERMS)
        assert not close(found.states[number], expected[number + 1][0].detach(), TERMS)
    assert set(part.states) == {1} and len(part.logits) == 0
    assert close(part.states[1], found.states[1], TERMS)


def test_adapters_read_the_text_once_in_order(tiny, weights):
    """What the adapters' cache holds after many rounds is what one reading of all exit states gives."""
    decoder = wb.Speculative(wb.Kangaroo(weights, (1, 2)), TREE)
    session = wb.Session(tiny, PROMPT, decoder, max_new_tokens=30)
    session.run()
    state = session.state
    runner, store, ids = state.runners["draft"], tiny.new_store(), state.tokens[:-1]
    found = tiny.forward(ids, range(len(ids)), store, want=(1, 2)).states
    fresh = runner.model.new_store()
    for layer, exit in enumerate((1, 2)):
        runner.model.forward(found[exit], range(len(ids)), fresh, layers=(layer,), logits_at=())
    fresh.commit(range(len(ids)))
    for layer in range(2):
        ours, theirs = (s._run.k[layer][:, : len(ids)] for s in (runner.store, fresh))
        assert close(ours, theirs, TERMS) and not close(ours[:, 1:], theirs[:, :-1], TERMS)


# -- shapes ----------------------------------------------------------------------------------------------------------


def test_del_is_told_of_text_alone(tiny, weights):
    """One shadow token per emitted one and exit, whatever was drafted beside it; agreement is the exit's own argmax."""
    told = []

    class Listening(wb.Del):
        def observe(self, memory, tree, accepted):
            told.append(memory["exits"])
            super().observe(memory, tree, accepted)

    decoder = wb.Speculative(wb.Kangaroo(weights, (1, 2)), Listening(4))
    trace = wb.decode(tiny, PROMPT, decoder, max_new_tokens=24)
    emitted = trace.rounds["emitted"][trace.rounds["mode"] != "prefill"].tolist()
    assert {round["figures"]["exit_layer"] for round in trace.steps() if round["mode"] != "prefill"} <= {1, 2}
    for exit in (1, 2):
        assert [len(one["agreed"][exit]) for one in told] == [len(one["confidence"][exit]) for one in told] == emitted
    ids = [*PROMPT, *trace.token_ids]
    states = tiny.forward(ids, range(len(ids)), tiny.new_store(), want=(2,)).states[2]
    model = wb.Speculative(wb.Kangaroo(weights, (2,))).runners(tiny)["draft"]
    best = model.forward(states, range(len(ids)), model.new_store()).logits.argmax(-1).tolist()[len(PROMPT) - 1 :]
    found = [a for one in told for a in one["agreed"][2]]
    assert found == [b == t for b, t in zip(best, trace.token_ids, strict=False)]


# -- layer search and refusals ---------------------------------------------------------------------------------------


def test_search_finds_the_layers_that_do_nothing():
    """Two of four layers made the identity: the search leaves out exactly these, and all drafts are accepted."""
    lm = llama()
    for layer in (1, 2):
        block = lm.model.model.layers[layer]
        for weight in (block.self_attn.o_proj.weight, block.mlp.down_proj.weight):
            weight.data.zero_()
    found = wb.search_skip(lm, [PROMPT, [2, 3]], tokens=16, length=2)
    assert set(found) >= {1, 2}
    trace = wb.decode(lm, PROMPT, wb.Speculative(wb.LayerSkip((1, 2)), CHAIN), max_new_tokens=16)
    assert trace.rounds["accepted"].sum() >= trace.rounds["drafted"].sum() - 3


def test_layers_spread_evenly_and_gain_by_hand():
    assert evenly(8, 0) == [] and evenly(8, 4) == [1, 3, 4, 6] and evenly(2, 1) == [] and evenly(1, 1) == []
    assert all(
        len(set(evenly(32, n))) == n and min(evenly(32, n)) > 0 and max(evenly(32, n)) < 31 for n in range(1, 31)
    )
    assert per_layer(0.5, 4, 8, 1) == pytest.approx(1.5 / 12) and per_layer(1.0, 2, 8, 4) == pytest.approx(5 / 16)
    assert wb.LayerSkip().kept(8) == [0, 2, 5, 7]


def test_refusals(tiny, weights, lm, toy):
    with pytest.raises(BadInput, match="exit before the last"):
        wb.decode(tiny, PROMPT, wb.Speculative(wb.Kangaroo(None, (4,))), max_new_tokens=2)
    with pytest.raises(BadInput, match=r"no adapter behind 3 layers; .* has \[1, 2\]"):
        wb.decode(tiny, PROMPT, wb.Speculative(wb.Kangaroo(weights, (3,))), max_new_tokens=2)
    with pytest.raises(BadInput, match="kangaroo was trained for"):
        wb.decode(lm, "def f", wb.Speculative(wb.Kangaroo(weights, (1,))), max_new_tokens=2)
    with pytest.raises(BadInput, match="expected one or more different numbers"):
        wb.Kangaroo(exits=(2, 2))
    with pytest.raises(BadInput, match="has layers 0 to 3; keep one"):
        wb.decode(tiny, PROMPT, wb.Speculative(wb.LayerSkip((0, 1, 2, 3))), max_new_tokens=2)
    with pytest.raises(BadInput, match="chooses exit layers, and 'layer_skip' has none"):
        wb.Speculative(wb.LayerSkip(), wb.Del())
    with pytest.raises((BadInput, Unsupported)):
        wb.decode(toy, [0, 1], wb.Speculative(wb.Kangaroo(None, (1,))), max_new_tokens=2)
