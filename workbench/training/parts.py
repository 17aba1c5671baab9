"""What the registered recipes make, by their names: parts for any target, and stages of the embedded models."""

from workbench import declare
from workbench.training.fit import Part
from workbench.training.stage import Stage

__all__ = ["PARTS", "STAGES"]

_MADE = {name: declare.get("recipe", name)() for name in declare.names("recipe")}
PARTS: dict[str, Part] = {name: made for name, made in _MADE.items() if isinstance(made, Part)}
STAGES: dict[str, Stage] = {name: made for name, made in _MADE.items() if isinstance(made, Stage)}
