"""A device round copies to the host once, makes nothing from host data, and is captured as a graph on a GPU."""

from collections import Counter
from contextlib import contextmanager

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import workbench as wb
from tests.engine.device_cases import (
    DECODERS,
    DRAFT,
    FILTERED,
    PROMPT,
    SAMPLINGS,
    llama,
    same_steps,
    speculative,
    steps,
)
from workbench.device import forward as device_round
from workbench.device import round as device
from workbench.device.graph import Replayed
from workbench.device.store import LiveRows
from workbench.models.adapter import wrap


@pytest.fixture(scope="module")
def pair():
    """A small target; its draft, which agrees with it often, is registered under a name."""
    wb.register_model(DRAFT, wrap(llama(noise=0.15)))
    return wrap(llama())


@pytest.fixture(autouse=True)
def on_device(monkeypatch):
    """Device rounds on the CPU too."""
    monkeypatch.setenv(device.VARIABLE, "device")


# -- one copy ----------------------------------------------------------------------------------------------------------

COPIES = ("item", "tolist", "cpu", "numpy", "to", "__bool__", "__int__", "__float__", "__index__", "__array__")
WAITS = {"aten::_local_scalar_dense", "aten::nonzero", "aten::is_nonzero", "aten::equal", "aten::masked_select",
         "aten::unique_dim", "aten::_unique2"}  # fmt: skip


class _Operators(TorchDispatchMode):
    """Counts operators that wait for the device."""

    def __init__(self):
        super().__init__()
        self.found = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function._schema.name
        if name in WAITS:
            self.found[name] += 1
        if name == "aten::index" and any(i is not None and i.dtype == torch.bool for i in args[1]):
            self.found["aten::index by a mask"] += 1
        return function(*args, **(kwargs or {}))


@contextmanager
def counted():
    """Counts what copies a tensor to the host while open."""
    found, operators = Counter(), _Operators()
    with pytest.MonkeyPatch.context() as patch:
        for name in COPIES:
            original = getattr(torch.Tensor, name)

            def counting(self, *args, name=name, original=original, **options):
                found[name] += name != "to" or "cpu" in (*args, *options.values())  # not: to the model's own device
                return original(self, *args, **options)

            patch.setattr(torch.Tensor, name, counting)
        with operators:
            yield found
    found.update(operators.found)


@pytest.mark.parametrize("sampling", ["greedy", "filters", "typical"])
@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("level", ["default", "off"])
def test_a_round_copies_to_the_host_once(level, decoder, sampling, pair):
    """`to_host` is that copy; the ordinary round, counted the same way, makes many."""
    session = wb.Session(pair, PROMPT, DECODERS[decoder](), level=level, **SAMPLINGS[sampling])
    state = session.state.fork()
    session.decoder.step(state)
    session.decoder.step(state)
    for _ in range(3):
        with counted() as found:
            step = session.decoder.step(state)
        assert step.emitted and dict(+found) == {"cpu": 1, "numpy": 1}, found  # `numpy` views what `cpu` brought


def test_the_count_sees_the_copies_of_the_ordinary_round(pair, monkeypatch):
    monkeypatch.setenv(device.VARIABLE, "host")
    session = wb.Session(pair, PROMPT, DECODERS["tree"](), **FILTERED)
    state = session.state.fork()
    session.decoder.step(state)
    with counted() as found:
        session.decoder.step(state)
    assert sum(found.values()) > 10


@pytest.mark.parametrize("decoder", DECODERS)
def test_nothing_of_the_round_is_made_from_host_data(decoder, pair, monkeypatch):
    """A graph cannot capture a copy from pageable memory: no tensor is made from Python numbers inside the round."""
    made = Counter()

    class Lifts(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            if "lift_fresh" in function._schema.name:
                made[function._schema.name] += 1
            return function(*args, **(kwargs or {}))

    original = device_round.DeviceRound._compute
    wb.decode(pair, PROMPT, max_new_tokens=2, **FILTERED)  # computes the logarithm of min_p, once

    def watched(self):
        with Lifts():
            return original(self)

    monkeypatch.setattr(device_round.DeviceRound, "_compute", watched)
    wb.decode(pair, PROMPT, DECODERS[decoder](), max_new_tokens=6, **FILTERED)
    assert not made
    with Lifts():
        torch.tensor([1])
    assert made  # the counter counts


class _Tape(TorchDispatchMode):
    """A CUDA graph in small: what a function did is done again, operator by operator, into the very same tensors."""

    def __init__(self, function):
        super().__init__()
        self.done = []
        with self:
            self.output = function()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        self.done.append((function, args, kwargs or {}, out))
        return out

    def replay(self) -> torch.Tensor:
        for function, args, kwargs, out in self.done:
            given = [a for a in tree_leaves((args, kwargs)) if isinstance(a, torch.Tensor)]
            held = {tensor.untyped_storage().data_ptr() for tensor in given}
            outs = [tensor for tensor in tree_leaves(out) if isinstance(tensor, torch.Tensor)]
            if function._schema.is_mutable:
                function(*args, **kwargs)
            elif any(tensor.untyped_storage().data_ptr() not in held for tensor in outs):  # else a view
                for old, new in zip(outs, tree_leaves(function(*args, **kwargs)), strict=True):
                    old.copy_(new)
        return self.output


@pytest.mark.parametrize("sampling", ["greedy", "seeded", "filters"])
@pytest.mark.parametrize("decoder", DECODERS)
def test_a_round_done_again_from_its_operators_is_the_next_round(decoder, sampling, pair, monkeypatch):
    """What a captured graph relies on: nothing that changes from round to round is known to Python alone."""
    want, _ = steps(pair, DECODERS[decoder](), monkeypatch, "host", **SAMPLINGS[sampling])
    tapes = {}

    def replayed(self):
        if self not in tapes:
            tapes[self] = _Tape(self._function)
        return tapes[self].replay()

    monkeypatch.setattr(Replayed, "__call__", replayed)
    got, _ = steps(pair, DECODERS[decoder](), monkeypatch, "device", **SAMPLINGS[sampling])
    same_steps(got, want)
    assert len(tapes) == 1 and len(got) > 5


def test_a_number_that_python_keeps_does_not_pass(pair, monkeypatch):
    """A slot computed on the host, as in the ordinary store, would be that of the first round for ever."""
    original = LiveRows.at

    def at(self, base):
        original(self, base)
        self.slots = torch.arange(int(base), int(base) + len(self.offsets))
        return self

    monkeypatch.setattr(LiveRows, "at", at)
    with pytest.raises(AssertionError):
        test_a_round_done_again_from_its_operators_is_the_next_round("plain", "greedy", pair, monkeypatch)


# -- captured ----------------------------------------------------------------------------------------------------------


def rejecting() -> wb.Speculative:
    return speculative(wb.FixedTree((2, 1)), verifier=wb.Rejection())


@pytest.mark.gpu
@pytest.mark.parametrize("sampling", ["greedy", "seeded", "top_k", "top_p", "filters"])
@pytest.mark.parametrize("make", [*DECODERS.values(), rejecting], ids=[*DECODERS, "rejection"])
def test_the_captured_round_gives_the_same_steps(make, sampling, pair, monkeypatch):
    """A CUDA graph per round: text and statistics of the ordinary path on the same GPU."""
    wb.register_model(DRAFT, wrap(llama(noise=0.15).cuda()))
    lm = wrap(llama().cuda())
    want, _ = steps(lm, make(), monkeypatch, "host", **SAMPLINGS[sampling])
    got, _ = steps(lm, make(), monkeypatch, "auto", **SAMPLINGS[sampling])
    same_steps(got, want)
    assert got[-1].forwards["implementation"][-1] == "graph+triton"
    wb.register_model(DRAFT, wrap(llama(noise=0.15)))
