"""Ctrl-C while libraries are imported."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def preparing() -> Iterator[None]:
    """While open, Ctrl-C ends it with KeyboardInterrupt, even where a library under import swallows that or fails."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came = []

    def note(*seen) -> None:
        came.append(seen)
        if callable(before):
            before(*seen)

    before = signal.signal(signal.SIGINT, note)
    try:
        yield
    except Exception:
        if not came:
            raise
    finally:
        signal.signal(signal.SIGINT, before or signal.SIG_DFL)
    if came and callable(before):
        raise KeyboardInterrupt
