"""Shapes: the density distribution of what they draw, the trees they promise, and the text that stays plain
decoding's."""

import itertools
import json
from types import SimpleNamespace

import pytest
import torch
from safetensors import safe_open

import workbench as wb
from tests.engine.test_bytes import ledger, walk
from tests.speculation.shape_distributions import DRAFT, VOCAB, grown, noise_at_once, outcome_distribution, texts
from tests.speculation.test_speculative import check_caches, decoding_rounds
from tests.speculation.tiny import tiny_target
from workbench.errors import BadInput
from workbench.experiments.calibration import calibrate
from workbench.speculation import DIST, POINT, DraftTree
from workbench.speculation.heads import weights
from workbench.speculation.shapes.rsd_s import conditioned
from workbench.speculation.shapes.sequoia import acceptance_by_rank, best_tree, calibrations, static_tree
from workbench.speculation.shapes.specdec import Acceptance
from workbench.speculation.tree_builder import TreeBuilder
from workbench.training.acceptance import acceptance
from workbench.training.data import make_text
from workbench.training.fit import Recipe, fit

PROMPT = [1, 4, 2, 0, 3, 3, 1]
SEEDED = {"temperature": 0.8, "seed": 5}
RUNS, FEW, SIGNIFICANCE = 2500, 1000, 1e-4

DRAWN = {
    "dyspec": (wb.DySpec(4, 0.0), None),
    "dyspec-threshold": (wb.DySpec(6, 0.2), None),
    "rsd_s": (wb.StochasticBeam(2, 3), None),
    "chains": (wb.IndependentChains(2, 2), None),
    "chains-kseq": (wb.IndependentChains(2, 2), wb.KSeq()),
}
ALL = {
    "heuristic": wb.HeuristicLength(3),
    "dyspec": wb.DySpec(6, 0.05),
    "rsd_s": wb.StochasticBeam(2, 3),
    "chains": wb.IndependentChains(2, 3),
    "sequoia": wb.Sequoia(6, 3),
    "eagle2": wb.Eagle2(6, 3, 3),
}


@pytest.fixture(scope="module")
def tiny():
    """Five words, two layers; its draft is registered as "tiny-draft"."""
    tiny_target("tiny-draft", seed=4)
    return tiny_target("tiny", seed=3)


# -- the density distribution
# -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", DRAWN)
def test_children_follow_their_rows_and_rounds_the_targets_distribution(name, monkeypatch):
    noise_at_once(monkeypatch)
    shape, verifier = DRAWN[name]
    whole, density = outcome_distribution(shape, RUNS, verifier)
    assert whole > SIGNIFICANCE and density > SIGNIFICANCE


def by_probability(tree: DraftTree) -> DraftTree:
    """Siblings anew, in decreasing q instead of draw order: what sorting a beam by probability gives."""
    order = sorted(range(1, len(tree)), key=lambda n: (tree.depths[n], -tree.q[n]))
    new, numbers = DraftTree([tree.tokens[0]]), {0: 0}
    for node in order:
        numbers[node] = new.add(numbers[tree.parents[node]], tree.tokens[node], DIST, tree.q[node], "test")
    new.rows = {numbers[node]: row for node, row in tree.rows.items()}
    return new


def pruned(tree: DraftTree) -> DraftTree:
    """Nodes of the first level dropped for their own small q, though they were drawn."""
    builder = object.__new__(TreeBuilder)
    builder.tree, builder.expanded, builder.round = tree, [], grown(wb.FixedLength(1)).round
    builder.keep([n for n in range(1, len(tree)) if tree.q[tree.path(n)[0]] >= 0.2])
    return builder.tree


def without_repeats(tree: DraftTree) -> DraftTree:
    tree.draws = {node: list(dict.fromkeys(drawn)) for node, drawn in tree.draws.items()}
    return tree


@pytest.mark.parametrize(
    ("shape", "spoil"),
    [(wb.StochasticBeam(2, 3), by_probability), (wb.DySpec(4, 0.0), pruned)],
    ids=["sorted siblings", "pruned by own value"],
)
def test_both_tests_notice_what_breaks_the_distribution(shape, spoil, monkeypatch):
    noise_at_once(monkeypatch)
    whole, density = outcome_distribution(shape, FEW, spoil=spoil)
    assert whole < SIGNIFICANCE and density < SIGNIFICANCE


@pytest.mark.parametrize("verifier", [wb.Rejection(), wb.KSeq()], ids=["rejection", "kseq"])
def test_a_repeated_draw_left_out_is_noticed(verifier, monkeypatch):
    noise_at_once(monkeypatch)
    whole, _ = outcome_distribution(wb.IndependentChains(3, 1), RUNS, verifier, without_repeats)
    assert whole < SIGNIFICANCE


@pytest.mark.parametrize("shape", [wb.DySpec(8, 0.0), wb.StochasticBeam(3, 3)], ids=["dyspec", "rsd_s"])
def test_draws_at_different_nodes_and_rounds_are_independent(shape):
    """Who decides about one node by what was drawn at another shares noise with no other node of any round."""
    asked = []

    class Watched(TreeBuilder):
        def branch(self, number):
            asked.append(number)
            return super().branch(number)

    for start in (1, 2, 3):
        builder = grown(shape, make=Watched, start=start)
        assert all(kind == DIST for kind in builder.tree.kinds[1:])
    assert len(set(asked)) == len(asked) >= 9


def test_scores_of_a_beam_are_gumbel_draws_given_their_maximum():
    """−log(e^−top − e^−largest + e^−score), in extremes too."""
    for score, largest, top in ((-1.0, 0.5, 0.2), (0.5, 0.5, -3.0), (-40.0, 2.0, 1.0), (1.999, 2.0, 30.0)):
        exact = torch.tensor([score, largest, top], dtype=torch.float64).neg().exp()
        expected = -(exact[2] - exact[1] + exact[0]).log().item()
        assert conditioned(score, largest, top) == pytest.approx(expected, abs=1e-6)
    assert conditioned(-float("inf"), 0.0, 0.0) == -float("inf")


# -- the trees -------------------------------------------------------------------------------------------------------


def reaches(prefix: tuple[int, ...]) -> float:
    """The draft's log-probability of a path."""
    return sum(DRAFT[prefix[:i]][token].item() for i, token in enumerate(prefix))


EVERY = [p for length in (1, 2, 3) for p in itertools.product(range(VOCAB), repeat=length)]
BEST = sorted(EVERY, key=reaches, reverse=True)


@pytest.mark.parametrize("count", [1, 5, 9, 20])
def test_eagle2_keeps_the_likeliest_of_all_paths(count):
    """With room for every node it is the exhaustive answer; what the drafter read is still told in its order."""
    builder = grown(wb.Eagle2(count, 16, 3))
    tree = builder.tree
    assert {texts(tree, n) for n in range(1, len(tree))} == set(BEST[:count])
    assert set(tree.kinds[1:]) == {POINT} and len(builder.expanded) == 1 + 4 + 16
    assert [n for n in builder.expanded if n >= 0] == sorted(n for n in builder.expanded if n >= 0)
    assert sum(n > 0 for n in builder.expanded) == sum(len(p) < 3 for p in BEST[:count])


@pytest.mark.parametrize("count", [1, 5, 9, 20])
def test_dyspec_without_noise_takes_the_likeliest_paths_in_order(count):
    """At temperature 0 the heap's order is that of all paths; a threshold ends it."""
    tree = grown(wb.DySpec(count, 0.0), temperature=0).tree
    assert [texts(tree, n) for n in range(1, len(tree))] == BEST[:count]
    worth = [torch.tensor(reaches(p)).exp().item() for p in BEST]
    cut = grown(wb.DySpec(20, worth[4] - 1e-9), temperature=0).tree
    assert len(cut) - 1 <= 5 and cut.stop_reason == "threshold"


def test_the_beam_without_noise_is_beam_search():
    tree = grown(wb.StochasticBeam(3, 2), temperature=0).tree
    first = [p for p in BEST if len(p) == 1][:3]
    second = [p for p in BEST if len(p) == 2 and p[:1] in first][:3]
    assert [texts(tree, n) for n in range(1, len(tree))] == first + second


@pytest.mark.parametrize("shape", ALL.values(), ids=ALL)
def test_depth_is_never_exceeded(shape):
    for depth in range(4):
        tree = grown(shape, depth=depth).tree
        assert max(tree.depths) <= depth and len(tree) <= shape.budget + 1


def test_chains_tell_every_draw_and_are_one_where_they_would_be_equal():
    shape = wb.IndependentChains(5, 3)
    tree = grown(shape).tree
    assert sum(map(len, tree.draws.values())) == 15 and len(tree) < 16  # some draws repeat
    for node, drawn in tree.draws.items():
        assert sorted(set(drawn)) == tree.children(node)
    for one in (grown(shape, temperature=0), grown(shape, seeded=True)):
        assert one.tree.is_chain and len(one.tree) == 4 and not one.tree.draws


def test_the_heuristic_grows_by_two_and_shrinks_by_one():
    shape, memory = wb.HeuristicLength(3, max_length=6), {}

    def drafted(accepted: int) -> int:
        tree = DraftTree([0])
        while asked := shape.ask(tree, memory):
            tree.add(asked[0][0], 0, POINT, None, "test")
        shape.observe(memory, tree, min(accepted, len(tree) - 1))
        return len(tree) - 1

    assert [drafted(n) for n in (9, 9, 9, 0, 9, 0, 0, 0, 0, 0, 0, 0)] == [3, 5, 6, 6, 5, 6, 5, 4, 3, 2, 1, 1]
    shape.observe(memory, DraftTree([0]), 0)  # nothing was drafted: nothing is learned
    assert memory == {"heuristic": 1}


def trees(size: int, depth: int, most: int) -> list[tuple]:
    """Every ordered tree of that many nodes, as nested tuples of children."""
    if size == 1:
        return [()]
    if not depth:
        return []

    def forests(left: int, count: int) -> list[tuple]:
        if not left:
            return [()]
        if not count:
            return []
        return [
            (first, *rest)
            for n in range(1, left + 1)
            for first in trees(n, depth - 1, most)
            for rest in forests(left - n, count - 1)
        ]

    return forests(size - 1, most)


def promise(tree: tuple, chances: tuple[float, ...]) -> float:
    return 1 + sum(chance * promise(child, chances) for chance, child in zip(chances, tree, strict=False))


def shape_of(template: dict, ranks: tuple = ()) -> tuple:
    return tuple(shape_of(template, (*ranks, child)) for child in range(template.get(ranks, 0)))


@pytest.mark.parametrize("chances", [(0.6, 0.2, 0.1), (0.4, 0.35, 0.05), (0.9, 0.01, 0.01)])
@pytest.mark.parametrize("depth", [1, 2, 4])
def test_the_static_tree_is_the_best_of_all_trees(chances, depth):
    for nodes in range(1, 7):
        every = [tree for size in range(1, nodes + 2) for tree in trees(size, depth, len(chances))]
        found = shape_of(static_tree(chances, nodes, depth))
        assert promise(found, chances) == pytest.approx(max(promise(tree, chances) for tree in every))


def test_the_cheapest_tree_weighs_nodes_and_levels():
    """Against every (nodes, depth); dear drafting makes it shallow, dear rows make it small."""
    chances, flat = (0.6, 0.2, 0.1), {1: 4.0, 8: 4.0}
    nodes, depth, cost = best_tree(chances, {1: 3.0, 4: 4.0, 8: 9.0}, 0.5, depth=4)
    times = dict(zip(range(1, 9), (3, 10 / 3, 11 / 3, 4, 5.25, 6.5, 7.75, 9), strict=True))
    every = {
        (m, d): (d * 0.5 + times[m + 1]) / promise(shape_of(static_tree(chances, m, d)), chances)
        for m in range(1, 8)
        for d in range(1, 5)
    }
    assert cost == pytest.approx(min(every.values())) and every[nodes, depth] == pytest.approx(cost)
    assert best_tree(chances, flat, 100.0)[:2] == (0, 0)
    assert best_tree(chances, flat, 0.0)[0] == 7
    with pytest.raises(BadInput, match="two numbers of rows"):
        best_tree(chances, {1: 3.0}, 1.0)


def test_calibration_counts_first_acceptances_among_the_tested(tiny):
    assert acceptance_by_rank([(0, 2), (1, 2), (None, 2), (0, 1)]) == [0.5, pytest.approx(1 / 3)]
    found = calibrate(tiny, wb.DraftModel("tiny-draft"), [PROMPT], ranks=3, max_new_tokens=40)
    assert len(found) == 3 and found[0] > 0 and 0 < sum(found) <= 1
    assert {"draft_model", "draft_model-sampled"} <= set(calibrations())
    for chances in calibrations().values():
        assert sum(chances) <= 1 and chances[0] == max(chances)


def test_sequoia_puts_up_with_fewer_children_than_it_asks_for():
    """Rows with two tokens left: the tree is the template's part that exists."""
    few = {p: row.masked_fill(row < row.topk(2).values[-1], -torch.inf).log_softmax(-1) for p, row in DRAFT.items()}
    tree = grown(wb.Sequoia(12, 3), draft=few).tree
    assert 1 < len(tree) <= 13 and max(tree.ranks) <= 1


# -- the text is plain decoding's ------------------------------------------------------------------------------------


def same_text(lm, prompt, decoder, tokens: int = 32, **settings) -> wb.Trace:
    expected = wb.decode(lm, prompt, max_new_tokens=tokens, **settings).token_ids
    trace = wb.decode(lm, prompt, decoder, max_new_tokens=tokens, **settings)
    assert trace.token_ids == expected
    rounds = decoding_rounds(trace)
    assert rounds["emitted"].sum() == len(expected) and rounds["drafted"].max() <= decoder.shape.budget
    assert rounds["drafted"].sum() == len(trace.drafts) and rounds["accepted"].sum() > 0
    return trace


def drafting(shape, **parts) -> wb.Speculative:
    return wb.Speculative(wb.DraftModel("tiny-draft"), shape, **parts)


@pytest.mark.parametrize("settings", [{}, SEEDED], ids=["greedy", "seeded"])
@pytest.mark.parametrize("name", ALL)
def test_every_shape_spells_the_plain_text(tiny, lm, held_out, name, settings):
    """On five words up to the end of the context; on the embedded pair, with the caches checked after some rounds."""
    same_text(tiny, PROMPT, drafting(ALL[name]), 100, **settings)
    session = wb.Session(lm, held_out[7][-300:], wb.Speculative(shape=ALL[name]), max_new_tokens=14, **settings)
    for done, _ in enumerate(session):
        if done % 3 == 2:
            check_caches(session.state)
            assert walk(session.state) == ledger(session.state)
    assert session.trace.token_ids == wb.decode(lm, held_out[7][-300:], max_new_tokens=14, **settings).token_ids


def test_forks_and_other_shapes_midway_go_on_equally(tiny):
    """The heuristic's length goes with a fork; a branch with another shape begins without it, or with a stale one."""
    expected = wb.decode(tiny, PROMPT, max_new_tokens=60, **SEEDED).token_ids
    session = wb.Session(tiny, PROMPT, drafting(wb.HeuristicLength(3)), max_new_tokens=60, **SEEDED)
    for _ in range(6):
        session.step()
    fork = session.fork()
    assert fork.state.memory["heuristic"] == session.state.memory["heuristic"] != 3
    for branch in (fork, *(session.fork(decoder=drafting(shape)) for shape in ALL.values())):
        list(branch)
        assert branch.state.tokens == PROMPT + expected
    list(session)
    assert session.state.tokens == PROMPT + expected
    assert fork.trace.rounds["drafted"].tolist()[-9:] == session.trace.rounds["drafted"].tolist()[-9:]


# -- SpecDec++ -------------------------------------------------------------------------------------------------------


def test_the_chain_ends_where_a_rejection_is_likely_enough(monkeypatch):
    """Chances 0.9 and 0.5 after the first two tokens: 0.1 and 0.55 of a rejection; the distribution already read is
    used."""
    chances = {1: 0.9, 2: 0.5, 3: 0.5}
    head = SimpleNamespace(chance=lambda state: chances[int(state)])
    monkeypatch.setattr(weights, "load", lambda *arguments: head)

    def drafted(threshold, least=1, most=4):
        builder = grown(wb.SpecDec(threshold, least, most), depth=4, features=torch.tensor)
        assert builder.expanded == list(range(len(builder.tree) - 1))
        return len(builder.tree) - 1

    assert [drafted(h) for h in (0.05, 0.1001, 0.54, 0.56, 1.0)] == [2, 3, 3, 4, 4]
    assert drafted(0.0, least=3) == 3 and drafted(0.0, most=1) == 1


@pytest.mark.parametrize("settings", [{}, SEEDED], ids=["greedy", "seeded"])
def test_specdec_on_the_embedded_pair(lm, held_out, settings):
    trace = same_text(lm, held_out[7][-300:], wb.Speculative(shape=wb.SpecDec(0.6)), 24, **settings)
    lengths = set(decoding_rounds(trace)["drafted"])
    assert len(lengths) > 1 and min(lengths) >= 2


def test_the_shipped_head_tells_chances_that_come_true(lm, held_out):
    """Its figures on held-out text: the mean chance is the share accepted, and higher where accepted."""
    with safe_open(weights.find("acceptance", "embedded"), "pt") as opened:
        figures = json.loads(opened.metadata()["facts"])["held-out"]
    assert 0.55 < figures["accepted"] < 0.75
    head = weights.load("acceptance", Acceptance, "embedded", lm)
    assert sum(p.numel() for p in head.parameters()) < 17_000 and head.draft == "embedded-draft"
    assert figures["chance if accepted"] > figures["chance if rejected"] + 0.05


def test_specdec_refuses_what_its_head_cannot_read(tiny, lm, tmp_path):
    with pytest.raises(BadInput, match="trained for 'embedded'"):
        wb.decode(tiny, PROMPT, drafting(wb.SpecDec()), max_new_tokens=2)
    with pytest.raises(BadInput, match="reads a draft's hidden states|reads the drafter's distributions"):
        wb.Speculative(wb.CopySpec(), wb.SpecDec())
    part = acceptance("tiny-draft")
    text = make_text(tiny, tokens=16 * 48, window=48, start=8, held_out=4)
    recipe = Recipe(10 * 256, 256, warmup=2, autocast=False)
    fit("acceptance", part, tiny, text, tmp_path, recipe=recipe, quiet=True)
    same_text(tiny, PROMPT, drafting(wb.SpecDec(0.7, weights=str(tmp_path))), 40, **SEEDED)
    tiny_target("tiny-other", seed=9)
    with pytest.raises(BadInput, match="reads the states of 'tiny-draft', not of"):
        other = wb.Speculative(wb.DraftModel("tiny-other"), wb.SpecDec(weights=str(tmp_path)))
        wb.decode(tiny, PROMPT, other, max_new_tokens=2)


def test_settings_out_of_bounds_are_refused():
    for make, reason in (
        (lambda: wb.HeuristicLength(8, max_length=4), "start=8 lies above max_length=4"),
        (lambda: wb.SpecDec(min_length=5, max_length=4), "min_length=5 lies above max_length=4"),
        (lambda: wb.StochasticBeam(16, 32), "expected at most 127"),
        (lambda: wb.IndependentChains(16, 32), "expected at most 127"),
        (lambda: wb.Sequoia(calibration="nobody"), "expected one of"),
        (lambda: wb.Speculative(wb.CopySpec(), wb.DySpec()), "reads the drafter's distributions"),
        (lambda: wb.Speculative(wb.CopySpec(), wb.Sequoia()), "drafts one chain"),
        (lambda: wb.Speculative(shape=wb.DySpec(), verifier=wb.KSeq()), "independent chains"),
    ):
        with pytest.raises(BadInput, match=reason):
            make()
