"""What cannot go together, and why: what a shape or verifier `needs` against what another `gives`, before any work."""

from itertools import product

from workbench import declare
from workbench.declare import Declared

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


def refusals() -> list[tuple[str, str, str]]:
    """(drafter, shape, reason) of every pair of registered members that is refused with default settings, then
    (verifier, drafter or shape, reason) of what a verifier refuses though these two go together."""
    drafters, shapes, verifiers = (
        [declare.get(family, name)() for name in declare.names(family)] for family in ("drafter", "shape", "verifier")
    )
    found, possible = [], []
    for drafter, shape in product(drafters, shapes):
        if reason := _asked(drafter, shape):
            found.append((drafter.declared_name, shape.declared_name, reason))
        else:
            possible.append((drafter, shape))
    for verifier in verifiers:
        reasons: dict[str, Declared] = {}
        for drafter, shape in possible:
            if reason := _asked(verifier, drafter, shape):
                reasons.setdefault(reason, drafter if repr(drafter.declared_name) in reason else shape)
        found += [(verifier.declared_name, other.declared_name, reason) for reason, other in reasons.items()]
    return found


def _asked(member, *others) -> str | None:
    """Why a member refuses others; one of another package that fails is told of, and hides nothing else."""
    try:
        return member.refuses(*others)
    except Exception as error:
        names = " and ".join(repr(other.declared_name) for other in others)
        return f"{member.declared_name!r} failed when asked about {names}: {type(error).__name__}: {error}"
