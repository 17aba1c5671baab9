"""Files of a hub id: brought onto this machine before anything else looks at them, or refused at once."""

import json
import socket
import urllib.request
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from workbench.errors import BadInput, Unsupported
from workbench.models.checkpoint import INDEX, WEIGHTS, first_line, mapped
from workbench.models.progress import Progress, download_bar

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
        with socket.create_connection((place.hostname, place.port or 443), PATIENCE):
            return True
    except OSError:
        return False


def folder(name: str, options: dict[str, Any]) -> Path:
    """The folder of a hub id on this machine, with its config. options: those of `from_pretrained`. Raises BadInput
    where there is no such id, or it is not here and the hub cannot be reached."""
    return Path(_file(name, "config.json", options)).parent


def weights(name: str, options: dict[str, Any], progress: Progress | None = None) -> None:
    """Bring the weights of a hub id; `progress` is told of their bytes. Raises Unsupported where it has only pickles,
    or names one."""
    if _file(name, WEIGHTS, options, **_bar(progress), **_MAYBE) is None:
        index = _file(name, INDEX, options, **_MAYBE)
        if index is None:
            raise Unsupported(f"{name!r} has no safetensors weights; pickle checkpoints are not read")
        files, before = mapped(Path(index), name), 0
        metadata = json.loads(Path(index).read_bytes()).get("metadata")
        total = metadata.get("total_size") if isinstance(metadata, dict) else None
        for file in files:
            bar = _bar(progress, before, total if type(total) is int else 0)
            before += Path(_file(name, file, options, **bar)).stat().st_size


def _bar(progress: Progress | None, *sizes: int) -> dict[str, Any]:
    return {} if progress is None else {"tqdm_class": download_bar(progress, *sizes)}


def _file(name: str, file: str, options: dict[str, Any], **more: Any) -> str | None:
    from transformers.utils import cached_file

    local = options.get("local_files_only", False)
    try:
        return cached_file(name, file, revision=options["revision"], local_files_only=local, **more)
    except OSError as error:
        why = "the hub cannot be reached" if local else first_line(error)
        raise BadInput(
            f"cannot find model {name!r}: expected 'embedded', 'embedded-draft', a local directory or a reachable"
            f" hub id ({why})"
        ) from error
