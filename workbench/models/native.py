"""The fast body compiled: what lies before and behind a layer's attention, in one call each, for forwards of few rows.

`native.cpp` beside this file is built once by the C++ compiler of this machine, into the user's cache. It reads copies
of weights that are bfloat16 on disk as such, half the bytes of float32 for the same numbers; all else stays float32.
Sums run in one order, so a row's numbers do not depend on the rows beside it. Wider forwards go through torch.
"""

import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from workbench.cache.store import CacheStore, Segment
from workbench.engine.attention import join
from workbench.engine.bundle import Bundle
from workbench.errors import Unsupported
from workbench.models import fast
from workbench.models.checkpoint import cache_folder
from workbench_kernels.dispatch import VARIABLE

__all__ = ["COMPILERS", "NativeBody", "compiled"]

SOURCE = Path(__file__).with_suffix(".cpp")
FLAGS = ("-O3", "-std=c++17", "-shared", "-fPIC", "-fno-strict-aliasing", "-fno-math-errno",
         "-fno-trapping-math", "-march=native")  # fmt: skip
BLOCK = 16  # outputs side by side
FEW = 16  # rows, up to which a product reads its weights here
WIDE = 4096  # rows by slots, up to which attention is faster here
SMALL = 2**22  # bytes of weights, up to which a second thread costs more than it saves
COMPILERS = ("c++", "g++", "clang++")
FORCED = ("torch", "triton")  # values of WORKBENCH_KERNELS that leave this out
ACTIVATIONS: tuple[Callable, ...] = (F.silu, functools.partial(F.gelu, approximate="tanh"), F.relu, F.gelu)


class Matrix(ctypes.Structure):
    _fields_ = [("data", ctypes.c_void_p), ("bias", ctypes.c_void_p), ("outputs", ctypes.c_int64),
                ("inputs", ctypes.c_int64)]  # fmt: skip


class Norm(ctypes.Structure):
    _fields_ = [("weight", ctypes.c_void_p), ("bias", ctypes.c_void_p), ("eps", ctypes.c_float),
                ("centred", ctypes.c_int32)]  # fmt: skip


MATRICES = ("q", "k", "v", "out", "gate", "up", "down")
NORMS = ("before", "queries", "keys", "after", "between", "last")
NUMBERS = ("width", "heads", "groups", "dim", "turned", "activation", "wide")


class Layer(ctypes.Structure):
    _fields_ = [*((name, Matrix) for name in MATRICES), *((name, Norm) for name in NORMS),
                *((name, ctypes.c_int64) for name in NUMBERS)]  # fmt: skip


class Run(ctypes.Structure):
    _fields_ = [(name, ctypes.c_void_p) for name in ("k", "v", "mask")]
    _fields_ += [(name, ctypes.c_int64) for name in ("slots", "k_head", "v_head", "k_slot", "v_slot", "causal")]

    @classmethod
    def of(cls, segment: Segment, rows: int) -> "Run | None":
        """A segment as it lies in memory, which the segment keeps; None for one that has to be read another way."""
        if segment.page_table or segment.bias is not None:
            return None
        k, v, mask = segment.k, segment.v, segment.mask
        if {k.dtype, v.dtype} != {torch.float32} or k.stride(2) != 1 or v.stride(2) != 1:
            return None
        if mask is not None and (mask.shape != (rows, k.shape[1]) or not mask.is_contiguous()):
            return None
        place, strides = None if mask is None else mask.data_ptr(), (k.stride(0), v.stride(0), k.stride(1), v.stride(1))
        return cls(k.data_ptr(), v.data_ptr(), place, k.shape[1], *strides, segment.causal)


class NativeBody(fast.FastBody):
    """A `FastBody` whose narrow forwards are compiled. Raises Unsupported where nothing can be compiled here, or the
    weights are not bfloat16 numbers.

    Weights are packed anew where they were changed in place. What goes past torch's own count of changes, as writing to
    `.data` does, is seen when the next run begins.
    """

    def __init__(self, *given: Any):
        compiled()
        super().__init__(*given)
        sources = [part for layer in self._layers for part in vars(layer).values() if isinstance(part, tuple)]
        tensors = (tensor for part in (*sources, self._head) for tensor in part if isinstance(tensor, torch.Tensor))
        self._sources = list({id(tensor): tensor for tensor in tensors}.values())
        if any(tensor.is_inference() for tensor in self._sources):
            raise Unsupported("weights made in inference mode")
        self._packing = threading.Lock()
        self._packed = self._pack()

    def parts(self) -> tuple[Sequence[Any], Callable[[torch.Tensor], torch.Tensor]]:
        """Those of this forward, which hold what native code reads until it is over."""
        if self._packed[0] != self._marks():
            with self._packing:
                if self._packed[0] != self._marks():
                    try:
                        self._packed = self._pack()
                    except Unsupported:  # numbers that only torch can read
                        self._packed = (self._marks(), *super().parts())
        return super().parts() if os.environ.get(VARIABLE) in FORCED else self._packed[1:]

    def _marks(self) -> list[tuple[int, int]]:
        return [(tensor.data_ptr(), tensor._version) for tensor in self._sources]

    def _pack(self) -> tuple[list[tuple[int, int]], list["_NativeLayer"], "_NativeHead"]:
        marks = self._marks()
        turned = {kind: 2 * len(angles[0]) if angles else 0 for kind, angles in self._angles.items()}
        return marks, [_NativeLayer(layer, turned[layer.kind]) for layer in self._layers], _NativeHead(self._head)


class _Held:
    """Native structures, with the tensors that they point to."""

    def __init__(self) -> None:
        self.tensors: list[torch.Tensor] = []
        self.code = compiled()

    def address(self, tensor: torch.Tensor | None) -> int | None:
        if tensor is None:
            return None
        tensor = tensor.detach()
        if tensor.dtype != torch.float32 or not tensor.is_contiguous() or tensor.device.type != "cpu":
            raise Unsupported(f"weights in {tensor.dtype}, or not in one piece")
        self.tensors.append(tensor)
        return tensor.data_ptr()

    @torch.no_grad()
    def matrix(self, linear: fast.Linear) -> Matrix:
        """Raises Unsupported for weights that are not bfloat16 numbers."""
        weight, (outputs, inputs) = linear.weight, linear.weight.shape
        half = F.pad(weight.bfloat16(), (0, 0, 0, -outputs % BLOCK))
        if inputs % 2 or not torch.equal(half[:outputs].float(), weight):
            raise Unsupported("weights that are not bfloat16 numbers")
        pairs = half.view(-1, BLOCK, inputs // 2, 2).transpose(1, 2).contiguous()
        self.tensors.append(pairs)
        return Matrix(pairs.data_ptr(), self.address(linear.bias), outputs, inputs)

    @torch.no_grad()
    def norm(self, norm: fast.Norm) -> Norm:
        weight = 1 + norm.weight if norm.plus else norm.weight
        return Norm(self.address(weight), self.address(norm.bias), norm.eps, norm.centred)


class _NativeHead(_Held):
    def __init__(self, head: fast.Linear):
        super().__init__()
        self.torch, self.native = head, self.matrix(head)

    def __call__(self, hidden: torch.Tensor) -> torch.Tensor:
        inputs, outputs = self.native.inputs, self.native.outputs
        if hidden.ndim != 2 or len(hidden) > FEW or hidden.shape[1] != inputs or hidden.dtype != torch.float32:
            return self.torch(hidden)
        hidden, out = hidden.contiguous(), hidden.new_empty(len(hidden), outputs)
        given = (ctypes.byref(self.native), hidden.data_ptr(), len(hidden), out.data_ptr(), _threads(inputs * outputs))
        self.code.matrix_product(*given)
        return out


class _NativeLayer(_Held):
    """A layer of few rows by native code, of more by torch."""

    def __init__(self, layer: fast.Layer, turned: int):
        super().__init__()
        self.torch, self.kind = layer, layer.kind
        self.heads, self.groups = (part.weight.shape[0] // layer.width for part in (layer.q, layer.k))
        self.values = layer.v.weight.shape[0] // self.groups
        numbers = (layer.down.weight.shape[0], self.heads, self.groups, layer.width, turned, _activation(layer.act))
        parts = {name: getattr(layer, name) for name in (*MATRICES, *NORMS)}
        matrices = {name: self.matrix(parts[name]) for name in MATRICES if parts[name] is not None}
        norms = {name: self.norm(parts[name]) for name in NORMS if isinstance(parts[name], fast.Norm)}
        self.native = Layer(**matrices, **norms, **dict(zip(NUMBERS, (*numbers, layer.wide), strict=True)))
        self.place, self.weights = ctypes.byref(self.native), sum(m.outputs * m.inputs for m in matrices.values())

    def __call__(self, x: torch.Tensor, turn: Any, store: CacheStore, attend: fast.Attend) -> torch.Tensor:
        rows, layer = len(x), self.torch
        if rows > FEW:
            _said(store, "sdpa")
            return layer(x, turn, store, attend)
        x, y = x.contiguous(), x.new_empty(x.shape)
        q, k = x.new_empty(rows, self.heads, layer.width), x.new_empty(rows, self.groups, layer.width)
        v, threads = x.new_empty(rows, self.groups, self.values), _threads(self.weights)
        cos, sin = (0, 0) if turn is None else (part.data_ptr() for part in turn)
        places = (q.data_ptr(), k.data_ptr(), v.data_ptr())
        self.code.layer_before(self.place, x.data_ptr(), rows, cos, sin, *places, threads)
        store.stage(layer.number, k.transpose(0, 1), v.transpose(0, 1))
        read = self.read(q, store, threads)
        if read is None:
            _said(store, "sdpa")
            read = layer.read(q, store, attend).contiguous()
        self.code.layer_after(self.place, x.data_ptr(), read.data_ptr(), rows, y.data_ptr(), threads)
        return y

    def read(self, q: torch.Tensor, store: CacheStore, threads: int) -> torch.Tensor | None:
        """What `fast.Layer.read` gives, where all lies in memory as it is; else None."""
        layer, held, runs, counts = self.torch, [], [], []
        stores, lengths = _stores(store), [len(q)]
        if isinstance(store, Bundle):
            lengths = [rows.stop - rows.start for rows in store.rows]
        for one, length in zip(stores, lengths, strict=True):
            segments = () if one.watched else one.segments(layer.number, layer.window)
            if segments and segments[0].page_table and all(segment.plain for segment in segments):
                segments = [join(q.transpose(0, 1)[None], segments)]
            found = [Run.of(segment, length) for segment in segments]
            if not found or None in found or length * sum(run.slots for run in found) > WIDE:
                return None
            held.append(segments)  # until native code has read them
            runs += found
            counts.append(len(found))
        many, out = len(counts), q.new_empty(len(q), self.heads * self.values)
        numbers = (ctypes.c_int64 * (2 * many))(*counts, *lengths)
        self.code.attend(
            (Run * len(runs))(*runs), numbers, ctypes.addressof(numbers) + 8 * many, many, q.data_ptr(), self.heads,
            self.groups, layer.width, self.values, layer.scale, out.data_ptr(), threads
        )  # fmt: skip
        _said(store, "native")
        return out


def _stores(store: CacheStore) -> list[CacheStore]:
    return store.stores if isinstance(store, Bundle) else [store]


def _said(store: CacheStore, implementation: str) -> None:
    for one in _stores(store):
        one.implementation = implementation


def _threads(weights: int) -> int:
    """As many as torch has, for products worth dividing."""
    return 1 if 2 * weights < SMALL else torch.get_num_threads()


@functools.cache
@torch.inference_mode()
def _activation(act: Callable) -> int:
    trial = torch.linspace(-9, 9, 301)
    for number, known in enumerate(ACTIVATIONS):
        if torch.allclose(act(trial), known(trial), rtol=1e-6, atol=1e-6):
            return number
    raise Unsupported(f"no compiled {type(act).__name__}")


# -- building -----------------------------------------------------------------------------------------------------


_building = threading.Lock()


def compiled() -> ctypes.CDLL:
    """The compiled source. Raises Unsupported where it cannot be had."""
    if (wish := os.environ.get(VARIABLE)) in FORCED:
        raise Unsupported(f"{VARIABLE}={wish}")
    with _building:
        found = _compiled()
    if isinstance(found, str):
        raise Unsupported(found)
    return found


@functools.cache
def _compiled() -> ctypes.CDLL | str:
    """The compiled source, or why there is none: tried once."""
    compiler = next(filter(None, map(shutil.which, (os.environ.get("CXX", ""), *COMPILERS))), None)
    if compiler is None:
        return "no C++ compiler found"
    reasons = []
    for flags in ((*FLAGS, "-fopenmp"), FLAGS):
        try:
            found = _loaded(compiler, flags)
        except (OSError, subprocess.SubprocessError) as error:
            told = getattr(error, "stderr", None) or str(error)
            reasons += told.strip().splitlines()[:1]
            continue
        if found.layer_bytes() == ctypes.sizeof(Layer) + ctypes.sizeof(Run):
            return _declared(found)
        reasons.append("its structures have another size")
    return f"{compiler}: {'; '.join(dict.fromkeys(reasons))}"


def _loaded(compiler: str, flags: tuple[str, ...]) -> ctypes.CDLL:
    """What this compiler makes of the source for this CPU, from the user's cache or into it; made anew where what lies
    there does not load. A cache that is not the user's own is left alone."""
    facts, made = Path("/proc/cpuinfo"), os.stat(compiler)
    words = ("flags", "Features", "CPU part", "isa")
    cpu = sorted({line for line in facts.read_text().splitlines() if line.startswith(words)}) if facts.is_file() else ()
    key = (SOURCE.read_bytes(), compiler, made.st_size, made.st_mtime, flags, platform.uname()[4:], *cpu)
    with tempfile.TemporaryDirectory() as own:
        folder = _kept() or Path(own)
        place = folder / f"{hashlib.sha256(repr(key).encode()).hexdigest()[:16]}.so"
        if place.is_file():
            with suppress(OSError):
                return ctypes.CDLL(str(place))
        part = Path(own) / "part.so"
        command = [compiler, *flags, "-o", str(part), str(SOURCE)]
        subprocess.run(command, check=True, capture_output=True, text=True, timeout=120)
        beside = folder / f"{place.stem}.{os.getpid()}"
        shutil.copyfile(part, beside)
        beside.replace(place)
        return ctypes.CDLL(str(place))


def _kept() -> Path | None:
    """The user's own folder for what is built; None where there is none, or another may write it."""
    try:
        folder = cache_folder("native")
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        found = folder.stat()
    except (OSError, RuntimeError):
        return None
    own = not hasattr(os, "getuid") or (found.st_uid == os.getuid() and not found.st_mode & 0o022)
    return folder if own and os.access(folder, os.W_OK) else None


def _declared(found: ctypes.CDLL) -> ctypes.CDLL:
    place, number = ctypes.c_void_p, ctypes.c_int64
    found.layer_before.argtypes = [place, place, number, *[place] * 5, ctypes.c_int]
    found.layer_after.argtypes = [place, place, place, number, place, ctypes.c_int]
    found.matrix_product.argtypes = [place, place, number, place, ctypes.c_int]
    found.attend.argtypes = [place, place, place, number, place, *[number] * 4, ctypes.c_float, place, ctypes.c_int]
    for name in ("layer_before", "layer_after", "matrix_product", "attend"):
        getattr(found, name).restype = None
    return found
