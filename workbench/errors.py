"""The errors a user can cause or meet; each message says what was wrong, what was expected and what to do."""

import reprlib

__all__ = ["BadInput", "BadTrace", "NumericalError", "Unsupported", "WorkbenchError", "shown"]


class WorkbenchError(Exception):
    """Base of all errors raised on purpose."""


class BadInput(WorkbenchError, ValueError):
    """A prompt, parameter, name or combination that cannot work, raised before any work starts; or a file that cannot
    be written, in which case nothing was."""


class Unsupported(WorkbenchError):
    """An architecture, device or checkpoint format the engine cannot serve."""


class BadTrace(WorkbenchError, ValueError):
    """A file that is no trace, is damaged, or follows a newer schema."""


class NumericalError(WorkbenchError, ArithmeticError):
    """NaN or infinite logits; the run ends there and its trace is kept."""


def shown(value: object) -> str:
    """A value as an error names it: in one line, and not endless."""
    try:
        return " ".join(reprlib.repr(value).split())
    except ValueError:  # an integer of thousands of digits
        return f"a very large {type(value).__name__}"
