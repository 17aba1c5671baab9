"""How far the loading of a model is, in bytes, and a way to stop it.

Two libraries draw bars: `huggingface_hub` over the bytes of a download, transformers over the tensors it reads. Bars of
our own take their place and tell `progress(step, done, total)`; what that raises ends the loading.
"""

import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

Progress = Callable[[str, int, int], None]
"""Told the step ("fetching" or "loading"), and the bytes done and in all."""


def download_bar(progress: Progress, before: int = 0, total: int = 0) -> type:
    """A class of bars, which are not drawn, for the download of one file.

    before: bytes of the files that were fetched already. total: of all files, where that is known.
    """
    from tqdm.auto import tqdm

    furthest = 0  # a file may have two bars, over the same bytes received and written

    class Bar(tqdm):
        def __init__(self, *args: Any, **options: Any):
            self.name = options.pop("name", "")
            super().__init__(*args, **{**options, "disable": True})
            self.n = options.get("initial", 0)

        def update(self, n: float | None = 1) -> None:
            nonlocal furthest
            self.n += n or 0
            furthest = max(furthest, int(self.n))
            progress("fetching", before + furthest, max(total, before + max(int(self.total or 0), furthest)))

    return Bar


@contextmanager
def reading(total: int, progress: Progress | None) -> Iterator[None]:
    """While open, tensors that transformers reads in this thread count, all alike, towards `total` bytes."""
    if progress is None:
        yield
        return
    from transformers.utils import logging

    mine = threading.get_ident()

    def bar(factory: Callable[..., Any], args: tuple, options: dict[str, Any]) -> Any:
        if threading.get_ident() == mine and options.get("desc") == "Loading weights":
            return _counted(args[0], total, progress)
        return factory(*args, **options)

    progress("loading", 0, total)
    before = logging.set_tqdm_hook(bar)
    try:
        yield
    finally:
        logging.set_tqdm_hook(before)


def _counted(items: Iterable[Any], total: int, progress: Progress) -> Iterator[Any]:
    items = list(items)
    for number, item in enumerate(items, start=1):
        yield item
        progress("loading", total * number // len(items), total)
