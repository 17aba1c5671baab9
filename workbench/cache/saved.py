"""A committed cache as a safetensors file, as it lies in the store: keys and values of every layer, and the tokens."""

import json
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

import safetensors
import safetensors.torch
import torch

from workbench.cache.splice import columns
from workbench.cache.store import PlainStore
from workbench.errors import BadInput, shown
from workbench.trace.files import write_whole

FORMAT = "decoding-workbench cache 1"
SAME = ("digest", "fingerprint", "dtype", "layers", "kv_heads", "head_dim")  # facts of a model that its cache is for


class Saved(NamedTuple):
    """ids: the tokens; k, v: [Hk, tokens, D] of every layer; facts: of the model."""

    ids: list[int]
    k: list[torch.Tensor]
    v: list[torch.Tensor]
    facts: dict[str, Any]


def save(path: str | PathLike, store: PlainStore, ids: list[int], facts: dict[str, Any]) -> None:
    """Write what a store has committed, all or nothing. ids: its tokens; facts: of its model (`describe`)."""
    parts = {f"{name}.{layer}": x.contiguous().cpu() for name in ("k", "v")
             for layer, x in enumerate(columns(store, name, 0, store.length))}  # fmt: skip
    parts["ids"] = torch.tensor(ids[: store.length])
    told = {"format": FORMAT, "model": json.dumps({name: facts.get(name) for name in SAME})}
    write_whole(path, safetensors.torch.save(parts, told))


def load(path: str | PathLike, facts: dict[str, Any], trial: PlainStore) -> Saved:
    """What a file of `save` holds. Raises BadInput where it is none, or another model's than that of these facts.

    trial: a store of the model with a token in it, which shows what its keys and values are like.
    """
    what = f"cached={shown(str(path))}"
    try:
        with safetensors.safe_open(Path(path), "pt") as file:
            told = file.metadata() or {}
            if told.get("format") != FORMAT:
                raise BadInput(f"{what} is no saved cache; expected a file of Session.save_cache()")
            model = json.loads(told["model"])
            for name in SAME:
                if model[name] != facts.get(name):
                    found, here = shown(model[name]), shown(facts.get(name))
                    raise BadInput(f"{what} is another model's: {name} {found}, here {here}")
            parts = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (no mapping)
        k, v = ([parts[f"{name}.{layer}"] for layer in range(model["layers"])] for name in ("k", "v"))
        ids = parts["ids"].tolist()
        alike = zip((*k, *v), (*columns(trial, "k", 0, 1), *columns(trial, "v", 0, 1)), strict=True)
        sound = parts["ids"].dtype == torch.int64 and all(
            x.ndim == 3 and (x.dtype, x.shape[0], x.shape[2]) == (y.dtype, y.shape[0], y.shape[2])
            and x.shape[1] == len(ids) for x, y in alike
        )  # fmt: skip
    except BadInput:
        raise
    except (OSError, safetensors.SafetensorError, KeyError, TypeError, ValueError, RecursionError) as error:
        reason = getattr(error, "strerror", None) or type(error).__name__
        raise BadInput(f"{what} cannot be read ({reason}); expected a file of Session.save_cache()") from None
    if not sound:
        raise BadInput(f"{what} is damaged: its layers are not those of this model and its tokens; save it anew")
    return Saved(ids, k, v, facts)
