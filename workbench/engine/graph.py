"""A function over static tensors, run as it is or captured once as a CUDA graph and replayed."""

from collections.abc import Callable

import torch

__all__ = ["Replayed"]

_WARM_UPS = 2  # compile kernels, choose algorithms and fill workspaces before the capture


class Replayed:
    """Calls a function without arguments that reads and writes tensors of fixed addresses and returns one of them.

    On a GPU the first call warms it up on a side stream and captures it, with a memory pool of its own; later calls
    replay the graph, which is one launch. The function must be safe to repeat, copy nothing to the host and make no
    tensor from host data. Where the capture fails it is run as it is from then on, and `reason` says why. On a CPU it
    is run as it is.

    Attributes
    ----------
    captured: whether a call replays a graph. reason: why it does not, or None.
    """

    def __init__(self, function: Callable[[], torch.Tensor], device: torch.device):
        self._function = function
        self._device = device
        self._graph: torch.cuda.CUDAGraph | None = None
        self._output: torch.Tensor | None = None
        self.reason: str | None = "not called yet" if device.type == "cuda" else f"the model is on {device.type!r}"

    @property
    def captured(self) -> bool:
        return self._graph is not None

    def __call__(self) -> torch.Tensor:
        """The function's result; a captured one is overwritten by the next call."""
        if self.reason == "not called yet":
            self._capture()
        if self._graph is None:
            return self._function()
        self._graph.replay()
        return self._output

    def _capture(self) -> None:
        current = torch.cuda.current_stream(self._device)
        side = torch.cuda.Stream(self._device)
        side.wait_stream(current)
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.stream(side):
                for _ in range(_WARM_UPS):
                    self._function()
            side.synchronize()
            # thread_local: another session's thread may allocate meanwhile
            with torch.cuda.graph(graph, stream=side, capture_error_mode="thread_local"):
                self._output = self._function()
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            self.reason = f"the capture failed: {type(error).__name__}: {error}".splitlines()[0]
            self._output = None
        else:
            self._graph, self.reason = graph, None
        finally:
            current.wait_stream(side)

    def close(self) -> None:
        """Free the graph and its memory; later calls run the function as it is."""
        if self._graph is not None:
            self._graph.reset()
        self._graph = self._output = None
        self.reason = "closed"
