"""Some heads keep all; the others keep sinks, a window, and one slot that stands for what they dropped."""

from dataclasses import dataclass

import torch

from workbench.cache.plan import CacheMethod, LayerView, Merge, Plan
from workbench.declare import register, setting
from workbench.errors import BadInput


@register("policy", "razor")
@dataclass(frozen=True)
class RazorAttention(CacheMethod):
    """Retrieval heads keep every token. The others keep `sinks`, `window` and one compensation slot.

    That slot holds the mean key and the mean value of all tokens its head dropped, and its scores are raised by the log
    of their number: were their keys equal, attention would be exact. `retrieval` names the KV heads that keep all, as
    layer.head from 0, in a list with spaces: "0.1 3.0".

    Inspired by "RazorAttention: Efficient KV Cache Compression Through Retrieval Heads"
    (https://arxiv.org/abs/2407.15891; no official code; a version of others in
    https://gitee.com/mindspore/golden-stick). Departures: heads are named by hand, not found; acts every `interval`
    tokens.
    """

    retrieval: str = setting("", trust="visitor", help='KV heads that keep all tokens, such as "0.1 3.0"')
    sinks: int = setting(4, ge=0, le=1024, unit="tokens", help="first tokens that are never dropped")
    window: int = setting(252, ge=1, unit="tokens", help="newest tokens that are kept")
    compensate: bool = setting(True, help="one slot stands for what was dropped")
    interval: int = setting(32, ge=1, le=4096, unit="tokens", help="committed tokens between two maintenances")

    ragged = True

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in self.retrieval.split():
            layer, _, head = name.partition(".")
            if not (layer.isdecimal() and head.isdecimal()):
                raise BadInput(f'RazorAttention(retrieval=…): expected layer.head such as "0.1 3.0", got {name!r}')

    @property
    def newest(self) -> int:
        return self.window

    @property
    def budget(self) -> int:
        return self.sinks + self.window + self.compensate

    def plan(self, view: LayerView, budget: int | torch.Tensor) -> Plan | None:
        heads, n = view.live.shape
        names = {tuple(map(int, name.split("."))) for name in self.retrieval.split()}
        whole = torch.tensor([(view.layer, head) in names for head in range(heads)], device=view.live.device)[:, None]
        column = torch.arange(n, device=whole.device)
        dropped = view.live & ~whole & (view.positions >= self.sinks) & (column < n - self.window)
        if not self.compensate:
            return Plan(view.live & ~dropped) if dropped.any() else None
        if (dropped.sum(-1) <= 1).all():
            return None
        first = dropped & (dropped.cumsum(-1) == 1)  # the earliest stands for all of them
        stands_for = view.bias.double().exp().round() * dropped  # tokens
        total = stands_for.sum(-1, keepdim=True).clamp_min(1)
        target = torch.where(dropped, first.long().argmax(-1, keepdim=True), -1)
        source = torch.where(dropped, column, -1)
        used = dropped.any(0)
        weight = (stands_for / total)[:, used]
        bias = torch.where(first, total.log().float(), torch.where(dropped, 0, view.bias))
        return Plan(view.live & (~dropped | first), Merge(source[:, used], target[:, used], weight, weight), bias)
