"""Verification of trees: torch reference and Triton kernels against the workbench's own verifier, node by node."""

import random

import pytest
import torch

import workbench as wb
from tests.kernels.aot import compile_all
from tests.kernels.checks import Guarded, assert_close
from tests.kernels.faults import Allocations, broken, entry
from tests.kernels.interpreter import needs_interpreter
from workbench.engine.distribution import Distribution
from workbench.speculation import DIST, POINT, DraftTree
from workbench_kernels import verification
from workbench_kernels.verification import FATES, REASONS, SOURCES

NODES = 8


class Case:
    """B random typed trees over one vocabulary, as the workbench holds them and as columns for the kernels."""

    def __init__(self, seed: int, count: int, vocab: int, like: float = 0.5):
        """like: how alike target and proposals are, so that walks go deep and siblings get rejected."""
        draw, generator = random.Random(seed), torch.Generator().manual_seed(seed)
        self.seed, self.trees = seed, []
        self.logits = torch.randn(count, NODES, vocab, generator=generator, dtype=torch.float64) * 1.5
        self.logits[torch.rand(self.logits.shape, generator=generator) < 0.1] = -torch.inf
        self.logits[..., 0] = self.logits[..., 0].clamp_min(-1)
        self.proposals, self.rows = [], torch.full((count, NODES), -1)
        self.positions = torch.tensor([draw.randrange(1000) for _ in range(count)])
        self.columns = {name: torch.full((count, NODES), -1) for name in ("tokens", "parents")}
        self.columns |= {name: torch.zeros(count, NODES, dtype=torch.int64) for name in ("depths", "kinds")}
        for b in range(count):
            tree = self._tree(b, draw, generator, vocab, like)
            n = len(tree)
            self.columns["tokens"][b, :n] = torch.tensor(tree.tokens)
            self.columns["parents"][b, :n] = torch.tensor(tree.parents)
            self.columns["depths"][b, :n] = torch.tensor(tree.depths)
            self.columns["kinds"][b, :n] = torch.tensor([int(kind == DIST) for kind in tree.kinds])
            self.trees.append(tree)
        self.proposals = torch.stack(self.proposals) if self.proposals else torch.zeros(1, vocab)

    def _tree(self, b, draw, generator, vocab, like) -> DraftTree:
        tree, left = DraftTree([0]), draw.choice([0, 1, 3, 5, 7, 7, 7])
        for node in range(NODES):
            if node >= len(tree):
                break
            p = self.logits[b, node].softmax(-1)
            q = like * p + (1 - like) * torch.rand(vocab, generator=generator, dtype=torch.float64).softmax(-1)
            if draw.random() < 0.15:
                q = p.clone()
            draws = min(draw.choice([0, 1, 1, 2, 3]), left, int((q > 0).sum()) - 1)
            left -= draws
            if draws:
                tree.rows[node] = q.log().log_softmax(-1)
                self.rows[b, node] = len(self.proposals)
                self.proposals.append(tree.rows[node])
                for token in torch.multinomial(q, draws, generator=generator).tolist():
                    tree.add(node, token, DIST, q[token].item(), "test")
            points = min(draw.choice([0, 0, 1, 2]), left)
            left -= points
            for _ in range(points):  # doubles of siblings at will
                tree.add(node, draw.choice([int(p.argmax()), draw.randrange(vocab)]), POINT, None, "test")
        return tree

    def arguments(self, device: str = "cpu") -> dict:
        named = {"logits": self.logits, "positions": self.positions, "proposals": self.proposals, "rows": self.rows}
        return {name: tensor.to(device) for name, tensor in (named | self.columns).items()}


def agree(got: verification.Outcome, case: Case, greedy: bool = False) -> int:
    """Compare with the workbench's verifier; returns how many nodes were accepted."""
    for b, tree in enumerate(case.trees):
        n, scores = len(tree), case.logits[b].log_softmax(-1)
        dist = Distribution(scores, scores, [()] * NODES, greedy=greedy)
        want = wb.Rejection().verify(dist, tree, int(case.positions[b]), case.seed, lambda row, at: None)
        name = f"tree {b} of {case.seed}"
        length = int(got.length[b])
        assert got.path[b, :length].tolist() == want.path, name
        assert (got.path[b, length:] == -1).all(), name
        assert int(got.token[b]) == want.token and SOURCES[int(got.source[b])] == want.source, name
        assert [FATES[i] for i in got.fates[b, 1:n].tolist()] == want.fates[1:], name
        assert [REASONS[i] for i in got.reasons[b, :n].tolist()] == want.reasons, name
        assert (got.fates[b, n:] == 0).all() and got.fates[b, 0] == 0, name
        us = [None if u != u else u for u in got.us[b].tolist()]
        assert us == [*want.us, *[None] * (NODES - n)], name
    return int(got.length.sum())


def plain(case: Case, implementation: str, device: str = "cpu", **more) -> verification.Outcome:
    arguments = case.arguments(device) | {"logits": case.logits.log_softmax(-1).to(device), "width": NODES} | more
    got = verification.verify(**arguments, seed=case.seed, implementation=implementation)
    assert got.implementation == implementation
    return got


def same(got: verification.Outcome, want: verification.Outcome) -> None:
    """Everything is equal."""
    for name in ("path", "length", "token", "source", "fates", "reasons"):
        assert torch.equal(getattr(got, name).cpu(), getattr(want, name).cpu()), name
    assert_close("us", got.us, want.us, 0)


def test_the_reference_is_the_workbench_verifier():
    """300 trees of every kind: path, token, source, every fate, reason and uniform number."""
    accepted = 0
    for seed in range(12):
        case = Case(seed, 25, 5, like=0.2 + 0.06 * seed)
        accepted += agree(plain(case, "torch"), case)
    assert accepted > 100


@pytest.mark.parametrize("seed", range(8))
def test_the_kernels_are_the_workbench_verifier(seed, device):
    """200 trees of every kind."""
    case = Case(100 + seed, 25, 5, like=0.2 + 0.09 * seed)
    got = plain(case, "triton", device)
    agree(got, case)
    same(got, plain(case, "torch"))


def test_the_trees_cover_what_they_should():
    """Every fate and source, long paths, siblings rejected before one is accepted, and p = q."""
    cases = [Case(100 + seed, 25, 5, like=0.2 + 0.09 * seed) for seed in range(8)]
    found = [plain(case, "torch") for case in cases]
    fates = torch.cat([outcome.fates for outcome in found])
    assert set(fates.flatten().tolist()) == set(range(len(FATES)))
    assert set(torch.cat([outcome.source for outcome in found]).tolist()) == set(range(len(SOURCES)))
    assert int(torch.cat([outcome.length for outcome in found]).max()) >= 3
    behind = [
        (tree.kinds[node], tree.children(tree.parents[node]).index(node))
        for case, outcome in zip(cases, found, strict=True)
        for b, tree in enumerate(case.trees)
        for node in range(1, len(tree))
        if outcome.fates[b, node] == FATES.index("accepted")
    ]
    assert {(DIST, 0), (DIST, 1), (DIST, 2), (POINT, 0), (POINT, 1)} <= set(behind)
    alike = [
        (case.logits[b, node].softmax(-1) - tree.rows[node].exp()).abs().max() < 1e-6
        for case in cases
        for b, tree in enumerate(case.trees)
        for node in tree.rows
    ]
    assert sum(alike) > 5


def test_cut_distributions_over_several_tiles(device):
    """Rows of which most tokens are cut, in float32, wider than one program's columns."""
    case = Case(6, 2, 4100, like=0.9)
    cut = wb.Sampling(temperature=0.8, top_k=40, top_p=0.9, min_p=0.001)
    rows = case.logits.float().clamp_min(-30)
    case.logits = torch.stack([cut.dist(tree, lambda row: []).scores for tree in rows])
    got = plain(case, "triton", device)
    agree(got, case)
    same(got, plain(case, "torch"))
    assert int((case.logits > -torch.inf).sum(-1).max()) <= 40


def test_point_masses_are_greedy(device):
    """One path: the argmax of each row, lowest id first."""
    case = Case(31, 4, 6)
    case.logits = case.logits.float().clamp_min(-9).round()
    point = torch.full_like(case.logits, -torch.inf).scatter_(-1, case.logits.argmax(-1, keepdim=True), 0.0)
    got = plain(case, "triton", device, logits=point.to(device))
    agree(got, case, greedy=True)
    same(got, plain(case, "torch", logits=point))


def test_siblings_drawn_from_almost_nothing(device):
    """A proposal of one sure token leaves later siblings no mass in float64: their row must still be a distribution."""
    tree = DraftTree([0])
    row = torch.tensor([0.0, -900.0, -1800.0, -1801.0], dtype=torch.float64).log_softmax(-1)
    for token in (0, 1, 2):
        tree.add(0, token, DIST, None, "test")
    tree.rows[0] = row
    target = torch.tensor([0.05, 0.05, 0.1, 0.8], dtype=torch.float64).log()
    seen = set()
    for seed in range(12):
        columns = [torch.tensor([column], device=device) for column in ([0, 0, 1, 2], [-1, 0, 0, 0], [0, 1, 1, 1])]
        got = verification.verify(
            target.expand(1, 4, 4).to(device), *columns, torch.tensor([[0, 1, 1, 1]], device=device),
            torch.tensor([[0, -1, -1, -1]], device=device), torch.tensor([3], device=device), row[None].to(device),
            seed, 3, implementation="triton",
        )  # fmt: skip
        want = wb.Rejection().verify(
            Distribution(target.expand(4, 4), target.expand(4, 4), [()] * 4), tree, 3, seed, None
        )
        assert got.path[0, : int(got.length)].tolist() == want.path and int(got.token) == want.token
        seen.add(tuple(want.path))
    assert {(), (3,)} <= seen


def test_the_largest_tree(device):
    """128 nodes, the most there may be, fill their block."""
    count = 128
    parents = torch.tensor([[-1, *((i - 1) // 3 for i in range(1, count))]])
    depths = torch.zeros_like(parents)
    for node in range(1, count):
        depths[0, node] = depths[0, parents[0, node]] + 1
    logits = torch.randn(1, count, 6, generator=torch.Generator().manual_seed(2))
    best = logits[0, parents[0, 1:]].topk(3).indices
    tokens = torch.cat([torch.tensor([0]), best[range(127), torch.arange(127) % 3]])[None]
    logits = torch.full_like(logits, -torch.inf).scatter_(-1, logits.argmax(-1, keepdim=True), 0.0)
    tree = {"tokens": tokens, "parents": parents, "depths": depths, "kinds": torch.zeros_like(tokens)}
    tree |= {"rows": torch.full_like(tokens, -1), "proposals": torch.zeros(1, 6)}
    arguments = tree | {"logits": logits, "positions": torch.tensor([8])}
    arguments = {name: tensor.to(device) for name, tensor in arguments.items()}
    want = verification.verify(**arguments, seed=0, width=3, implementation="torch")
    same(verification.verify(**arguments, seed=0, width=3, implementation="triton"), want)
    assert want.path[0, :6].tolist() == [1, 4, 13, 40, 121, -1]


def test_half_precision_and_strided_logits(device):
    """Logits and proposals of 16 bits are their values; rows may be strided; more width than needed is harmless."""
    case = Case(41, 2, 70, like=0.9)
    case.logits, case.proposals = case.logits.bfloat16(), case.proposals.half()
    arguments = case.arguments(device)
    wide = torch.full((2, NODES, 75), torch.nan, dtype=torch.bfloat16, device=device)
    wide[..., :70] = arguments["logits"]
    want = verification.verify(**arguments, seed=5, width=NODES, implementation="torch")
    same(verification.verify(**arguments | {"logits": wide[..., :70]}, seed=5, width=9, implementation="triton"), want)


def test_the_kernels_stay_within_their_tensors(device):
    """NaN around every tensor; what is allocated starts as NaN and -7."""
    case = Case(51, 2, 2100, like=0.9)
    logits, proposals = Guarded(case.logits.log_softmax(-1).to(device)), Guarded(case.proposals.to(device))
    with Allocations() as allocations:
        got = plain(case, "triton", device, logits=logits.inside, proposals=proposals.inside)
    same(got, plain(case, "torch"))
    for guarded in (allocations, logits, proposals):
        guarded.assert_untouched()


FAULTS = {
    "order: a younger double counts": (
        "kernel",
        "< nodes[:, None])\n        double",
        "<= nodes[:, None])\n        double",
    ),
    "order: ranks one up": ("kernel", "tl.where(tested, rank, -1)", "tl.where(tested, rank + 1, -1)"),
    "normalise: the last column unseen": ("rejection", "cols < target.n_cols\n", "cols < target.n_cols - 1\n"),
    "final: noise of the next position": ("rejection", "(tree.depths + node)", "(tree.depths + node) + 1"),
    "walk: noise of the child's own depth": ("kernel", "+ depths - 1), ranks)", "+ depths), ranks)"),
    "walk: path one place on": ("kernel", "walk.path + first + depths - 1", "walk.path + first + depths"),
    "normalise: the token after leaves": ("rejection", "(cols == tl.load(tree", "(cols - 1 == tl.load(tree"),
    "round: one rejection too many": ("rejection", "node, turn, cols,", "node, turn + 1, cols,"),
    "final: a rejection too many": ("rejection", "tl.load(walk.rounds + number)", "tl.load(walk.rounds + number) + 1"),
    "last: the last split unseen": ("rejection", "n_splits, other=NO_ID", "n_splits - 1, other=NO_ID"),
}


@needs_interpreter
@pytest.mark.parametrize("name", FAULTS)
def test_the_checks_find_an_off_by_one(name, tmp_path, monkeypatch):
    """The comparison with the reference fails for kernels that are broken by one."""
    from workbench_kernels.verification import kernel, rejection

    case = Case(103, 8, 5, like=0.3)
    module, old, new = FAULTS[name]
    members = {"kernel": kernel, "rejection": rejection}
    monkeypatch.setattr(verification, module, broken(members[module], old, new, tmp_path), raising=False)
    want = plain(case, "torch")
    with pytest.raises(AssertionError), Allocations() as allocations:
        got = plain(case, "triton")
        same(got, want)
        allocations.assert_untouched()
        test_siblings_drawn_from_almost_nothing("cpu")


def test_dispatch_takes_refuses_and_falls_back(monkeypatch):
    logits, rows = torch.zeros(1, 2, 3), torch.zeros(1, 3)
    assert verification.choose(logits, rows).name == "torch"  # auto on a CPU: the interpreter is for tests only
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert verification.choose(logits, rows, "triton").name == "triton"
    with pytest.raises(RuntimeError, match="at most 128 nodes, and the trees have 129; use implementation='torch'"):
        verification.choose(torch.zeros(1, 129, 3), rows, "triton")
    with pytest.raises(RuntimeError, match="16 to 64-bit floats, and the proposals are float8_e4m3fn"):
        verification.choose(logits, rows.to(torch.float8_e4m3fn), "triton")
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    with pytest.raises(RuntimeError, match="interpreter is off.*; use implementation='torch'$"):
        verification.choose(logits, rows, "triton")
    with pytest.raises(ValueError, match="expected 'auto', 'triton' or 'torch', got 'cuda'"):
        verification.choose(logits, rows, "cuda")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"logits": torch.zeros(2, 3)}, r"floating logits \[B, N, V\], got torch.float32 \[2, 3\]"),
        ({"tokens": torch.zeros(1, 4, dtype=torch.int32)}, r"integer tokens \[1, 3\] on cpu, got torch.int32 \[1, 4\]"),
        ({"kinds": torch.zeros(1, 3)}, "integer kinds .* got torch.float32"),
        ({"positions": torch.zeros(2, dtype=torch.int64)}, r"int64 positions \[1\] on cpu"),
        ({"proposals": torch.zeros(1, 8)}, r"proposals \[M, 7\], got \[1, 8\]"),
        ({"width": -1}, "width of 0 or more, got -1"),
    ],
    ids=str,
)  # fmt: skip
def test_arguments_that_do_not_fit_are_refused(arguments, words):
    columns = {name: torch.zeros(1, 3, dtype=torch.int32) for name in ("tokens", "parents", "depths", "kinds", "rows")}
    fine = {"logits": torch.zeros(1, 3, 7), **columns, "positions": torch.zeros(1, dtype=torch.int64)}
    fine |= {"proposals": torch.zeros(1, 7), "seed": 0, "width": 1}
    with pytest.raises(ValueError, match=words):
        verification.verify(**fine | arguments)


def test_the_kernels_compile_for_gpus_that_are_not_here():
    """Ahead of time for sm80 and sm90."""
    from workbench_kernels.verification import kernel, rejection

    ints, longs, doubles = "*i32", "*i64", "*fp64"
    types = {"key": "i64", "token_ptr": longs, "best": rejection.Best(doubles, ints)}
    types["target"] = rejection.Target("*bf16", "i64", "i32")
    types["tree"] = kernel.Tree(*[ints] * 5, longs, "i32")
    types["walk"] = kernel.Walk(ints, ints, longs, *[ints] * 3, doubles, ints, ints)
    types["state"] = rejection.State(ints, "i32", "*fp32", "i64", *[doubles] * 5)
    tiles, nodes = {"TILES": kernel.Tiles(2048, 64)}, {"NODES": 64}
    done = compile_all(
        entry(kernel, "order_fwd_kernel", types, nodes),
        entry(kernel, "walk_fwd_kernel", types, nodes | tiles, 8),
        entry(rejection, "normalise_fwd_kernel", types, tiles, 8),
        entry(rejection, "round_fwd_kernel", types, tiles, 8),
        entry(rejection, "final_fwd_kernel", types, tiles, 8),
        entry(rejection, "last_fwd_kernel", types, tiles),
    )
    assert len(done.splitlines()) == 12
