"""The decoding workbench: adaptive decoding of language models, token by token.

    import workbench as wb
    lm = wb.load("embedded")
    trace = wb.decode(lm, "def fibonacci(n):", wb.Speculative(drafter=wb.DraftModel("embedded-draft")))

Names are imported when first used, so that `import workbench` and reading traces stay quick.
"""

from workbench import aliases
from workbench.members import EXPORTS, room

__version__ = "0.2.0"
__all__ = ["__version__", *EXPORTS]
__getattr__ = room(__name__)

aliases.install()


def __dir__() -> list[str]:
    return sorted(__all__)
