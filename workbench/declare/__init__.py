"""Declarations: a method is a validated dataclass, and its fields are written down once.

A field made with `setting(...)` carries its bounds and its help text. From it come the Python signature, the error
message, the CLI option (`--set shape.length=4`), the dashboard control and the reference page. A family ("decoder",
"drafter", …) is a registry of such classes; packages outside add members through the entry-point group
`decoding_workbench` (name = "family.name", value = the class).

    @register("shape", "fixed")
    @dataclass(frozen=True)
    class FixedLength(Declared):
        length: int = setting(4, ge=1, le=64, help="tokens drafted each round")
"""

from workbench.declare.fields import Declared, Field, describe, setting
from workbench.declare.forms import build, flatten, from_dict, to_dict
from workbench.declare.plugins import broken
from workbench.declare.registry import FAMILIES, get, names, register
from workbench.declare.trust import models, owner_only

__all__ = [
    "FAMILIES", "Declared", "Field", "broken", "build", "describe", "flatten", "from_dict", "get", "models", "names",
    "owner_only", "register", "setting", "to_dict",
]  # fmt: skip
