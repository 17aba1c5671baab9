"""Ctrl-C while libraries are imported, and while something is done whole."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def _noted(acts: Callable[[int], bool]) -> Iterator[list]:
    """While open, every Ctrl-C is noted; it has its effect at once where `acts` says so of their number."""
    came: list[tuple] = []
    if threading.current_thread() is not threading.main_thread():
        yield came
        return

    def note(*seen) -> None:
        if callable(before):  # else it is ignored
            came.append(seen)
            if acts(len(came)):
                before(*seen)

    before = signal.signal(signal.SIGINT, note)
    try:
        yield came
    finally:
        signal.signal(signal.SIGINT, before or signal.SIG_DFL)


@contextmanager
def preparing() -> Iterator[None]:
    """While open, Ctrl-C ends it with KeyboardInterrupt, even where a library under import swallows that or fails."""
    with _noted(lambda count: True) as came:
        try:
            yield
        except Exception:
            if not came:
                raise
    if came:
        raise KeyboardInterrupt


@contextmanager
def undisturbed() -> Iterator[None]:
    """While open, a first Ctrl-C waits for the end: what was shown and what counts as shown stay the same."""
    came: list = []
    try:
        with _noted(lambda count: count > 1) as came:
            yield
    finally:
        if len(came) == 1:
            signal.raise_signal(signal.SIGINT)
