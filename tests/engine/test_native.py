"""The compiled body: rows that do not know of each other, weights packed anew where they change, how it is built."""

import os
import shutil
import subprocess
import threading
import time

import pytest
import torch

from tests.engine.test_adapter import PROMPT, close
from tests.engine.test_fast import LONG, bundled, compiled, made, prefilled, served
from workbench.engine.model import ForwardRequest
from workbench.models import codes, native
from workbench.models.adapter import TransformersModel
from workbench.models.fast import FastBody
from workbench.models.native import NativeBody
from workbench_kernels import native as built

BUILD = built._compiled.__wrapped__


@compiled
def test_few_rows_are_read_natively_and_many_are_not():
    lm = served(made("llama-gqa"), NativeBody)
    store = prefilled(lm, 100)
    assert store.implementation == "sdpa"
    for count, expected in ((1, "native"), (16, "native"), (17, "sdpa")):
        lm.forward(LONG[:count], range(100, 100 + count), store)
        assert store.implementation == expected
        store.discard()
    store.watched, store.add_mass = (0,), lambda layer, mass: None
    lm.forward([1], [100], store)
    assert store.implementation == "sdpa"


@compiled
@pytest.mark.parametrize("name", ["llama-gqa", "llama-coded", "gemma3", "olmo2"])
def test_a_compiled_row_does_not_know_of_the_others(name, monkeypatch):
    """Bit for bit: alone, among sixteen, by two threads, in a bundle."""
    lm = served(made(name), NativeBody)

    def logits(count: int) -> torch.Tensor:
        store = prefilled(lm)
        return lm.forward(PROMPT[:count], range(17, 17 + count), store).logits

    def one_by_one(count: int) -> torch.Tensor:
        store, rows = prefilled(lm), []
        for row in range(count):
            rows.append(lm.forward(PROMPT[row : row + 1], [17 + row], store).logits)
            store.commit([0])
        return torch.cat(rows)

    alone = one_by_one(16)
    for count in (2, 3, 7, 16):
        assert torch.equal(logits(count), alone[:count])
    in_bundle = bundled(lm)
    monkeypatch.setattr(native, "SMALL", 0)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        assert torch.equal(logits(16), alone)
        assert all(map(torch.equal, bundled(lm), in_bundle))
    finally:
        torch.set_num_threads(before)


@compiled
@torch.inference_mode()
def test_numbers_that_are_not_numbers_stay_in_their_sequence():
    lm = served(made("llama-gqa"), NativeBody)
    states = [lm.embed([token]) * (torch.nan if token == 4 else 1) for token in (3, 4, 5)]
    rows = [ForwardRequest(state, [17], prefilled(lm)) for state in states]
    logits = torch.cat([out.logits for out in lm.forward_many(rows)])
    assert logits.isnan().all(-1).tolist() == [False, True, False]
    assert logits[[0, 2]].isfinite().all()


def is_native(lm: TransformersModel) -> bool:
    return type(lm._fast.parts()[0][0]).__name__ == "_NativeLayer"


@compiled
def test_weights_packed_anew_while_others_read_them():
    """By another thread: the same numbers give the same logits throughout."""
    model = made("llama-gqa")
    lm, stop, found = served(model, NativeBody), threading.Event(), []
    expected = lm.forward([3], [17], prefilled(lm)).logits

    def read() -> None:
        store = prefilled(lm)
        while not stop.is_set():
            found.append(torch.equal(lm.forward([3], [17], store).logits, expected))
            store.discard()

    threads = [threading.Thread(target=read) for _ in range(2)]
    for thread in threads:
        thread.start()
    with torch.no_grad():
        for _ in range(60):
            model.model.layers[1].mlp.up_proj.weight.mul_(1.0)
            time.sleep(0.005)
    stop.set()
    for thread in threads:
        thread.join()
    assert all(found) and len(found) > 10


@compiled
def test_packed_weights_follow_those_of_the_model():
    model = made("llama-gqa")
    lm = served(model, NativeBody, FastBody)
    weight = model.model.layers[0].mlp.down_proj.weight

    def check() -> torch.Tensor:
        logits = lm.forward(PROMPT, range(28), lm.new_store()).logits[-1:]
        store = prefilled(lm, 27)
        row = lm.forward(PROMPT[27:], [27], store).logits
        close(row, model(torch.tensor([PROMPT]), use_cache=False).logits[0, -1:], 1e-5)
        close(row, logits, 1e-5)
        return row

    before = check()
    with torch.no_grad():
        weight.mul_(0.5)
    assert not torch.allclose(check(), before)
    assert is_native(lm)
    with torch.no_grad():
        weight.mul_(0.7)  # no numbers of bfloat16 any more: torch reads them, and the next run says so
    check()
    assert not is_native(lm)
    lm.refresh()
    assert lm.body[0] == "fast" and lm.body[1].startswith("not compiled: weights that are neither bfloat16 numbers")
    check()
    weight.data = model.model.layers[1].mlp.down_proj.weight.data.clone()  # torch does not count that
    lm.refresh()
    assert is_native(lm)
    check()
    model.lm_head.weight.data[:, 3] *= 8
    lm.refresh()
    check()


def test_weights_of_few_bits_are_found_and_no_others():
    """As GGUF's Q4_0, Q4_1 and Q8_0 have them, and rounded to such; groups of one number; the numbers come back."""
    draw = torch.Generator().manual_seed(1)
    scale = torch.rand(40, 3, 1, generator=draw).half().float() + 0.1
    least = torch.randn(40, 3, 1, generator=draw).half().float()

    def grid(low: int, high: int) -> torch.Tensor:
        return torch.randint(low, high + 1, (40, 3, 32), generator=draw)

    q4_0, q4_1, q8_0 = grid(-8, 7), grid(0, 15), grid(-127, 127)
    q4_0[..., 9], q8_0[..., 4] = -8, -127
    normal, flat = torch.randn(40, 96, generator=draw), torch.full((40, 96), 0.3)
    cases = [(4, scale * q4_0), (4, scale * q4_1 + least), (8, scale * q8_0), (4, codes.rounded(normal)),
             (8, codes.rounded(normal, 8)), (4, flat), (4, flat * 0)]  # fmt: skip
    for bits, weight in cases:
        weight = weight.reshape(40, 96)
        found, code, steps, low = codes.codes_of(weight)
        assert found == bits and code.min() >= 0 and code.max() < 2**bits
        again = (low[..., None] + steps[..., None] * code).flatten(1)
        torch.testing.assert_close(again, weight, rtol=0, atol=2e-6 * weight.abs().max().item())
    near = codes.rounded(normal)
    near[7, 40] += 0.01  # one number that is on no grid
    peaks = normal * 0.02  # one weight of a group so large that the others are next to nothing of it
    peaks[:, ::32] = 1e6
    assert {codes.codes_of(odd) for odd in (normal, near, peaks, flat[:, :40])} == {None}
    assert (codes.rounded(normal) - normal).abs().max() < 0.25


def rebuilt(monkeypatch) -> str | None:
    """Why a model gets no compiled body now, if so."""
    if os.environ.get("WORKBENCH_KERNELS") != "torch":
        monkeypatch.delenv("WORKBENCH_KERNELS", raising=False)
    monkeypatch.setattr(built, "_compiled", BUILD)
    return served(made("llama-gqa"), NativeBody, FastBody).body[1]


def test_without_a_compiler_torch_serves(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert rebuilt(monkeypatch) == "not compiled: no C++ compiler found"


def test_a_compiler_that_fails_is_named(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    broken = tmp_path / "c++"
    broken.write_text("#!/bin/sh\necho 'it is broken' >&2\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setenv("CXX", str(broken))
    assert rebuilt(monkeypatch) == f"not compiled: {broken}: it is broken"
    assert not list((tmp_path / "cache").rglob("*.*"))


def test_who_wants_torch_alone_gets_it(monkeypatch):
    monkeypatch.setenv("WORKBENCH_KERNELS", "torch")
    assert rebuilt(monkeypatch) == "not compiled: WORKBENCH_KERNELS=torch"


@compiled
def test_it_is_built_once(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert rebuilt(monkeypatch) is None
    (file,) = tmp_path.rglob("*.so")
    with monkeypatch.context() as patch:
        patch.setattr(subprocess, "run", None)
        assert rebuilt(monkeypatch) is None
    assert list(file.parent.iterdir()) == [file]
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "other"))
    cut = tmp_path / "other" / file.relative_to(tmp_path)
    cut.parent.mkdir(parents=True)
    cut.write_bytes(file.read_bytes()[:100])  # cut short: made anew
    assert rebuilt(monkeypatch) is None and cut.stat().st_size == file.stat().st_size
    file.unlink()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    file.parent.chmod(0o777)  # anybody's: left alone
    assert rebuilt(monkeypatch) is None
    assert not list(file.parent.iterdir())


@compiled
def test_it_is_built_where_there_is_no_home(monkeypatch):
    def homeless(name: str):
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(built, "cache_folder", homeless)
    assert rebuilt(monkeypatch) is None
