"""An enumerable language model behind the same protocol: small enough to know every probability exactly.

Its distribution depends on the last two tokens through a fixed table. What a row sees it reads back from the cache
store (the "key" of a token is its id, the "value" its position), so staging, masks, commits and forks are put to the
proof too.
"""

import hashlib
from collections.abc import Sequence
from types import SimpleNamespace

import torch

from workbench.engine.model import ForwardRequest, LanguageModel, Output, facts, require
from workbench.errors import Unsupported


class ToyModel(LanguageModel):
    """A table model over `vocab_size` tokens; `seed` chooses the table, `sharpness` how far it is from uniform.

    table: [V, V, V] float64 logits of the next token given the last two (a missing one counts as token 0).
    """

    def __init__(self, vocab_size: int = 4, seed: int = 0, sharpness: float = 1.0, context: int = 64):
        generator = torch.Generator().manual_seed(seed)
        shape = (vocab_size, vocab_size, vocab_size)
        self.table = torch.randn(shape, generator=generator, dtype=torch.float64) * sharpness
        self.name, self.key = f"toy-{seed}", ("toy", vocab_size, seed, sharpness)
        self.vocab_size, self.context, self.layers = vocab_size, context, 1
        self.kv_heads = self.head_dim = 1
        self.tokenizer = _Tokenizer(vocab_size)
        self.model = SimpleNamespace(config=SimpleNamespace(vocab_size=vocab_size))
        self.device, self.dtype = torch.device("cpu"), torch.float64
        self.eos_ids: frozenset[int] = frozenset()
        self.parameters, self.weight_bytes = self.table.numel(), self.table.nbytes

    def _forward(self, request: ForwardRequest) -> Output:
        """It gives nothing but logits."""
        require(self, "this forward", request.want)
        cache, positions = request.cache, list(request.positions)
        ids = torch.as_tensor(request.tokens, dtype=torch.float64).view(1, -1, 1)
        places = torch.as_tensor(positions, dtype=torch.float64).view(1, -1, 1)
        cache.begin(positions, request.mask, None, request.ids)
        cache.stage(0, ids, places)
        (segment,) = cache.segments(0)
        seen, at = segment.k[0, :, 0], segment.v[0, :, 0]
        rows = len(positions)
        visible = segment.mask
        if visible is None:
            visible = torch.ones(rows, len(seen), dtype=torch.bool).tril(len(seen) - rows)
        # the token at a position is the one visible slot that holds it; none counts as token 0
        last = [(visible & (at == places[0] - back)).double() @ seen for back in (0, 1)]
        cache.end()
        return Output(request.chosen(self.table[last[1].long(), last[0].long()]))

    def embed(self, tokens: Sequence[int]) -> torch.Tensor:
        return torch.as_tensor(tokens, dtype=torch.float64)[:, None]

    def head(self, hidden: torch.Tensor) -> torch.Tensor:
        raise Unsupported("a toy model has no hidden states")

    def dist(self, prefix: Sequence[int]) -> torch.Tensor:
        """[V] the exact next-token probabilities after a prefix: the reference for every guarantee."""
        before = [0, 0, *prefix]
        return self.table[before[-2], before[-1]].softmax(-1)

    def forward_flops(self, rows: int, context: int) -> int:
        return rows * context

    def describe(self) -> dict:
        digest = hashlib.sha256(self.table.numpy()).hexdigest()
        return facts(self, "ToyModel", {"table": tuple(self.table.shape)}, digest)


class _Tokenizer:
    """Letters for ids: 0 is "a", 1 is "b", …"""

    chat_template = None

    def __init__(self, size: int):
        self.size = size

    def __len__(self) -> int:
        return self.size

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        return [ord(letter) - 97 for letter in text]

    def decode(self, ids: Sequence[int], **options) -> str:
        return "".join(chr(97 + int(i)) for i in ids)

    def get_vocab(self) -> dict[str, int]:
        return {chr(97 + i): i for i in range(self.size)}
