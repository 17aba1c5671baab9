"""How a cache's acts are told in a trace: positions as runs, tiers, one event for what is alike in heads or layers."""

from typing import Any

import numpy as np
import torch

from workbench.cache.pages import PageTable


def tier_events(layer: int, old: PageTable | None, new: PageTable | None) -> list[dict[str, Any]]:
    """An `offload` or `fetch` event per KV head and tier that positions moved to; bytes: a share of their pages."""
    events: list[dict[str, Any]] = []
    if new is None or not (new.offloaded or (old is not None and old.offloaded)):
        return events
    for head in range(len(new.pages)):
        was, now = ({} if page_table is None else homes_of(page_table, head) for page_table in (old, new))
        below = next((arena.tier for arena in new.arenas if arena.host), "host")
        for op, tier, host in (("offload", below, True), ("fetch", "device", False)):
            moved = sorted(at for at, (home, _) in now.items() if home == host and was.get(at, (False, 0))[0] != host)
            if moved:
                size = sum(now[at][1] for at in moved) // new.page_size
                events.append({"layer": layer, "head": head, "op": op, "destination": tier,
                               "positions": runs_of(torch.tensor(moved)), "bytes": size})  # fmt: skip
    return events


def homes_of(page_table: PageTable, head: int) -> dict[int, tuple[bool, int]]:
    """Of a head's positions: whether each lies on the host, and the bytes of its page."""
    where, live = (part[head].unflatten(0, (-1, page_table.page_size)) for part in page_table.places())
    homes = [(page.arena.host, page.codec.bytes) for page in page_table.pages[head]]
    return {at: home for i, home in enumerate(homes) for at in where[i][live[i]].tolist()}


def runs_of(places: torch.Tensor) -> list[list[int]]:
    """Increasing positions as runs [start, length]."""
    places = places.cpu().numpy()
    starts = np.flatnonzero(np.diff(places, prepend=-2) != 1)
    return np.stack([places[starts], np.diff(starts, append=len(places))], 1).tolist()


def together(events: list[dict[str, Any]], name: str, count: int) -> list[dict[str, Any]]:
    """Where `count` events differ only in `name` (head or layer) and in bytes: one without it, bytes added up."""
    alike: dict[str, list[dict[str, Any]]] = {}
    for event in events:
        key = repr({k: v for k, v in event.items() if k not in (name, "bytes")}) if name in event else repr(event)
        alike.setdefault(key, []).append(event)
    joined = []
    for group in alike.values():
        if name in group[0] and len(group) == count:
            total = sum(event["bytes"] for event in group)
            group = [{k: v for k, v in group[0].items() if k != name} | {"bytes": total}]
        joined += group
    return joined
