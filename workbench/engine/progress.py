"""How far the loading of a model is, in bytes, and a way to stop it.

Both libraries draw bars: `huggingface_hub` over the bytes of a download, transformers over the tensors it reads. Here
bars of our own take their place and tell `progress(done, total)`; what that raises ends the loading.
"""

import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from workbench.errors import WorkbenchError

__all__ = ["Cancelled", "Progress", "download", "reading"]

Progress = Callable[[int, int], None]
FILES = ("*.safetensors", "*.json", "*.model", "*.txt", "*.jinja")  # weights and tokenizer; never pickles
CODE = ("*.py",)


class Cancelled(WorkbenchError):
    """The loading of a model was stopped on request."""


def download(name: str, revision: str | None, progress: Progress, code: bool = False) -> str:
    """The folder of a hub model's files, fetched where they are not here yet. Raises what the hub's library raises.

    code: the model's own Python files as well (`trust_remote_code`).
    """
    from huggingface_hub import snapshot_download
    from tqdm.auto import tqdm

    furthest = 0

    class Bytes(tqdm):
        """A bar that is not drawn. Several count the same bytes (received, written): the furthest is told."""

        def __init__(self, *args: Any, **options: Any):
            self.counts = options.get("unit") == "B"
            super().__init__(*args, **{**options, "disable": True})

        def update(self, n: float | None = 1) -> None:
            nonlocal furthest
            self.n += n or 0
            if self.counts:
                furthest = max(furthest, int(self.n))
                progress(furthest, max(int(self.total or 0), furthest))

    wanted = [*FILES, *(CODE if code else ())]
    return snapshot_download(name, revision=revision, allow_patterns=wanted, tqdm_class=Bytes)


@contextmanager
def reading(folder: str | Path, progress: Progress | None) -> Iterator[None]:
    """While open, tensors that transformers reads in this thread count towards the bytes of the folder's weights."""
    if progress is None:
        yield
        return
    from transformers.utils import logging

    total = sum(file.stat().st_size for file in Path(folder).glob("*.safetensors"))
    mine = threading.get_ident()

    def bar(factory: Callable[..., Any], args: tuple, options: dict[str, Any]) -> Any:
        if threading.get_ident() != mine or options.get("desc") != "Loading weights":
            return before(factory, args, options) if before is not None else factory(*args, **options)
        return _counted(args[0], total, progress)

    before = logging.set_tqdm_hook(bar)
    try:
        progress(0, total)
        yield
    finally:
        logging.set_tqdm_hook(before)


def _counted(items: Iterable[Any], total: int, progress: Progress) -> Iterator[Any]:
    items = list(items)
    for number, item in enumerate(items, start=1):
        yield item
        progress(total * number // len(items), total)
