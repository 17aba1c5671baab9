"""What shapes and verifiers ask of the others (`needs`) against what these offer (`gives`), before any work."""

from workbench.declare import Declared

__all__ = ["unmet"]

# by family of the giver; the first that is lacking is the reason
SAYS = {
    "drafter": {
        "confidence": "reads the drafter's confidence, and {} has none",
        "rows": "reads the drafter's distributions, and {} has none",
        "features": "reads a draft's hidden states, and {} gives none",
        "exits": "chooses exit layers, and {} has none",
        "branches": "branches, and {} drafts one chain",
    },
    "shape": {"independent": "needs independent chains; shape {} does not draw them"},
}


def unmet(member: Declared, giver: Declared) -> str | None:
    """Why a member cannot work with another: the first thing that it needs and that one does not give; or None."""
    for word, says in SAYS[giver.family].items():
        if word in member.needs and word not in giver.gives:
            return f"{member.family} {member.declared_name!r} " + says.format(repr(giver.declared_name))
    return None
