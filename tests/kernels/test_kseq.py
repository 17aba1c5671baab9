"""K-SEQ over trees of chains: the kernels against the reference, and the reference against one node done by hand."""

import random

import pytest
import torch

from tests.kernels.aot import compile_all
from tests.kernels.checks import Guarded, assert_close
from tests.kernels.faults import Allocations, broken, entry
from tests.kernels.interpreter import needs_interpreter
from workbench_kernels import distribution, verification
from workbench_kernels.distribution.reference import uniform
from workbench_kernels.verification import DIST, FATES, SOURCES

NODES = 10


class Case:
    """B trees of K chains, drawn from random proposals: `arguments` as `verify_chains` takes them."""

    def __init__(self, seed: int, count: int, vocab: int, chains: int = 3, levels: int = 3, like: float = 0.5):
        """like: how alike target and proposals are, so that walks go deep."""
        draw, generator = random.Random(seed), torch.Generator().manual_seed(seed)
        self.seed = seed
        logits = torch.randn(count, NODES, vocab, generator=generator, dtype=torch.float64) * 1.5
        logits[torch.rand(logits.shape, generator=generator) < 0.1] = -torch.inf
        logits[..., 0] = logits[..., 0].clamp_min(-1)
        self.columns = {name: torch.full((count, NODES), -1) for name in ("tokens", "parents", "rows")}
        self.columns |= {"depths": torch.zeros(count, NODES, dtype=torch.int64)}
        self.columns |= {"chains": torch.full((count, chains, levels), -1)}
        self.columns |= {"positions": torch.tensor([draw.randrange(1000) for _ in range(count)])}
        proposals = []
        for b in range(count):
            self.columns["tokens"][b, 0] = 0
            nodes, at, length = {(): 0}, [()] * chains, [draw.choice([0, 1, levels, levels])] * chains
            for level in range(levels):
                for c in range(chains):
                    if level >= length[c] or len(at[c]) < level:
                        continue
                    node = nodes[at[c]]
                    if self.columns["rows"][b, node] < 0:
                        law = logits[b, node].softmax(-1)
                        other = torch.randn(vocab, generator=generator, dtype=torch.float64).softmax(-1)
                        q = law if draw.random() < 0.1 else like * law + (1 - like) * other
                        self.columns["rows"][b, node] = len(proposals)
                        proposals.append(q.log())
                    row = proposals[self.columns["rows"][b, node]]
                    token = int(torch.multinomial(row.exp(), 1, generator=generator))
                    prefix = (*at[c], token)
                    if prefix not in nodes:
                        if len(nodes) == NODES:
                            continue
                        nodes[prefix] = child = len(nodes)
                        self.columns["tokens"][b, child], self.columns["parents"][b, child] = token, node
                        self.columns["depths"][b, child] = level + 1
                    self.columns["chains"][b, c, level] = nodes[prefix]
                    at[c] = prefix
        self.columns |= {"logits": logits, "proposals": torch.stack(proposals or [torch.zeros(vocab)])}

    def verify(self, implementation: str, device: str = "cpu", **more) -> verification.ChainOutcome:
        arguments = {name: tensor.to(device) for name, tensor in self.columns.items()} | more
        got = verification.verify_chains(**arguments, seed=self.seed, implementation=implementation)
        assert got.implementation == implementation
        return got


def same(got: verification.ChainOutcome, want: verification.ChainOutcome) -> None:
    """What is decided is equal, the laws to rounding. On a GPU, sums in another order may round rho to the neighbouring
    one of its 2^24 steps, 6e-8 (k - 1) apart, where two are equally exact; under the interpreter one step must show."""
    step = (got.us.shape[1] - 1) / 2**24 if got.rhos.is_cuda else 0
    for name in ("path", "length", "token", "source", "fates", "reasons"):
        assert torch.equal(getattr(got, name).cpu(), getattr(want, name).cpu()), name
    assert_close("rhos", got.rhos, want.rhos, step + 1e-9)
    assert_close("us", got.us, want.us, 0)
    assert_close("ratios", got.ratios, want.ratios, step + 1e-9)


def cases() -> list[Case]:
    return [Case(seed, 8, 5, chains=1 + (seed + 2) % 4, like=0.2 + 0.1 * seed) for seed in range(5)]


def test_one_chain_is_rejection():
    """With one draw a node rho is 1: path, token, fates and uniform numbers of the rejection of a chain."""
    for seed in range(6):
        case = Case(seed, 20, 5, chains=1, like=0.3)
        got = case.verify("torch")
        columns = {name: column for name, column in case.columns.items() if name != "chains"}
        kinds = torch.full_like(columns["tokens"], DIST)
        want = verification.verify(**columns, kinds=kinds, mode="rejection", seed=seed, implementation="torch")
        for name in ("path", "length", "token", "source", "fates", "reasons"):
            assert torch.equal(getattr(got, name), getattr(want, name)), name
        for b, chain in enumerate(case.columns["chains"][:, 0].tolist()):
            for level, node in enumerate(chain):
                if node >= 0:
                    assert_close("u", got.us[b, 0, level], want.us[b, node], 0)
                    assert_close("ratio", got.ratios[b, 0, level], want.ratios[b, node], 1e-12)


def test_every_draw_of_a_shared_node_is_tested():
    """Three chains draw 1, 1, 2: one node is tested twice; all that agree with what passes go on."""
    p = torch.tensor([0.1, 0.2, 0.7], dtype=torch.float64).log().expand(1, 5, 3)
    q = torch.tensor([[0.05, 0.8, 0.15]], dtype=torch.float64).log()
    tree = {
        "tokens": [0, 1, 2, 1, 2],
        "parents": [-1, 0, 0, 1, 1],
        "depths": [0, 1, 1, 2, 2],
        "rows": [0, 0, 0, -1, -1],
    }
    columns = {name: torch.tensor([column]) for name, column in tree.items()}
    chains = torch.tensor([[[1, 3], [1, 4], [2, -1]]])
    rho, seen = verification.kseq_rho(p[0, 0].exp(), q[0].exp(), 3), set()
    for seed in range(40):
        got = verification.verify_chains(
            p, **columns, positions=torch.tensor([7]), chains=chains, proposals=q, seed=seed, implementation="torch"
        )
        us = [uniform(seed, "accept", 7, i) for i in range(3)]
        passing = [u < ratio for u, ratio in zip(us, [0.2 / (0.8 * rho)] * 2 + [0.7 / (0.15 * rho)], strict=True)]
        won = passing.index(True) if any(passing) else None
        assert got.us[0, :, 0].tolist()[: 3 if won is None else won + 1] == us[: 3 if won is None else won + 1]
        assert bool(got.us[0, :, 0].isnan().any()) == (won in (0, 1))
        fate = FATES[int(got.fates[0, 1])]
        assert fate == ("accepted" if won in (0, 1) else "rejected")
        if won in (0, 1):  # both chains at node 1 go on, with the numbers of their turn there
            tested = ~got.us[0, :, 1].isnan()
            assert tested.tolist() in ([True, False, False], [True, True, False])
            assert float(got.us[0, 0, 1]) == uniform(seed, "accept", 8, 0)
            assert abs(float(got.rhos[0, 1]) - verification.kseq_rho(p[0, 0].exp(), q[0].exp(), 2)) < 1e-12
        seen.add(won)
    assert {0, 1, 2} <= seen


def test_the_cases_cover_what_they_should():
    """Every source, fates but none that K-SEQ lacks, long paths, a later draw accepted, nodes drawn several times."""
    found = [(case, case.verify("torch")) for case in cases()]
    assert set(torch.cat([got.fates.flatten() for _, got in found]).tolist()) >= {0, 1, 2, 3, 4}
    assert set(torch.cat([got.source for _, got in found]).tolist()) == set(range(len(SOURCES)))
    assert max(int(got.length.max()) for _, got in found) == 3
    assert max(float(got.rhos.nan_to_num(1).max()) for _, got in found) > 1.5
    later = repeats = 0
    for case, got in found:
        for first, path in zip(case.columns["chains"][:, :, 0].tolist(), got.path[:, 0].tolist(), strict=True):
            later += path >= 0 and first[0] != path
            repeats += first[0] >= 0 and len(set(first)) < len(first)
    assert later >= 2 and repeats > 10


@pytest.mark.parametrize("number", range(5))
def test_the_kernels_are_the_reference(number, device):
    """40 trees of 1 to 4 chains."""
    case = cases()[number]
    same(case.verify("triton", device), case.verify("torch"))


def test_several_tiles_thresholds_and_temperature(device):
    """Logits, temperature and last kept token in place of a normalised law, over three tiles of columns."""
    case = Case(16, 1, 4100, chains=2, levels=2, like=0.9)
    logits = case.columns["logits"].float().clamp_min(-30)
    cut = distribution.sample(logits.flatten(0, 1), temperature=0.8, top_p=0.9, implementation="torch")
    settings = {"temperature": 0.8, "threshold": cut.threshold.view(1, NODES)}
    settings |= {"threshold_id": cut.threshold_id.view(1, NODES), "logits": logits}
    want = case.verify("torch", **settings)
    moved = {name: value.to(device) if isinstance(value, torch.Tensor) else value for name, value in settings.items()}
    same(case.verify("triton", device, **moved), want)
    assert (int(want.length[0]), SOURCES[int(want.source[0])]) == (1, "residual") and float(want.rhos[0, 0]) > 1.3
    assert int(cut.kept.max()) < 4100


@pytest.mark.parametrize("temperature", [0.0, 1.3])
def test_half_precision_and_strided_logits(temperature, device):
    """Logits and proposals of 16 bits are their values, rows may be strided; at temperature 0 the path is greedy."""
    case = Case(41, 2, 70, like=0.9)
    case.columns["logits"] = case.columns["logits"].bfloat16()
    case.columns["proposals"] = case.columns["proposals"].half()
    want = case.verify("torch", temperature=temperature)
    wide = torch.full((2, NODES, 75), torch.nan, dtype=torch.bfloat16, device=device)
    wide[..., :70] = case.columns["logits"]
    same(case.verify("triton", device, temperature=temperature, logits=wide[..., :70]), want)
    if temperature == 0:
        for b in range(2):
            node = 0
            for child in want.path[b].tolist():
                if child >= 0:
                    assert case.columns["tokens"][b, child] == case.columns["logits"][b, node].argmax()
                    node = child
            assert want.token[b] == case.columns["logits"][b, node].argmax()


def test_the_most_chains(device):
    """64 chains that all share their first node: multiplicity counts, not the number of nodes."""
    p = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64).log().expand(1, 2, 3).to(device)
    q = torch.tensor([[0.02, 0.97, 0.01]], dtype=torch.float64, device=device).log()
    columns = {"tokens": [0, 1], "parents": [-1, 0], "depths": [0, 1], "rows": [0, -1], "positions": 4}
    columns = {name: torch.tensor([column], device=device) for name, column in columns.items()}
    chains = torch.ones(1, 64, 1, dtype=torch.int32, device=device)
    got, want = (
        verification.verify_chains(p, **columns, chains=chains, proposals=q, seed=1, implementation=how)
        for how in ("triton", "torch")
    )
    same(got, want)
    assert abs(float(want.rhos[0, 0]) - verification.kseq_rho(p[0, 0].exp(), q[0].exp(), 64)) < 1e-9


def test_the_kernels_stay_within_their_tensors(device):
    """NaN around every tensor; what is allocated starts as NaN and -7."""
    case = Case(52, 1, 2100, like=0.9)
    logits, proposals = (Guarded(case.columns[name].to(device)) for name in ("logits", "proposals"))
    with Allocations() as allocations:
        got = case.verify("triton", device, logits=logits.inside, proposals=proposals.inside)
    same(got, case.verify("torch"))
    for guarded in (allocations, logits, proposals):
        guarded.assert_untouched()


COUNT = "k = tl.sum((child >= 0).to(tl.int32), axis=0)"
NUMBER = "tl.cumsum(live.to(tl.int32), axis=0)"
FAULTS = {
    "search: a draw too few": ("search", f"{COUNT}\n    if k > 1:", f"{COUNT} - 1\n    if k > 0:"),
    "search: a step on": (
        "search",
        "divisor(k, low * STEPS + step, scale)",
        "divisor(k, low * STEPS + step + 1, scale)",
    ),
    "search: the last step unseen": ("search", "for step in range(1, STEPS)", "for step in range(1, STEPS - 1)"),
    "test: rho a step short": ("search", "divisor(k, low + 1, scale)", "divisor(k, low, scale)"),
    "walk: noise of the next position": ("kseq", "position + level)", "position + level + 1)"),
    "walk: draws counted from 1": ("kseq", f"{NUMBER} - 1", NUMBER),
    "walk: the last chain unseen": ("kseq", "mask=chain < n_chains, other=-1)", "mask=chain < n_chains - 1, other=-1)"),
    "final: a test too few": ("kseq", "left = none_passes(beta, k)", "left = none_passes(beta, k - 1)"),
    "final: the last split unseen": (
        "kseq",
        "mask=splits < n_splits, other=0.0)",
        "mask=splits < n_splits - 1, other=0.0)",
    ),
}


@needs_interpreter
@pytest.mark.parametrize("name", FAULTS)
def test_the_checks_find_an_off_by_one(name, tmp_path, monkeypatch):
    """The comparison with the reference fails for kernels that are broken by one."""
    from workbench_kernels.verification import kseq, kseq_search

    case = Case(103, 4, 5, chains=3, levels=2, like=0.3)
    if "final" in name:  # many tokens, and draws that mostly fail
        case = Case(7, 6, 40, chains=2, levels=1, like=0.0)
    module, old, new = FAULTS[name]
    if module == "kseq":
        monkeypatch.setattr(verification, "kseq", broken(kseq, old, new, tmp_path), raising=False)
    else:
        copy = broken(kseq_search, old, new, tmp_path)
        for kernel in ("search_fwd_kernel", "test_fwd_kernel"):
            monkeypatch.setattr(kseq, kernel, getattr(copy, kernel))
    want = case.verify("torch")
    with pytest.raises(AssertionError), Allocations() as allocations:
        same(case.verify("triton"), want)
        allocations.assert_untouched()


def test_dispatch_takes_refuses_and_falls_back(monkeypatch):
    logits, chains, q = torch.zeros(1, 2, 3), torch.zeros(1, 64, 1, dtype=torch.int32), torch.zeros(1, 3)
    assert verification.choose(logits, q, chains=chains).name == "torch"
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert verification.choose(logits, q, "triton", chains).name == "triton"
    with pytest.raises(RuntimeError, match="at most 64 chains, and the trees have 65; use implementation='torch'"):
        verification.choose(logits, q, "triton", torch.zeros(1, 65, 1))
    with pytest.raises(RuntimeError, match="at most 128 nodes, and the trees have 129"):
        verification.choose(torch.zeros(1, 129, 3), q, "triton", chains)
    with pytest.raises(RuntimeError, match="16 to 64-bit floats, and the proposals are float8_e4m3fn"):
        verification.choose(logits, q.to(torch.float8_e4m3fn), "triton", chains)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"chains": torch.zeros(2, 1, 1, dtype=torch.int32)}, r"integer chains \[1, K, D\] on cpu, .* \[2, 1, 1\]"),
        ({"chains": torch.zeros(1, 0, 1, dtype=torch.int32)}, r"K and D 1 or more, got torch.int32 \[1, 0, 1\]"),
        ({"chains": torch.zeros(1, 1, 1)}, "integer chains .* got torch.float32"),
        ({"proposals": None}, "expected proposals and rows, got None"),
        ({"proposals": torch.zeros(1, 8)}, r"proposals \[M, 7\], got \[1, 8\]"),
        ({"rows": torch.zeros(1, 2).int()}, r"integer rows \[1, 3\]"),
        ({"temperature": -1.0}, "temperature of 0 or more, got -1.0"),
    ],
    ids=str,
)  # fmt: skip
def test_arguments_that_do_not_fit_are_refused(arguments, words):
    columns = {name: torch.zeros(1, 3, dtype=torch.int32) for name in ("tokens", "parents", "depths", "rows")}
    fine = {"logits": torch.zeros(1, 3, 7), **columns, "positions": torch.zeros(1, dtype=torch.int64)}
    fine |= {"chains": torch.zeros(1, 1, 1, dtype=torch.int32), "proposals": torch.zeros(1, 7)}
    with pytest.raises(ValueError, match=words):
        verification.verify_chains(**fine | arguments)


def test_the_kernels_compile_for_gpus_that_are_not_here():
    """Ahead of time for sm80 and sm90."""
    from workbench_kernels.verification import kseq, kseq_search

    types = {"key": "i64", "logits_row_stride": "i64", "proposals_row_stride": "i64"}
    types |= {"temperature": "fp32", "scale": "fp32"}
    types |= {"logits_ptr": "*bf16", "proposals_ptr": "*fp32", "threshold_ptr": "*fp32"}
    types |= {f"{name}_ptr": "*i64" for name in ("threshold_id", "positions")}
    doubles = ("best", "p_parts", "q_parts", "p", "q", "rho", "beta", "masses", "older_masses", "us", "ratios")
    types |= {f"{name}_ptr": "*fp64" for name in doubles}
    law = {"SCALED": True, "CUT": True, "BLOCK_SIZE": 2048}
    chains, splits = {"BLOCK_CHAINS": 8}, {"BLOCK_SPLITS": 64}
    done = compile_all(
        entry(kseq_search, "normalise_fwd_kernel", types, law | chains, 8),
        entry(kseq_search, "search_fwd_kernel", types, law | chains | splits, 8),
        entry(kseq_search, "test_fwd_kernel", types, law | chains | splits, 8),
        entry(kseq, "walk_fwd_kernel", types, {"BLOCK_NODES": 64, **chains}, 8),
        entry(kseq, "final_fwd_kernel", types, law | splits, 8),
    )
    assert len(done.splitlines()) == 10
