"""The errors a user can cause or meet; each message says what was wrong, what was expected and what to do."""

__all__ = ["BadInput", "BadTrace", "NumericalError", "Unsupported", "WorkbenchError"]


class WorkbenchError(Exception):
    """Base of all errors raised on purpose."""


class BadInput(WorkbenchError, ValueError):
    """A prompt, parameter, name or combination that cannot work; raised before any work starts."""


class Unsupported(WorkbenchError):
    """An architecture, device or checkpoint format the engine cannot serve."""


class BadTrace(WorkbenchError, ValueError):
    """A file that is no trace, is damaged, or follows a newer schema."""


class NumericalError(WorkbenchError, ArithmeticError):
    """NaN or infinite logits; the run ends there and its trace is kept."""
