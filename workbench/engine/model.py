"""`LanguageModel`: what a decoder may ask of any model, and what a forward pass gives back."""

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import torch

from workbench.cache.protocol import CacheStore
from workbench.cache.store import PlainStore
from workbench.errors import BadInput, Unsupported

T = TypeVar("T")
READ = {"hidden": "hidden states", "states": "the states between layers", "mass": "attention"}


@dataclass(slots=True)
class ForwardRequest:
    """One forward pass of R rows.

    tokens: ids, or hidden states [R, width] instead of embedded ids. positions: the number of tokens before each row.
    cache: stages the rows' keys and values. mask: the visibility among staged rows that `CacheStore.begin` takes.
    layers: those decoder layers only, in that order (early exit, layer skipping); the others stage nothing, so such
    rows may be attended to by later forwards over the same layers, but are committed only once the others have staged
    them as well. Hidden states for layers that do not begin with 0 are what the layer before them gave on (the output's
    `exit`): layers 0..l-1, then l.. over their exit states at the same positions, is one ordinary forward.
    logits_at: rows that logits are wanted of: "all", "last" or numbers. want: what else: "hidden", "exit", and a number
    l for what the first l layers give on, where layer l − 1 runs.
    """

    tokens: Sequence[int] | torch.Tensor
    positions: Sequence[int]
    cache: CacheStore
    mask: torch.Tensor | None = None
    layers: Sequence[int] | None = None
    logits_at: str | Sequence[int] = "all"
    want: Sequence[str | int] = ()

    def __post_init__(self) -> None:
        if len(self.tokens) != len(self.positions):
            raise BadInput(f"forward: got {len(self.tokens)} tokens and {len(self.positions)} positions")

    @property
    def embedded(self) -> bool:
        """Whether the tokens are hidden states."""
        return isinstance(self.tokens, torch.Tensor) and self.tokens.is_floating_point()

    @property
    def ids(self) -> Sequence[int] | torch.Tensor | None:
        """The tokens; None for hidden states."""
        return None if self.embedded else self.tokens

    @property
    def kind(self) -> tuple:
        """What requests must have in common to be one forward."""
        layers = None if self.layers is None else tuple(self.layers)
        return self.embedded, layers, frozenset(self.want)

    @property
    def asked(self) -> Sequence[int]:
        """The rows that logits are wanted of, as numbers from 0. Raises IndexError for a row that is not there."""
        rows = range(len(self.positions))
        if isinstance(self.logits_at, str):
            return {"all": rows, "last": rows[-1:]}[self.logits_at]
        return [rows[row] for row in self.logits_at]

    def ask(self, model: "LanguageModel") -> "Output":
        """This forward alone."""
        return model.forward(self.tokens, self.positions, self.cache, self.mask, self.layers, self.logits_at, self.want)

    def chosen(self, rows: torch.Tensor) -> torch.Tensor:
        """Those of the rows [R, ...] that `logits_at` names."""
        if isinstance(self.logits_at, str):
            return rows if self.logits_at == "all" else rows[-1:]
        return rows[list(self.logits_at)]


@dataclass(slots=True)
class Output:
    """logits: [rows asked for, V], the caller's to keep; where wanted, hidden: [R, width] final hidden states, behind
    the final norm; exit: [R, width] the residual stream behind the last layer that ran, before the norm; states: l ->
    the same behind the first l layers, for the numbers wanted. number, sequences, wall_ms: of a forward that tasks run
    side by side asked for: its own number, how many sequences share it (None for one), its time."""

    logits: torch.Tensor
    hidden: torch.Tensor | None = None
    exit: torch.Tensor | None = None
    states: dict[int, torch.Tensor] | None = None
    number: int | None = None
    sequences: int | None = None
    wall_ms: float | None = None


class LanguageModel(Protocol):
    """A causal language model over one sequence at a time.

    A model of another kind writes `_forward`, or `forward` itself. Where the store has `watched` rows, a model that
    gives "mass" hands what they look at to its `add_mass`.

    gives: what a model has beside logits: "hidden", "exit", "states", "layers" and "mass"; asked for anything else
    it raises BadInput. Other members have plain answers here.
    """

    gives: frozenset[str] = frozenset()
    name: str
    key: tuple
    tokenizer: Any
    vocab_size: int
    context: int
    layers: int
    kv_heads: int
    head_dim: int
    device: torch.device
    dtype: torch.dtype
    eos_ids: frozenset[int]
    parameters: int
    weight_bytes: int
    body: tuple[str, str | None] = ("stock", None)  # what runs a forward on the host, and why nothing faster does

    def _forward(self, request: ForwardRequest) -> Output: ...
    def head(self, hidden: torch.Tensor) -> torch.Tensor: ...  # the one way from final hidden states to logits
    def forward_flops(self, rows: int, context: int) -> int: ...  # multiply-adds counted twice
    def describe(self) -> dict: ...

    @torch.inference_mode()
    def forward(self, *request: Any, **options: Any) -> Output:
        """`forward(tokens, positions, cache, …)`: run the rows of a `ForwardRequest`, whose fields are the arguments;
        they are staged, and the logits asked for returned."""
        return self._forward(ForwardRequest(*request, **options))

    @property
    def bundles(self) -> bool:
        """Whether `forward_many` may be asked."""
        return False

    def forward_many(self, requests: Sequence[ForwardRequest]) -> list[Output]:
        """The outputs of requests of one `kind`, of different sequences, from one forward."""
        raise Unsupported(f"{self.name!r} reads one sequence at a time")

    def new_store(self) -> CacheStore:
        return PlainStore(self.layers)

    def embed(self, tokens: Sequence[int]) -> torch.Tensor:
        raise Unsupported(f"{self.name!r} has no embeddings of tokens")

    @property
    def ids_read(self) -> int:
        """Ids the model can be given."""
        return self.vocab_size

    def kv_bytes(self) -> int:
        """Bytes of one token's keys and values over all layers."""
        return 2 * self.layers * self.kv_heads * self.head_dim * self.dtype.itemsize

    def weights_read(self, rows: int) -> int:
        """Bytes of the weights that a forward of some rows reads."""
        return self.weight_bytes

    def refresh(self) -> None:
        """Look whether what the model wraps was changed since."""

    def check_layers(self) -> None:
        """Raise Unsupported where single layers cannot be run (`forward` with `layers`, "exit" or a number)."""
        raise Unsupported(f"{self.name!r} runs all of its layers or none")

    @property
    def final_norm(self) -> torch.nn.Module:
        """The norm between the last layer and the head. Raises Unsupported where there is none, or more than one."""
        raise Unsupported(f"early exit: {self.name!r} shows no norm between its layers and its head")

    def rotary_frequencies(self) -> torch.Tensor | None:
        """[d] radians per token of the rotary embedding; None where there is none, or it changes with the length."""
        return None


def require(lm: LanguageModel, who: str, needs: Iterable[str | int]) -> None:
    """Raise BadInput where a model does not give what `who` reads of it."""
    for need in needs:
        word = "states" if isinstance(need, int) else need
        if word != "logits" and word not in lm.gives:
            raise BadInput(f"{who} reads {READ.get(word, word)}, which {lm.name!r} does not give")


def kept(lm: LanguageModel, key: tuple, make: Callable[[], T]) -> T:
    """What belongs to a model: made once, kept on the model itself, and gone with it, or where it was changed."""
    parts = vars(lm).setdefault("_parts", {})
    if key not in parts:
        parts[key] = make()
    return parts[key]


def facts(
    model: LanguageModel, architecture: str, shapes: dict[str, tuple], digest: str | None = None
) -> dict[str, Any]:
    """What a trace records of a model: its `describe`. shapes: of its weights, by name, with their dtypes; their
    fingerprint tells architectures and sizes apart. digest: of their numbers."""
    text = "\n".join(f"{name} {shape}" for name, shape in sorted(shapes.items()))
    names = ("layers", "kv_heads", "head_dim", "vocab_size", "context")
    return {
        "name": model.name,
        "architecture": architecture,
        "fingerprint": hashlib.sha256(text.encode()).hexdigest()[:12],
        "digest": digest,
        "dtype": str(model.dtype).removeprefix("torch."),
        **{name: getattr(model, name) for name in names},
        "kv_bits": model.dtype.itemsize * 8,
        "parameters": model.parameters,
        "weight_bytes": model.weight_bytes,
        "row_bytes": model.weights_read(1),
    }
