"""A function over static tensors, run as it is or captured once as a CUDA graph and replayed.

Every graph is captured on a stream of its own for as long as it lives: when one is reset, torch frees the workspaces
that cuBLAS has on its stream, and other graphs of the same stream would go on using them (pytorch issue 193402).

Capture and replay have never run on a GPU yet: tests without one check in which order CUDA is asked, and that whatever
goes wrong leaves stream, debug mode and collector as they were.
"""

import gc
import inspect
import threading
import warnings
import weakref
from collections.abc import Callable
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import cuda

_WARM_UPS = 2  # compile kernels, choose algorithms and fill workspaces; a third is watched
_STREAMS = 24  # graphs alive at once on a device: torch has 32 streams, and gives them out again from the first
_WAITS = "called a synchronizing CUDA operation"
_capturing = threading.Lock()  # a process captures one graph at a time, and what is set meanwhile holds for all of it


class Replayed:
    """Calls a function without arguments that reads and writes tensors of fixed addresses, and returns what it returns.

    On a GPU the first call warms it up on a side stream and captures it, with a memory pool of its own; later calls
    replay the graph, which is one launch. The function must be safe to repeat, copy nothing to the host and make no
    tensor from host data. A function that synchronises with the device cannot be captured: it runs eagerly, as does one
    whose capture fails. `reason` says why. On a CPU it runs eagerly. A method is held weakly, since its object may own
    this one.

    Attributes
    ----------
    captured: whether a call replays a graph. reason: why it does not, or None.
    """

    def __init__(self, function: Callable[[], Any], device: torch.device):
        self._held = weakref.WeakMethod(function) if inspect.ismethod(function) else lambda: function
        self._device = device
        self._graph: cuda.CUDAGraph | None = None
        self._output: Any = None
        self._free: Callable[[], Any] = lambda: None
        self._waits = device.type == "cuda"  # for its capture
        self.reason: str | None = "not called yet" if device.type == "cuda" else f"the model is on {device.type!r}"

    @property
    def captured(self) -> bool:
        return self._graph is not None

    @property
    def _function(self) -> Callable[[], Any]:
        return self._held()

    def __call__(self) -> Any:
        """The function's result; a captured one is overwritten by the next call."""
        if self._waits:
            self._capture()
        if self._graph is None:
            return self._function()
        self._graph.replay()
        return self._output

    def _capture(self) -> None:
        with _capturing, cuda.device(self._device):
            current, side = cuda.current_stream(), _side(self._device)
            if not (streams := _idle(self._device)):
                self.reason = f"{_STREAMS} graphs are alive already"
                return
            side.wait_stream(current)
            try:
                with cuda.stream(side):
                    for _ in range(_WARM_UPS):
                        self._function()
                    reason = _first_wait(self._function)
                if reason is None:
                    stream = streams.pop()
                    try:
                        self._graph, self._output = _captured(self._function, stream)
                    except BaseException:
                        streams.append(stream)
                        raise
                    self._free = weakref.finalize(self, _release, self._graph, streams, stream)
                self.reason, self._waits = reason, False
            except torch.OutOfMemoryError:
                raise
            except Exception as error:
                self._waits = False
                self.reason = f"the capture failed: {type(error).__name__}: {error}".splitlines()[0]
            finally:
                current.wait_stream(side)

    def close(self) -> None:
        """Free the graph and its memory; later calls run the function as it is."""
        self._free()
        self._graph = self._output = None
        self.reason, self._waits = "closed", False


@lru_cache
def _side(device: torch.device) -> cuda.Stream:
    """To warm up on: one a device, since every stream used keeps workspaces for ever."""
    return cuda.Stream(device)


@lru_cache
def _idle(device: torch.device) -> list[cuda.Stream]:
    """The streams of a device that no graph is captured on."""
    return [cuda.Stream(device) for _ in range(_STREAMS)]


def _release(graph: cuda.CUDAGraph, streams: list[cuda.Stream], stream: cuda.Stream) -> None:
    """Free a graph; its stream may be captured on again."""
    graph.reset()
    streams.append(stream)


def _first_wait(function: Callable[[], Any]) -> str | None:
    """Run a function and say where it waited for the device first, or None; torch knows of most waits, not of all."""
    thread, show, found = threading.get_ident(), warnings.showwarning, []

    def note(message, category, filename, lineno, *rest):
        if _WAITS not in str(message):
            show(message, category, filename, lineno, *rest)
        elif threading.get_ident() == thread:
            found.append(f"it waits for the device ({Path(filename).name}, line {lineno})")

    before = cuda.get_sync_debug_mode()
    with warnings.catch_warnings():
        warnings.filterwarnings("always", message=_WAITS)
        warnings.showwarning = note
        try:
            cuda.set_sync_debug_mode("warn")  # "error" would raise in the other threads of the process as well
            function()
        finally:
            cuda.set_sync_debug_mode(before)
    return found[0] if found else None


def _captured(function: Callable[[], Any], stream: cuda.Stream) -> tuple[cuda.CUDAGraph, Any]:
    graph, pool, collects = cuda.CUDAGraph(), cuda.graph_pool_handle(), gc.isenabled()
    gc.disable()  # what it finds may be a graph, and must not be destroyed now
    try:
        # the outer context puts the stream back where the inner one fails to; thread_local: other threads may allocate
        with cuda.stream(stream), cuda.graph(graph, pool=pool, stream=stream, capture_error_mode="thread_local"):
            return graph, function()
    except BaseException:
        _clean_up(stream, pool)
        raise
    finally:
        if collects:
            gc.enable()


def _clean_up(stream: cuda.Stream, pool: tuple[int, int]) -> None:
    """After a capture that CUDA broke off: older torch still takes allocator and random generator to be in it."""
    end = getattr(torch._C, "_cuda_endAllocateToPool", None)
    with suppress(RuntimeError):  # the allocator has left it already
        if end is not None:
            end(cuda.current_device(), pool)
    again = cuda.graph(cuda.CUDAGraph(), stream=stream, capture_error_mode="thread_local")
    with suppress(RuntimeError), cuda.stream(stream), again:
        torch.zeros(1, device=stream.device)  # a capture that succeeds resets the generator
