"""The fast body compiled: what lies before and behind a layer's attention, in one call each, for forwards of few rows.

`workbench_kernels.native` builds it by the C++ compiler of this machine. It reads copies of the weights that say the
same numbers in fewer bytes: bfloat16 where they are such, as on most disks, or 4 or 8 bits in groups of 32, as in GGUF
files. All else stays float32. Sums run in one order, so a row's numbers do not depend on the rows beside it. Wider
forwards go through torch.
"""

import ctypes
import functools
import os
import threading
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F

from workbench.cache.protocol import CacheStore, Segment
from workbench.engine.attention import join
from workbench.engine.bundle import Bundle
from workbench.errors import Unsupported
from workbench.models import fast
from workbench.models.codes import codes_of
from workbench_kernels import native
from workbench_kernels.dispatch import VARIABLE

BLOCK = 16  # outputs side by side
FEW = 16  # rows, up to which a product reads its weights here
WIDE = 4096  # rows by slots, up to which attention is faster here
SMALL = 2**22  # bytes of weights, up to which a second thread costs more than it saves
ACTIVATIONS: tuple[Callable, ...] = (F.silu, functools.partial(F.gelu, approximate="tanh"), F.relu, F.gelu)


class Matrix(ctypes.Structure):
    _fields_ = [("data", ctypes.c_void_p), ("bias", ctypes.c_void_p), ("outputs", ctypes.c_int64),
                ("inputs", ctypes.c_int64), ("bits", ctypes.c_int64)]  # fmt: skip


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
        if segment.page_table or segment.bias is not None or segment.dress is not None:
            return None
        k, v, mask = segment.k, segment.v, segment.mask
        if {k.dtype, v.dtype} != {torch.float32} or k.stride(2) != 1 or v.stride(2) != 1:
            return None
        if mask is not None and (mask.shape != (rows, k.shape[1]) or not mask.is_contiguous()):
            return None
        place, strides = None if mask is None else mask.data_ptr(), (k.stride(0), v.stride(0), k.stride(1), v.stride(1))
        return cls(k.data_ptr(), v.data_ptr(), place, k.shape[1], *strides, segment.causal)


def compiled() -> ctypes.CDLL:
    """The compiled source. Raises Unsupported where it cannot be had."""
    try:
        found = native.compiled()
    except RuntimeError as error:
        raise Unsupported(str(error)) from error
    if found.layer_bytes() != ctypes.sizeof(Layer) + ctypes.sizeof(Run):
        raise Unsupported("its structures have another size")
    return found


class NativeBody(fast.FastBody):
    """A `FastBody` whose narrow forwards are compiled. Raises Unsupported where nothing can be compiled here, or the
    weights cannot be said in 16 bits or fewer.

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
        return super().parts() if os.environ.get(VARIABLE) in native.FORCED else self._packed[1:]

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
        """Raises Unsupported for weights that take more than 16 bits."""
        weight, (outputs, inputs) = linear.weight, linear.weight.shape
        half = weight.bfloat16()
        if inputs % 2 == 0 and torch.equal(half.float(), weight):
            bits, packed = 16, F.pad(half, (0, 0, 0, -outputs % BLOCK)).view(-1, BLOCK, inputs // 2, 2).transpose(1, 2)
        else:
            bits, packed = _packed(weight)
        packed = packed.contiguous()
        self.tensors.append(packed)
        return Matrix(packed.data_ptr(), self.address(linear.bias), outputs, inputs, bits)

    @torch.no_grad()
    def norm(self, norm: fast.Norm) -> Norm:
        weight = 1 + norm.weight if norm.plus else norm.weight
        return Norm(self.address(weight), self.address(norm.bias), norm.eps, norm.centred)


def _packed(weight: torch.Tensor) -> tuple[int, torch.Tensor]:
    """Bits of a code, and int32 [blocks of outputs, groups, words, outputs of a block]: of every group and output its
    scale, its lowest weight and its codes. Raises Unsupported where these weights are no such numbers."""
    found = codes_of(weight)
    if found is None:
        raise Unsupported("weights that are neither bfloat16 numbers nor 4 or 8 bits in groups of 32")
    bits, codes, scale, low = found
    each = codes.unflatten(-1, (bits, 32 // bits))
    words = sum(each[..., n] << n * bits for n in range(32 // bits))  # the uppermost one into the sign
    whole = torch.cat([scale[..., None].view(torch.int32), low[..., None].view(torch.int32), words], -1)
    whole = F.pad(whole, (0, 0, 0, 0, 0, -len(whole) % BLOCK))
    return bits, whole.unflatten(0, (-1, BLOCK)).movedim(1, 3)


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
        queries = q.transpose(0, 1)[None].split(lengths, 2)
        for one, query, length in zip(stores, queries, lengths, strict=True):
            segments = () if one.watched else one.segments(layer.number, layer.window, query)
            if segments and segments[0].page_table and all(segment.plain for segment in segments):
                segments = [join(query, segments)]
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
