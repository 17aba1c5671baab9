"""Two drafters in one: what the fused tree holds, who learns what of it, and the distribution that comes out."""

import itertools
import random
from collections import Counter

import pytest
import torch
from scipy import stats

import workbench as wb
from tests.engine.test_bytes import ledger, walk
from tests.speculation.tiny import tiny_target
from workbench.engine.settings import Settings
from workbench.errors import BadInput
from workbench.rounds import Round
from workbench.rounds.costs import held_bytes
from workbench.speculation import DIST, POINT, DraftTree
from workbench.speculation.drafters import fuse
from workbench.speculation.drafters.fuse import graft

SAMPLING = {"greedy": {}, "seeded": {"temperature": 0.8, "seed": 5}}
PROMPT = [1, 4, 2, 0, 3, 3, 1]
BEST = wb.ADED(search="best")


@pytest.fixture(scope="module")
def tiny():
    tiny_target("tiny-fuse-draft", seed=4, context=48)
    return tiny_target("tiny-fuse", context=48)


def pairs(draft: str) -> dict[str, wb.Fuse]:
    model, copy = wb.DraftModel(draft), wb.CopySpec(ngram=1)
    return {
        "union": wb.Fuse(model, copy),
        "union, copies first": wb.Fuse(copy, model),
        "first": wb.Fuse(copy, model, mode="first"),
        "first, model first": wb.Fuse(model, copy, mode="first"),
        "two tables": wb.Fuse(wb.TokenRecycling(), BEST),
        "a table and a model": wb.Fuse(wb.TokenRecycling(), model, second_shape=wb.FixedTree((2, 1))),
        "two distributions": wb.Fuse(model, wb.Jacobi(), share=1.0),
        "nested": wb.Fuse(wb.Fuse(wb.SuffixRetrieval(), BEST), wb.Fuse(model, copy)),
    }


NAMES = list(pairs("x"))


@pytest.mark.parametrize("sampling", SAMPLING)
@pytest.mark.parametrize("name", NAMES)
def test_text_is_that_of_plain_decoding_and_counters_add_up(name, sampling, tiny):
    settings = SAMPLING[sampling]
    plain = wb.decode(tiny, PROMPT, max_new_tokens=500, **settings)
    drafter = pairs("tiny-fuse-draft")[name]
    for shape in (None, wb.FixedTree((2, 2, 1)) if "branches" in drafter.gives else wb.FixedLength(3)):
        trace = wb.decode(tiny, PROMPT, wb.Speculative(drafter=drafter, shape=shape), max_new_tokens=500, **settings)
        assert trace.token_ids == plain.token_ids and len(plain.token_ids) == tiny.context - len(PROMPT)
        drafts, rounds = trace.drafts, trace.rounds[trace.rounds["mode"] != "prefill"]
        assert rounds["drafted"].sum() == len(drafts) > 0
        assert rounds["accepted"].sum() == (drafts["fate"] == "accepted").sum() > 0
        assert not (drafts["fate"] == "pruned").any()
        assert not drafts.duplicated(["round", "parent", "token_id"]).any()


@pytest.mark.parametrize("name", ["union", "first"])
def test_with_the_embedded_pair(name, lm, held_out):
    settings = dict(max_new_tokens=24, temperature=0.8, seed=2)
    plain = wb.decode(lm, held_out[8][-400:], **settings)
    trace = wb.decode(lm, held_out[8][-400:], wb.Speculative(drafter=pairs("embedded-draft")[name]), **settings)
    assert trace.token_ids == plain.token_ids
    assert {"copyspec", "draft_model"} <= set("+".join(trace.drafts["drafter"]).split("+"))


@pytest.mark.parametrize("name", ["union", "nested", "two tables", "first"])
def test_forks_changes_of_drafter_and_bytes(name, tiny):
    settings = dict(temperature=0.8, seed=4, max_new_tokens=30)
    plain = wb.decode(tiny, PROMPT, **settings).token_ids
    decoder = wb.Speculative(drafter=pairs("tiny-fuse-draft")[name])
    session = wb.Session(tiny, PROMPT, decoder, **settings)
    for _ in range(5):
        session.step()
        held = held_bytes(session.state.memory)
        assert walk(session.state) == ledger(session.state) + held
        assert session.state.memory["fuse"] == ()  # nothing of a round outlives it
    other = session.fork(decoder=wb.Speculative(drafter=wb.CopySpec(ngram=2)))
    other.step()
    late = wb.Session(tiny, PROMPT, **settings)
    late.step()
    branches = [session, session.fork(), session.fork(at=2), other.fork(decoder=decoder), late.fork(decoder=decoder)]
    for branch in branches:
        list(branch)
        assert branch.state.new_tokens == plain


def test_mode_first_asks_the_second_only_where_the_first_is_silent(tiny):
    drafter = wb.Fuse(wb.CopySpec(ngram=2), wb.DraftModel("tiny-fuse-draft"), mode="first")
    trace = wb.decode(tiny, PROMPT, wb.Speculative(drafter=drafter), max_new_tokens=50, temperature=1.2)
    by_round = trace.drafts.groupby("round")["drafter"].agg(set)
    assert all(names in ({"copyspec"}, {"draft_model"}) for names in by_round)
    assert {"copyspec"} in list(by_round) and {"draft_model"} in list(by_round)
    drafting = trace.forwards[trace.forwards["phase"] == "draft"]["round"]
    assert set(drafting) == {number for number, names in by_round.items() if names == {"draft_model"}}


# -- the graft ---------------------------------------------------------------------------------------------------------


def tree_of(nodes: list[tuple[int, int]], name: str, kind: str = POINT, row: torch.Tensor | None = None) -> DraftTree:
    tree = DraftTree([0])
    for parent, token in nodes:
        tree.add(parent, token, kind, None if row is None else 0.5, name)
        if row is not None:
            tree.rows[parent] = tree.raw[parent] = row
    return tree


def test_common_beginnings_are_told_once_and_name_both():
    stem = tree_of([(0, 5), (1, 6)], "a")
    other = tree_of([(0, 5), (1, 7), (2, 8), (0, 9)], "b")
    tree, places = graft(stem, other, 10, 8)
    assert tree.tokens == [0, 5, 6, 7, 8, 9] and tree.parents == [-1, 0, 1, 1, 3, 0]
    assert tree.drafters == ["", "a+b", "a", "b", "b", "b"] and places == [0, 1, 3, 4, 5]
    assert stem.tokens == [0, 5, 6] and stem.drafters[1] == "a"  # its owner's tree is left alone
    assert tree.children(1) == [2, 3] and tree.ranks == [0, 0, 0, 1, 0, 1]


def test_grafts_begin_with_likely_tokens_the_most_probable_first_and_keep_to_their_share():
    dist = torch.tensor([0.05, 0.3, 0.1, 0.4, 0.15]).log()
    stem = tree_of([(0, 3)], "model", DIST, dist)
    other = tree_of([(0, 0), (1, 1), (0, 4), (3, 1), (0, 1), (5, 2)], "copy")
    tree, places = graft(stem, other, 3, likeliest=3)  # 3, 1 and 4 may begin; 0 may not
    assert tree.tokens == [0, 3, 1, 2, 4] and places == [0, None, None, 4, None, 2, 3]
    assert tree.kinds == [POINT, DIST, POINT, POINT, POINT]
    assert graft(stem, other, 100, likeliest=5)[0].tokens == [0, 3, 1, 2, 4, 1, 0, 1]
    assert tree.raw == {}  # no distribution is known after a grafted node: there is nothing to compare there


@pytest.mark.parametrize("seed", range(20))
def test_a_fused_tree_holds_both(seed):
    draw = random.Random(seed)

    def some(name: str) -> DraftTree:
        nodes: list[tuple[int, int]] = []
        for _ in range(draw.randint(0, 12)):
            node = draw.randint(0, len(nodes)), draw.randrange(3)
            nodes += [node] if node not in nodes else []
        return tree_of(nodes, name)

    def texts(tree: DraftTree) -> set[tuple]:
        return {tuple(tree.tokens[n] for n in tree.path(node)) for node in range(len(tree))}

    stem, other = some("a"), some("b")
    tree, places = graft(stem, other, 127, 8)
    assert texts(tree) == texts(stem) | texts(other) and len(texts(tree)) == len(tree)
    for node, place in enumerate(places):
        assert [tree.tokens[n] for n in tree.path(place)] == [other.tokens[n] for n in other.path(node)]
    small, places = graft(stem, other, 2, 8)
    assert len(small) <= len(stem) + 2 and texts(small) <= texts(tree)


def test_each_part_is_told_of_its_own_nodes(toy):
    """Numbers, paths and logits of a part's own tree; a node that was not grafted stands for its ancestor."""
    told = []

    class Told(wb.CopySpec):
        declared_name = "told"

        def propose(self, state, r, shape, depth, seeded):
            return tree_of([(0, 1), (1, 2), (0, 3), (3, 1)], "told")

        def on_verified(self, state, r, tree, path, logits):
            told.append((tree, path, logits))

    class Stem(wb.CopySpec):
        declared_name = "stem"

        def propose(self, state, r, shape, depth, seeded):
            return tree_of([(0, 3)], "stem")

    drafter = wb.Fuse(Stem(), Told(), share=0.2)  # of ten nodes: two may join
    decoder = wb.Speculative(drafter=drafter)
    state = decoder.start(toy, [0, 1], Settings())
    tree = drafter.propose(state, Round(state, "plain"), wb.FixedLength(10), 10, False)
    assert tree.tokens == [0, 3, 1, 2]  # [3] is both's, [3, 1] found no room
    logits = torch.arange(4.0)[:, None].expand(4, 4)
    drafter.on_verified(state, None, tree, [1], logits)
    own, path, rows = told[0]
    assert path == [3] and rows[:, 0].tolist() == [0, 2, 3, 1, 1]
    assert own.tokens == [0, 1, 2, 3, 3] and own.parents == [-1, 0, 1, 0, 0]


# -- the distribution
# -----------------------------------------------------------------------------------------------------------


def chi_square(toy, drafter: wb.Fuse, shape, runs: int, prompt=(1, 2, 1)) -> float:
    """p-value of two tokens under rejection sampling, against the model's own distribution."""
    decoder = wb.Speculative(drafter=drafter, shape=shape, verifier=wb.Rejection())
    found: Counter = Counter()
    start = decoder.start(toy, prompt, Settings(sampling=wb.Sampling(temperature=1.0), max_new_tokens=2, level="off"))
    decoder.step(start)
    for seed in range(runs):
        state = start.fork()
        state.settings = Settings(sampling=wb.Sampling(temperature=1.0), seed=seed, max_new_tokens=2, level="off")
        while not state.ended:
            decoder.step(state)
        found[tuple(state.new_tokens)] += 1
    first = toy.dist(list(prompt))
    expected = {
        (a, b): (first[a] * toy.dist([*prompt, a])[b]).item() * runs for a, b in itertools.product(range(4), repeat=2)
    }
    return stats.chisquare([found[text] for text in expected], list(expected.values())).pvalue


def test_rejection_over_a_fused_tree_gives_the_targets_distribution(toy):
    drafter = wb.Fuse(wb.DraftModel("toy-draft"), wb.CopySpec(ngram=1))
    assert chi_square(toy, drafter, wb.FixedLength(2), 600) > 1e-4


def test_a_draw_that_gives_way_to_a_copy_of_it_is_biased(toy, monkeypatch):
    """The same test finds the bias when retrieved nodes take the place of draws that hold their tokens."""

    def copies_win(stem, other, most, likeliest):
        tree, places = graft(stem, other, most, likeliest)
        for node in range(1, len(tree)):
            if "+" in tree.drafters[node]:
                tree.kinds[node] = POINT
        return tree, places

    monkeypatch.setattr(fuse, "graft", copies_win)
    drafter = wb.Fuse(wb.DraftModel("toy-draft"), wb.CopySpec(ngram=1))
    assert chi_square(toy, drafter, wb.FixedLength(2), 600) < 1e-4


def test_what_cannot_be_fused_is_refused_in_one_line(toy):
    cases = {
        "one memory": lambda: wb.Fuse(wb.TokenRecycling(), wb.Fuse(wb.CopySpec(), wb.TokenRecycling(width=2))),
        "with the target itself": lambda: wb.Fuse(wb.CopySpec(), wb.Kangaroo(None, (1,))),
        "drafts one chain": lambda: wb.Fuse(wb.DraftModel(), wb.CopySpec(), second_shape=wb.FixedTree((2,))),
        "one drafter alone": lambda: wb.Speculative(wb.Fuse(wb.DraftModel(), BEST), wb.IndependentChains()),
        "confidence": lambda: wb.Speculative(drafter=wb.Fuse(wb.CopySpec(), BEST), shape=wb.ConfidenceStop()),
        "would run a model as 'draft'": lambda: wb.Fuse(wb.DraftModel("toy-draft"), Other("toy-draft")).runners(toy),
    }
    for reason, make in cases.items():
        with pytest.raises(BadInput, match=reason) as caught:
            make()
        assert "\n" not in str(caught.value)


class Other(wb.DraftModel):
    declared_name = "other"


def test_the_seconds_shape_learns_and_shares_no_memory_with_the_firsts(tiny):
    heuristic = wb.HeuristicLength()
    fused = wb.Fuse(wb.CopySpec(ngram=1), wb.DraftModel("tiny-fuse-draft"), second_shape=heuristic)
    session = wb.Session(tiny, PROMPT, wb.Speculative(fused), max_new_tokens=30)
    session.run()
    assert session.state.memory["heuristic"] != heuristic.start
    with pytest.raises(BadInput, match="two shapes 'heuristic' would learn in one memory"):
        wb.Speculative(fused, heuristic)
