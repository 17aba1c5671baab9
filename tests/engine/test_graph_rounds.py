"""What rounds, forwards and launchers owe to a GPU, as far as it shows without one: no cycle, no id out of range, no
wait for the whole device, and kernels on the device where their tensors lie."""

import ast
import gc
import weakref
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

import workbench as wb
import workbench_kernels
from benchmarks import end_to_end
from tests.engine.device_cases import DRAFT, PROMPT, llama, speculative
from tests.kernels.interpreter import needs_interpreter
from workbench.device import round as device
from workbench.errors import NumericalError
from workbench.models.adapter import wrap
from workbench.rounds import round as rounds
from workbench_kernels.dispatch import on_its_device


def test_a_round_goes_without_the_collector(monkeypatch):
    """Graph, pool and weights of a run that is over are not left to a collection, which may come inside a capture."""
    monkeypatch.setenv(device.VARIABLE, "device")
    session = wb.Session(wrap(llama()), PROMPT, max_new_tokens=4)
    session.run()
    (found,) = map(weakref.ref, device._rounds[session.state.runners["target"].store._run].values())
    held = found()
    gc.collect()
    gc.disable()
    try:
        device._rounds.clear()
        assert found() is held
        del held
        assert found() is None
    finally:
        gc.enable()


@pytest.mark.parametrize("sampling", [{}, {"temperature": 1.0}])
@pytest.mark.parametrize(
    "where", [pytest.param("cpu", marks=needs_interpreter), pytest.param("cuda", marks=pytest.mark.gpu)]
)
def test_broken_logits_under_rejection_end_the_run_with_their_name(where, sampling, monkeypatch):
    """No token is drawn from NaN; the kernel's mark for that is no id, and read as one it ends a GPU's context."""
    monkeypatch.setenv(device.VARIABLE, "device")
    monkeypatch.setattr(device, "IMPLEMENTATION", "triton")
    wb.register_model(DRAFT, wrap(llama(noise=0.15).to(where)))
    lm = wrap(llama().to(where))
    session = wb.Session(lm, PROMPT, speculative(wb.FixedLength(1), verifier=wb.Rejection()), **sampling)
    session.run(rounds=1)
    with torch.no_grad():
        lm.model.lm_head.weight.fill_(torch.nan)
    with pytest.raises(NumericalError, match="NaN or infinite"):
        session.step()


def test_a_forward_waits_for_its_own_stream_alone(monkeypatch):
    """A wait for all streams of the device, in any thread, breaks a capture off."""
    waited = []
    stream = SimpleNamespace(synchronize=lambda: waited.append("stream"))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda where: stream)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda *_: waited.append("device"))
    rounds.Round._clock(SimpleNamespace(device=torch.device("cuda", 0)))
    assert waited == ["stream"]
    root = Path(wb.__file__).parent
    assert not [path for path in root.rglob("*.py") if "cuda.synchronize(" in path.read_text()]


# -- devices -----------------------------------------------------------------------------------------------------------

CALLED_BY_LAUNCHERS = {"candidates.launch", "rejection.run", "rejection.draw"}


def test_kernels_are_launched_with_the_device_of_their_tensors(monkeypatch):
    """Found among the positional arguments and in tuples there; nothing is set on a CPU."""
    current = []

    @contextmanager
    def device_is(where):
        current.append(where)
        yield
        current.pop()

    monkeypatch.setattr(torch.cuda, "device", device_is)
    launched = on_its_device(lambda *args, **options: (list(current), options))
    with FakeTensorMode():
        tensor = torch.empty(1, device="cuda:1")
    wanted = ([torch.device("cuda", 1)], {"width": 2})
    assert launched(tensor, width=2) == launched("kernel", (tensor, 1), torch.empty(1), width=2) == wanted
    assert launched(torch.empty(1)) == ([], {}) and not current


def test_every_launcher_sets_the_device():
    """A function that launches kernels carries the guard, or is called by one that does."""
    bare, guarded = set(), 0
    for path in Path(workbench_kernels.__file__).parent.rglob("*.py"):
        for function in (node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.FunctionDef)):
            calls = (node.func for node in ast.walk(function) if isinstance(node, ast.Call))
            if any(isinstance(call, ast.Subscript) and ast.unparse(call.value).endswith("kernel") for call in calls):
                if "on_its_device" in map(ast.unparse, function.decorator_list):
                    guarded += 1
                else:
                    bare.add(f"{path.stem}.{function.name}")
    assert bare == CALLED_BY_LAUNCHERS and guarded > len(bare)


@pytest.mark.parametrize("level", ["off", "default"])
def test_rounds_that_are_no_graph_are_not_given_as_the_graph(level, monkeypatch):
    monkeypatch.setenv(device.VARIABLE, "device")
    lm = wrap(llama())
    ms, where = end_to_end.workbench_ms(lm, PROMPT, 2, level)
    assert ms > 0 and where == ("device" if level == "off" else "device+sdpa")
    record = device._record

    def told(r, *rest):
        r.step.figures["not_captured"] = "it waits"
        record(r, *rest)

    monkeypatch.setattr(device, "_record", told)
    with pytest.raises(SystemExit, match="no CUDA graph: it waits"):
        end_to_end.workbench_ms(lm, PROMPT, 2, level)


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_a_model_on_the_second_device_gives_the_text_of_the_first():
    """Prefill, rounds as they are and captured rounds launch where the tensors lie."""
    texts = [wb.decode(wrap(llama().to(f"cuda:{n}")), PROMPT, max_new_tokens=12).token_ids for n in range(2)]
    assert texts[0] == texts[1]
