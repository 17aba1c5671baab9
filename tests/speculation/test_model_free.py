"""Drafters without a model of their own: equality, memory, and the tables they learn."""

import itertools
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import stats

import workbench as wb
from tests.engine.test_bytes import ledger, walk
from tests.rounding import tolerance
from tests.speculation.tiny import TERMS, tiny_target
from workbench.engine.settings import Settings
from workbench.rounds import Round
from workbench.rounds.costs import held_bytes
from workbench.speculation import DIST, POINT
from workbench.speculation.drafters import aded

SAMPLING = {"greedy": {}, "seeded": {"temperature": 0.8, "seed": 5}}
PROMPT = [1, 4, 2, 0, 3, 3, 1]
DRAFTERS = {
    "prompt_lookup": wb.PromptLookup(),
    "input_guided": wb.InputGuided(),
    "recycling": wb.TokenRecycling(),
    "aded": wb.ADED(),
    "aded-best": wb.ADED(search="best", window=64, boost=0.3),
    "suffix": wb.SuffixRetrieval(shortest=1),
    "jacobi": wb.Jacobi(),
    "jacobi-last": wb.Jacobi(fill="last"),
}
TREE, CHAIN = wb.FixedTree((2, 2, 1)), wb.FixedLength(4)
TABLES = ("recycling", "aded", "aded-best", "jacobi", "jacobi-last")  # the others keep figures, or nothing


def arms(name: str) -> list[wb.Speculative]:
    """The drafter in its own shape, as a chain, and as a tree where it branches."""
    shapes = [None, CHAIN, *([TREE] if "branches" in DRAFTERS[name].gives else [])]
    return [wb.Speculative(drafter=DRAFTERS[name], shape=shape) for shape in shapes]


@pytest.fixture(scope="module")
def tiny():
    return tiny_target("tiny-model-free", context=64)


@pytest.mark.parametrize("sampling", SAMPLING)
@pytest.mark.parametrize("name", DRAFTERS)
def test_text_is_that_of_plain_decoding(name, sampling, lm, held_out, tiny):
    """On the embedded target and, to the end of its context, on a random model of five words."""
    settings = SAMPLING[sampling]
    plain = wb.decode(lm, held_out[4][-400:], max_new_tokens=24, **settings)
    found = wb.decode(lm, held_out[4][-400:], wb.Speculative(drafter=DRAFTERS[name]), max_new_tokens=24, **settings)
    assert found.token_ids == plain.token_ids
    plain = wb.decode(tiny, PROMPT, max_new_tokens=500, **settings)
    assert len(plain.token_ids) == tiny.context - len(PROMPT)
    for decoder in arms(name):
        trace = wb.decode(tiny, PROMPT, decoder, max_new_tokens=500, **settings)
        assert trace.token_ids == plain.token_ids
        rounds = trace.rounds[trace.rounds["mode"] != "prefill"]
        assert rounds["drafted"].sum() == len(trace.drafts) > 0
        assert rounds["accepted"].sum() == (trace.drafts["fate"] == "accepted").sum() > 0
        assert rounds["emitted"].sum() == len(plain.token_ids) > len(rounds)


@pytest.mark.parametrize("name", DRAFTERS)
def test_rejection_keeps_greedy_text_and_the_end_of_text_ends_it(name, tiny):
    plain = wb.decode(tiny, PROMPT, max_new_tokens=24, temperature=0.8, seed=2).token_ids
    eos = next(token for token in plain[4:] if token not in plain[:4])
    for decoder in arms(name):
        ended = wb.Session(tiny, PROMPT, decoder, max_new_tokens=24, temperature=0.8, seed=2, eos_ids=frozenset({eos}))
        list(ended)
        assert ended.trace.token_ids == plain[: plain.index(eos) + 1] and ended.ended == "eos"
        more = ended.fork(at=ended.length, eos_ids=frozenset())
        list(more)
        assert more.trace.token_ids == plain
        rejecting = wb.Speculative(drafter=decoder.drafter, shape=decoder.shape, verifier=wb.Rejection())
        greedy = wb.decode(tiny, PROMPT, max_new_tokens=24).token_ids
        assert wb.decode(tiny, PROMPT, rejecting, max_new_tokens=24).token_ids == greedy


@pytest.mark.parametrize("name", DRAFTERS)
def test_forks_rewinds_and_changes_of_drafter_go_on_equal(name, tiny):
    settings = dict(temperature=0.8, seed=4, max_new_tokens=36)
    plain = wb.decode(tiny, PROMPT, **settings).token_ids
    decoder = wb.Speculative(drafter=DRAFTERS[name])
    session = wb.Session(tiny, PROMPT, decoder, **settings)
    for _ in range(6):
        session.step()
    memory = dict(session.state.memory)
    held = {key: repr(value) for key, value in memory.items()}
    here, early = session.fork(), session.fork(at=3)
    other = session.fork(decoder=wb.Speculative(drafter=wb.CopySpec(ngram=2)))
    for _ in range(3):
        other.step()
    back = other.fork(decoder=decoder)  # with a gap in what the drafter has seen
    fresh = wb.Session(tiny, PROMPT, **settings)
    for _ in range(4):
        fresh.step()
    late = fresh.fork(decoder=decoder)  # with no memory at all
    for branch in (session, here, early, other, back, late):
        list(branch)
        assert branch.state.new_tokens == plain
    assert session.trace.drafts["token_id"].tolist()[-5:] == here.trace.drafts["token_id"].tolist()[-5:]
    assert {key: repr(value) for key, value in memory.items()} == held  # values were replaced, never changed


@pytest.mark.parametrize("make", [wb.TokenRecycling, wb.ADED], ids=["recycling", "aded"])
def test_a_table_of_another_width_is_begun_anew(make, tiny):
    settings = dict(temperature=0.8, seed=4, max_new_tokens=40)
    session = wb.Session(tiny, PROMPT, wb.Speculative(drafter=make(width=2)), **settings)
    for _ in range(4):
        session.step()
    branch = session.fork(decoder=wb.Speculative(drafter=make(width=4)))
    list(branch)
    assert branch.state.new_tokens == wb.decode(tiny, PROMPT, **settings).token_ids
    assert branch.trace.rounds["accepted"].sum() > session.trace.rounds["accepted"].sum()


@pytest.mark.parametrize("name", DRAFTERS)
def test_all_bytes_of_its_memory_are_booked_as_its_table(name, tiny):
    session = wb.Session(tiny, PROMPT, wb.Speculative(drafter=DRAFTERS[name]), temperature=0.8, max_new_tokens=30)
    for _ in session:
        state = session.state
        assert walk(state) == ledger(state) + held_bytes(state.memory)
        assert session.trace.rounds["cache_bytes"].iloc[-1] == walk(state)
        assert walk(state.fork()) == walk(state)
    assert (held_bytes(session.state.memory) > 0) == (name in TABLES)


@pytest.mark.parametrize("name", DRAFTERS)
def test_only_jacobi_draws_and_the_others_place(name, tiny):
    """Kinds and sources under rejection sampling: what was not drawn from a stored row is POINT."""
    decoder = wb.Speculative(drafter=DRAFTERS[name], verifier=wb.Rejection())
    drafts = wb.decode(tiny, PROMPT, decoder, max_new_tokens=60, temperature=1.0).drafts
    assert set(drafts["kind"]) == {DIST if name.startswith("jacobi") else POINT}
    assert set(drafts["drafter"]) == {decoder.drafter.declared_name}


# -- Jacobi ------------------------------------------------------------------------------------------------------------


def jacobi_state(toy, decoder):
    """After the prompt and one round in which the window was refined."""
    session = wb.Session(toy, [0, 1, 2], decoder, temperature=1.0, max_new_tokens=30, seed=1)
    while "jacobi" not in session.state.memory or not len(session.state.memory["jacobi"][1]):
        session.step()
    return session.state


def test_a_windows_tokens_follow_the_rows_stored_with_them(toy):
    """Density distribution, over seeds: frequencies at depth 1 and 2 against the row kept of the last pass."""
    decoder = wb.Speculative(drafter=wb.Jacobi(), shape=CHAIN, verifier=wb.Rejection())
    state = jacobi_state(toy, decoder)
    length, kept = state.memory["jacobi"]
    assert length == len(state.tokens)
    counts = [Counter(), Counter()]
    for seed in range(500):
        fork = replace(state, settings=replace(state.settings, seed=seed), memory=dict(state.memory))
        r = Round(fork, "plain")
        tree = decoder.drafter.propose(fork, r, CHAIN, 10, seeded=False)
        assert tree.kinds[1:] == [DIST] * 4
        for depth in (0, 1):
            row = kept[depth].log_softmax(-1) if depth < len(kept) else torch.full((4,), 0.25).log()
            assert torch.allclose(tree.rows[depth], row.to(tree.rows[depth].dtype), atol=1e-6)
            counts[depth][tree.tokens[depth + 1]] += 1
    for depth in (0, 1):
        expected = tree.rows[depth].exp() * 500
        assert stats.chisquare([counts[depth][t] for t in range(4)], expected.numpy()).pvalue > 1e-4


def test_rejection_over_a_jacobi_window_gives_the_targets_distribution(toy):
    """Chi-square of three tokens on the known model; windows reuse the noise of their positions from pass to pass."""
    runs, prompt = 500, [0, 1]
    decoder = wb.Speculative(drafter=wb.Jacobi(), shape=wb.FixedLength(3), verifier=wb.Rejection())
    found: Counter = Counter()
    for seed in range(runs):
        state = decoder.start(toy, prompt, settings_of(toy, prompt, seed))
        while not state.ended:
            decoder.step(state)
        found[tuple(state.tokens[2:5])] += 1
    expected = {}
    for text in itertools.product(range(4), repeat=3):
        mass = 1.0
        for i, token in enumerate(text):
            mass *= toy.dist([*prompt, *text[:i]])[token].item()
        expected[text] = mass * runs
    common = [text for text in expected if expected[text] >= 5]
    seen = [*(found[text] for text in common), runs - sum(found[text] for text in common)]
    awaited = [*(expected[text] for text in common), runs - sum(expected[text] for text in common)]
    assert stats.chisquare(seen, awaited).pvalue > 1e-4


def settings_of(toy, prompt, seed):
    return Settings(sampling=wb.Sampling(temperature=1.0), seed=seed, max_new_tokens=3, level="off")


def test_at_temperature_zero_the_window_is_jacobi_decoding(tiny):
    """Drafts are the argmaxes of the last pass, position by position."""
    session = wb.Session(tiny, PROMPT, wb.Speculative(drafter=wb.Jacobi(), shape=CHAIN), max_new_tokens=30)
    session.step()
    while not session.ended:
        length, rows = session.state.memory.get("jacobi", (0, ()))
        session.step()
        last = session.trace.drafts[session.trace.drafts["round"] == session.rounds - 1]
        if length and len(last):
            assert last["token_id"].tolist()[: len(rows)] == [int(row.argmax()) for row in rows]


# -- tables ------------------------------------------------------------------------------------------------------------


def test_token_recycling_keeps_what_the_target_found_likely(tiny):
    """After the prompt: for every token the best successors where it last stood; the tree is filled by rank."""
    decoder = wb.Speculative(drafter=wb.TokenRecycling(width=3), shape=TREE)
    state = decoder.start(tiny, PROMPT, Settings(max_new_tokens=9))
    decoder.step(state)
    dists = tiny.model(torch.tensor([PROMPT])).logits[0]
    table = state.memory["recycling"]
    assert table.shape == (5, 3) and table.dtype == np.int32
    for token in range(5):
        seen = [i for i, t in enumerate(PROMPT[:-1]) if t == token]
        expected = dists[seen[-1]].topk(3).indices.tolist() if seen else [-1] * 3
        assert table[token].tolist() == expected
    drafts = decoder.step(state).drafts
    tokens = [PROMPT[-1], *drafts["token_id"]]
    for i, (parent, token) in enumerate(zip(drafts["parent"], drafts["token_id"], strict=True)):
        assert token == table[tokens[parent]][drafts["parent"][:i].count(parent)]
    assert len(tokens) > 4 and state.memory["recycling"] is not table


def test_an_unknown_token_gets_no_children(toy):
    decoder = wb.Speculative(drafter=wb.TokenRecycling(), shape=TREE)
    trace = wb.decode(toy, [2], decoder, max_new_tokens=12)
    assert trace.rounds["mode"].iloc[0] == "plain" and trace.rounds["stop_reason"].iloc[0] == "no match"
    assert trace.rounds["accepted"].sum() > 0


@pytest.mark.parametrize("search", ["best", "mcts"])
def test_aded_weights_are_the_targets_own(search, tiny):
    """After a pair the target has met: its probabilities there; else `backoff` times those after the last token."""
    drafter = wb.ADED(search=search, width=5, window=0)
    session = wb.Session(tiny, PROMPT, wb.Speculative(drafter=drafter), max_new_tokens=20)
    session.step()
    weights = drafter._weights(session.state)
    dist = tiny.model(torch.tensor([PROMPT])).logits[0].softmax(-1)
    found = weights(4, 2)
    within = tolerance(TERMS)
    assert found == pytest.approx({t: dist[2, t].item() for t in range(5)}, abs=within)
    assert weights(0, 2) == pytest.approx({t: 0.5 * dist[2, t].item() for t in range(5)}, abs=within)
    recent = wb.ADED(window=8, boost=0.2)._weights(session.state)
    assert recent(3, 3)[1] - weights(3, 3).get(1, 0.0) == pytest.approx(0.2, abs=within)


def test_pairs_that_share_a_place_replace_each_other():
    table = aded._Table.empty(64, 2)
    pairs = np.array([[i, j] for i in range(40) for j in range(40)])
    rows = np.stack([pairs[:, 0], pairs[:, 1]], 1)
    table.put(pairs, rows, rows / 50)
    found = [(a, b) for a, b in pairs.tolist() if table.get(a, b)]
    assert len(found) == 64 and all(table.get(a, b)[0] == [a, b] for a, b in found)
    assert table.get(aded.ALONE, 3) is None and table.get(39, 39)[1] == pytest.approx([0.78, 0.78])
    one = table.copy()
    one.put(np.array([[-1, 7]]), np.array([[5, 6]]), np.array([[0.5, 0.2]]))
    assert one.get(-1, 7)[0] == [5, 6] and table.get(-1, 7) is None


def chain_weights(a: int, b: int) -> dict[int, float]:
    return {(b + 1) % 7: 0.6, (b + 2) % 7: 0.3, (b + 3 + a % 2) % 7: 0.05}


def every_path(depth: int, a: int, b: int) -> dict[tuple, float]:
    out = {}
    for token, weight in chain_weights(a, b).items() if depth else ():
        out[(token,)] = weight
        out |= {(token, *rest): weight * w for rest, w in every_path(depth - 1, b, token).items()}
    return out


def test_best_first_finds_the_most_probable_paths():
    paths = aded.best_first(chain_weights, 1, 2, most=12, depth=4, least=0.001)
    products = every_path(4, 1, 2)
    best = sorted(products.values(), reverse=True)[:12]
    assert [products[tuple(path)] for path in paths] == pytest.approx(best)
    assert all(path[:-1] in [[], *paths[:i]] for i, path in enumerate(paths))
    assert aded.best_first(chain_weights, 1, 2, most=50, depth=4, least=0.5) == [[3]]
    assert aded.best_first(chain_weights, 1, 2, most=3, depth=4, least=0.0, width=1) == [[3], [3, 4], [3, 4, 5]]


def test_tree_search_visits_likely_paths_most():
    paths = aded.by_visits(chain_weights, 1, 2, most=10, depth=3, simulations=200)
    assert all(path[:-1] in [[], *paths[:i]] for i, path in enumerate(paths)) and paths[0] == [3]
    products = every_path(3, 1, 2)
    assert sum(products[tuple(path)] for path in paths) > 0.9 * sum(sorted(products.values())[-10:])
    deep = aded.by_visits(chain_weights, 1, 2, most=100, depth=2, simulations=60)
    assert max(map(len, deep)) == 3  # the likeliest next token behind every end


def test_input_guided_drafts_the_source_until_a_mismatch_and_finds_its_place_again():
    """The source comes out with one token replaced: three rounds per part, not one per token."""
    source = [7, 3, 9, 4, 8, 2, 6, 5, 1, 11, 10, 12]
    wanted = [*source[:5], 0, *source[6:]]

    class Copying(wb.ToyModel):
        """Continues the prompt with `wanted`, whatever was drafted."""

        def forward(self, tokens, positions, cache, *args, **kwargs):
            out = super().forward(tokens, positions, cache, *args, **kwargs)
            rows = list(positions)[-len(out.logits) :]
            out.logits.fill_(-50.0)
            for row, position in enumerate(rows):
                out.logits[row, (wanted * 3)[max(0, position + 1 - len(source))]] = 50.0
            return out

    model = Copying(vocab_size=16, context=64)
    decoder = wb.Speculative(drafter=wb.InputGuided())
    trace = wb.decode(model, source, decoder, max_new_tokens=len(wanted))
    assert trace.token_ids == wanted
    rounds = trace.rounds[trace.rounds["mode"] != "prefill"]
    assert rounds["emitted"].tolist() == [6, 1, 5]  # to the mismatch, one plain step, the rest
    assert rounds["drafted"].tolist()[:2] == [12, 0]


def test_marks_cut_the_source_out_of_the_prompt(lm):
    prompt = "Fix this:\n<<<\nreturn value\n>>>\nFixed:\n"
    drafter = wb.InputGuided(begin="<<<\n", end=">>>")
    session = wb.Session(lm, prompt, wb.Speculative(drafter=drafter), max_new_tokens=4)
    session.step()
    low, high = drafter._source(session.state)
    assert lm.tokenizer.decode(session.state.tokens[low:high]).strip() == "return value"
    low, high = wb.InputGuided(begin="nowhere")._source(session.state)
    assert (low, high) == (0, session.state.prompt_length)
