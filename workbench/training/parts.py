"""What the registered recipes make, by their names: parts for any target, and stages of the embedded models."""

import warnings

from workbench import declare
from workbench.training.fit import Part
from workbench.training.stage import Stage


def _made() -> dict[str, Part | Stage]:
    """All that can be made; one that cannot, of a package, is named and hides nothing else."""
    found = {}
    for name in declare.names("recipe"):
        try:
            made = declare.get("recipe", name)()
            if not isinstance(made, Part | Stage):
                raise TypeError(f"it gives a {type(made).__name__}; expected a Part or a Stage")
        except Exception as error:
            warnings.warn(f"the recipe {name!r} is left out: {error}", stacklevel=3)
        else:
            found[name] = made
    return found


_MADE = _made()
PARTS: dict[str, Part] = {name: made for name, made in _MADE.items() if isinstance(made, Part)}
STAGES: dict[str, Stage] = {name: made for name, made in _MADE.items() if isinstance(made, Stage)}
