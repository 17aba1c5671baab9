"""Verification of trees: torch reference and Triton kernels against the workbench's own verifiers, node by node."""

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
from workbench_kernels import distribution, verification
from workbench_kernels.verification import FATES, REASONS, SOURCES

NODES = 8
MEMBERS = {"greedy": wb.Greedy(), "seeded": wb.SeededMatch(), "rejection": wb.Rejection()}


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


def agree(got: verification.Outcome, case: Case, mode: str, distributions: list[Distribution]) -> int:
    """Compare with the workbench's verifiers; returns how many nodes were accepted."""
    for b, (tree, dist) in enumerate(zip(case.trees, distributions, strict=True)):
        n, position = len(tree), int(case.positions[b])
        want = MEMBERS[mode].verify(dist, tree, position, case.seed, lambda row, at: dist.choose(row, case.seed, at))  # noqa: B023
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
        assert torch.equal(got.ratios[b].isnan(), got.us[b].isnan()), name
    return int(got.length.sum())


def plain_distributions(case: Case, greedy: bool = False) -> list[Distribution]:
    scores = case.logits.log_softmax(-1)
    return [Distribution(row, row, [()] * NODES, greedy=greedy) for row in scores]


def plain(case: Case, mode: str, implementation: str, device: str = "cpu", **more) -> verification.Outcome:
    arguments = case.arguments(device) | {"logits": case.logits.log_softmax(-1).to(device)} | more
    got = verification.verify(**arguments, mode=mode, seed=case.seed, implementation=implementation)
    assert got.implementation == implementation
    return got


def same(got: verification.Outcome, want: verification.Outcome) -> None:
    """Everything decided is equal; ratios to the rounding of float64 sums in another order."""
    for name in ("path", "length", "token", "source", "fates", "reasons"):
        assert torch.equal(getattr(got, name).cpu(), getattr(want, name).cpu()), name
    assert_close("us", got.us, want.us, 0)
    assert_close("ratios", got.ratios, want.ratios, 1e-9)


@pytest.mark.parametrize("mode", MEMBERS)
def test_the_reference_is_the_workbench_verifier(mode):
    """300 trees of every kind: path, token, source, every fate, reason and uniform number."""
    accepted = 0
    for seed in range(12):
        case = Case(seed, 25, 5, like=0.2 + 0.06 * seed)
        accepted += agree(plain(case, mode, "torch"), case, mode, plain_distributions(case, mode == "greedy"))
    assert accepted > 100


@pytest.mark.parametrize(
    ("mode", "seed"),
    [(mode, seed) for mode, n in {"greedy": 2, "seeded": 2, "rejection": 8}.items() for seed in range(n)],
)
def test_the_kernels_are_the_workbench_verifier(mode, seed, device):
    """200 trees of every kind for rejection; the other modes share its order and its walk."""
    case = Case(100 + seed, 25, 5, like=0.2 + 0.09 * seed)
    got = plain(case, mode, "triton", device)
    agree(got, case, mode, plain_distributions(case, mode == "greedy"))
    same(got, plain(case, mode, "torch"))


def test_the_trees_cover_what_they_should():
    """Every fate and source, long paths, siblings rejected before one is accepted, and p = q."""
    cases = [Case(100 + seed, 25, 5, like=0.2 + 0.09 * seed) for seed in range(8)]
    found = [plain(case, "rejection", "torch") for case in cases]
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
    ratios = torch.cat([outcome.ratios for outcome in found])
    assert ((ratios - 1).abs() < 1e-6).sum() > 5


def engine_case(seed: int, vocab: int) -> Case:
    """Two trees over float32 logits whose drafts are likely, for distributions cut by sampling settings."""
    case = Case(seed, 2, vocab, like=0.9)
    case.logits = case.logits.float().clamp_min(-30)
    return case


SAMPLING = {"temperature": 0.8, "top_k": 40, "top_p": 0.9, "min_p": 0.001}


@pytest.mark.parametrize("vocab", [50, 4100])
@pytest.mark.parametrize("mode", ["seeded", "rejection"])
def test_logits_with_thresholds_are_what_they_stand_for(mode, vocab, device):
    """Logits, temperature and last kept token in place of the engine's normalised scores, over several tiles too."""
    case = engine_case(6, vocab)
    cut = distribution.sample(case.logits.flatten(0, 1).to(device), **SAMPLING, implementation="torch")
    got = verification.verify(
        **case.arguments(device), mode=mode, seed=6, temperature=0.8, threshold=cut.threshold.view(2, NODES),
        threshold_id=cut.threshold_id.view(2, NODES), implementation="triton",
    )  # fmt: skip
    distributions = [wb.Sampling(**SAMPLING).dist(rows, lambda row: []) for rows in case.logits]
    agree(got, case, mode, distributions)
    assert int(cut.kept.max()) < vocab


@pytest.mark.parametrize("mode", MEMBERS)
def test_at_temperature_zero_all_modes_are_greedy(mode, device):
    """One path whatever the mode; rejection keeps its own words for it. Ties go to the lowest id."""
    case = Case(31, 4, 6)
    case.logits = case.logits.float().clamp_min(-9).round()
    arguments = case.arguments(device) | {"temperature": 0.0, "mode": mode, "seed": 31}
    got = verification.verify(**arguments, implementation="triton")
    distributions = [Distribution(rows.log_softmax(-1), rows, [()] * NODES, greedy=True) for rows in case.logits]
    agree(got, case, mode, distributions)
    same(got, verification.verify(**arguments, implementation="torch"))


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
            torch.tensor([3], device=device), "rejection", seed, row[None].to(device),
            torch.tensor([[0, -1, -1, -1]], device=device), implementation="triton",
        )  # fmt: skip
        want = wb.Rejection().verify(
            Distribution(target.expand(4, 4), target.expand(4, 4), [()] * 4), tree, 3, seed, None
        )
        assert got.path[0, : int(got.length)].tolist() == want.path and int(got.token) == want.token
        assert got.ratios[0][1:].nan_to_num(1.0).isfinite().all()
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
    tree = {"tokens": tokens, "parents": parents, "depths": depths, "kinds": torch.zeros_like(tokens)}
    arguments = tree | {"logits": logits, "positions": torch.tensor([8])}
    arguments = {name: tensor.to(device) for name, tensor in arguments.items()}
    want = verification.verify(**arguments, mode="greedy", implementation="torch")
    same(verification.verify(**arguments, mode="greedy", implementation="triton"), want)
    assert want.path[0, :6].tolist() == [1, 4, 13, 40, 121, -1]


def test_half_precision_and_strided_logits(device):
    """Logits and proposals of 16 bits are their values; rows may be strided; more width than needed is harmless."""
    case = Case(41, 2, 70, like=0.9)
    case.logits, case.proposals = case.logits.bfloat16(), case.proposals.half()
    arguments = case.arguments(device)
    wide = torch.full((2, NODES, 75), torch.nan, dtype=torch.bfloat16, device=device)
    wide[..., :70] = arguments["logits"]
    for mode, temperature in (("greedy", 1.0), ("rejection", 1.3), ("rejection", 0.0)):
        arguments |= {"mode": mode, "temperature": temperature, "seed": 5}
        want = verification.verify(**arguments, implementation="torch")
        got = verification.verify(**arguments | {"logits": wide[..., :70], "width": 6}, implementation="triton")
        same(got, want)


@pytest.mark.parametrize("mode", MEMBERS)
def test_the_kernels_stay_within_their_tensors(mode, device):
    """NaN around every tensor; what is allocated starts as NaN and -7."""
    case = Case(51, 2, 2100, like=0.9)
    logits, proposals = Guarded(case.logits.log_softmax(-1).to(device)), Guarded(case.proposals.to(device))
    with Allocations() as allocations:
        got = plain(case, mode, "triton", device, logits=logits.inside, proposals=proposals.inside)
    same(got, plain(case, mode, "torch"))
    for guarded in (allocations, logits, proposals):
        guarded.assert_untouched()


FAULTS = {
    "order: a younger double counts": (
        "kernel",
        "< nodes[:, None])\n        double",
        "<= nodes[:, None])\n        double",
    ),
    "order: ranks one up": ("kernel", "tl.where(tested, rank, -1)", "tl.where(tested, rank + 1, -1)"),
    "choice: the last column unseen": ("kernel", "mask = cols < target.n_cols", "mask = cols < target.n_cols - 1"),
    "choice: noise of the next position": ("kernel", "tl.load(tree.depths + node)", "tl.load(tree.depths + node) + 1"),
    "walk: noise of the child's own depth": ("kernel", "+ depths - 1), ranks)", "+ depths), ranks)"),
    "walk: path one place on": ("kernel", "walk.path + first + depths - 1", "walk.path + first + depths"),
    "normalise: the token after leaves": ("rejection", "(cols == tl.load(tree", "(cols - 1 == tl.load(tree"),
    "round: one rejection too many": ("rejection", "node, turn, cols,", "node, turn + 1, cols,"),
    "final: a rejection too many": ("rejection", "tl.load(walk.rounds + number)", "tl.load(walk.rounds + number) + 1"),
    "last: the last split unseen": ("rejection", "n_splits, other=ops.NO_ID", "n_splits - 1, other=ops.NO_ID"),
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
    mode = "seeded" if "choice" in name else "rejection"
    want = plain(case, mode, "torch")
    with pytest.raises(AssertionError), Allocations() as allocations:
        got = plain(case, mode, "triton")
        same(got, want)
        allocations.assert_untouched()


def test_dispatch_takes_refuses_and_falls_back(monkeypatch):
    logits = torch.zeros(1, 2, 3)
    assert verification.choose(logits).name == "torch"  # auto on a CPU: the interpreter is for tests only
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert verification.choose(logits, implementation="triton").name == "triton"
    with pytest.raises(RuntimeError, match="at most 128 nodes, and the trees have 129; use implementation='torch'"):
        verification.choose(torch.zeros(1, 129, 3), implementation="triton")
    with pytest.raises(RuntimeError, match="16 to 64-bit floats, and the proposals are float8_e4m3fn"):
        verification.choose(logits, torch.zeros(1, 3).to(torch.float8_e4m3fn), "triton")
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    with pytest.raises(RuntimeError, match="interpreter is off.*; use implementation='torch'$"):
        verification.choose(logits, implementation="triton")
    with pytest.raises(ValueError, match="expected 'auto', 'triton' or 'torch', got 'cuda'"):
        verification.choose(logits, implementation="cuda")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"logits": torch.zeros(2, 3)}, r"floating logits \[B, N, V\], got torch.float32 \[2, 3\]"),
        ({"tokens": torch.zeros(1, 4, dtype=torch.int32)}, r"integer tokens \[1, 3\] on cpu, got torch.int32 \[1, 4\]"),
        ({"kinds": torch.zeros(1, 3)}, "integer kinds .* got torch.float32"),
        ({"positions": torch.zeros(2, dtype=torch.int64)}, r"int64 positions \[1\] on cpu"),
        ({"mode": "typical"}, "mode 'greedy', 'rejection' or 'seeded', got 'typical'"),
        ({"temperature": -1.0}, "temperature of 0 or more, got -1.0"),
        ({"proposals": torch.zeros(1, 7)}, "proposals and rows together"),
        ({"proposals": torch.zeros(1, 8), "rows": torch.zeros(1, 3).int()}, r"proposals \[M, 7\], got \[1, 8\]"),
        ({"threshold": torch.zeros(1, 3)}, "threshold and threshold_id together"),
        ({"threshold": torch.zeros(3), "threshold_id": torch.zeros(3)}, r"thresholds \[1, 3\], got \[3\]"),
        ({"width": -1}, "width of 0 or more, got -1"),
    ],
    ids=str,
)  # fmt: skip
def test_arguments_that_do_not_fit_are_refused(arguments, words):
    columns = {name: torch.zeros(1, 3, dtype=torch.int32) for name in ("tokens", "parents", "depths", "kinds")}
    fine = {"logits": torch.zeros(1, 3, 7), **columns, "positions": torch.zeros(1, dtype=torch.int64), "mode": "seeded"}
    with pytest.raises(ValueError, match=words):
        verification.verify(**fine | arguments)


def test_the_kernels_compile_for_gpus_that_are_not_here():
    """Ahead of time for sm80 and sm90."""
    from workbench_kernels.verification import kernel, rejection

    ints, longs, doubles = "*i32", "*i64", "*fp64"
    types = {"key": "i64", "token_ptr": longs, "best": kernel.Best(doubles, ints)}
    types["target"] = kernel.Target("*bf16", "i64", "i32", "fp32", "*fp32", longs)
    types["tree"] = kernel.Tree(*[ints] * 5, longs, "i32")
    types["walk"] = kernel.Walk(ints, ints, longs, *[ints] * 3, doubles, doubles, ints, ints)
    types["state"] = rejection.State(ints, "i32", "*fp32", "i64", *[doubles] * 5)
    tiles, nodes = {"TILES": kernel.Tiles(2048, 64, True)}, {"NODES": 64}
    done = compile_all(
        entry(kernel, "order_fwd_kernel", types, nodes),
        entry(kernel, "choice_fwd_kernel", types, {"SEEDED": True} | tiles, 8),
        entry(kernel, "walk_fwd_kernel", types, {"REJECTION": True, "best": None} | nodes | tiles, 8),
        entry(kernel, "walk_fwd_kernel", types, {"REJECTION": False, "state": None} | nodes | tiles, 8),
        entry(rejection, "normalise_fwd_kernel", types, tiles, 8),
        entry(rejection, "round_fwd_kernel", types, tiles, 8),
        entry(rejection, "final_fwd_kernel", types, tiles, 8),
        entry(rejection, "last_fwd_kernel", types, tiles),
    )
    assert len(done.splitlines()) == 16
