"""Files of a hub id: brought onto this machine before anything else looks at them, or refused at once."""

import json
import socket
import urllib.request
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from workbench.engine.checkpoint import INDEX, WEIGHTS, first_line, mapped
from workbench.engine.progress import Progress, download_bar
from workbench.errors import BadInput, Unsupported

__all__ = ["fetch", "reachable"]

PATIENCE = 3.0  # seconds
_MAYBE = {"_raise_exceptions_for_missing_entries": False, "_raise_exceptions_for_connection_errors": False}


def reachable() -> bool:
    """Whether the hub answers; asked since libraries go on trying for half a minute. Behind a proxy nobody knows."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return False
    if urllib.request.getproxies():
        return True
    place = urlsplit(constants.ENDPOINT)
    try:
        socket.create_connection((place.hostname, place.port or 443), PATIENCE).close()
    except OSError:
        return False
    return True


def fetch(name: str, revision: str | None, options: dict[str, Any], progress: Progress | None = None) -> Path:
    """The folder of a hub id on this machine, with its config and weights. Sets `local_files_only` in the options where
    the hub does not answer. `progress` is told of the weights' bytes.

    Raises BadInput where there is no such id or the hub cannot be reached; Unsupported where it has only pickles.
    """
    from transformers.utils import cached_file

    where = {"revision": revision}
    if not reachable():
        options["local_files_only"] = where["local_files_only"] = True
    try:
        config = Path(cached_file(name, "config.json", **where))
        if cached_file(name, WEIGHTS, **_bar(progress), **_MAYBE, **where) is None:
            index = cached_file(name, INDEX, **_MAYBE, **where)
            if index is None:
                raise Unsupported(f"{name!r} has no safetensors weights; pickle checkpoints are not read")
            before, total = 0, _total(Path(index))
            for file in mapped(Path(index), name):
                before += Path(cached_file(name, file, **_bar(progress, before, total), **where)).stat().st_size
    except OSError as error:
        why = "the hub cannot be reached" if "local_files_only" in where else first_line(error)
        raise BadInput(
            f"cannot find model {name!r}: expected 'embedded', 'embedded-draft', a local directory or a reachable"
            f" hub id ({why})"
        ) from error
    return config.parent


def _bar(progress: Progress | None, *sizes: int) -> dict[str, Any]:
    return {} if progress is None else {"tqdm_class": download_bar(progress, *sizes)}


def _total(index: Path) -> int:
    """The bytes of all weights, as far as an index tells."""
    total = json.loads(index.read_bytes()).get("metadata", {}).get("total_size")
    return total if type(total) is int else 0
