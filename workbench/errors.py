"""The errors a user can cause or meet; each message says what was wrong, what was expected and what to do."""

import reprlib
from typing import Any

LONGEST = 200  # characters of a value that a message shows
_BRIEF = reprlib.Repr()
_BRIEF.maxstring = _BRIEF.maxother = _BRIEF.maxlong = LONGEST


def shown(value: Any) -> str:
    """A value as a message shows it: in one line, cut where it is long, whatever its own `repr` does."""
    try:
        text = " ".join(_BRIEF.repr(value).split())
    except Exception:  # integers of thousands of digits, keys with a broken repr
        text = f"a value of type {type(value).__name__}"
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}…"


class WorkbenchError(Exception):
    """Base of all errors raised on purpose. The message is one line, whatever was put into it."""

    def __init__(self, message: object = ""):
        super().__init__(" ".join(str(message).splitlines()))


class BadInput(WorkbenchError, ValueError):
    """A prompt, parameter, name or combination that cannot work, raised before any work starts; or a file that cannot
    be written, in which case nothing was."""


class Unsupported(WorkbenchError):
    """An architecture, device or checkpoint format the engine cannot serve."""


class BadTrace(WorkbenchError, ValueError):
    """A file that is no trace, is damaged, or follows a newer schema."""


class Cancelled(WorkbenchError):
    """The loading of a model was stopped on request."""


class NumericalError(WorkbenchError, ArithmeticError):
    """NaN or infinite logits; the run ends there and its trace is kept."""
