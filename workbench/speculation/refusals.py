"""What cannot go together, and why: asked of every registered member, with its default settings."""

from workbench import declare

__all__ = ["refusals"]


def refusals() -> list[tuple[str, str, str]]:
    """(drafter, shape, reason) of every pair that is refused, then (verifier, drafter or shape, reason) of what a
    verifier refuses though these two go together."""
    drafters, shapes, verifiers = (
        [declare.get(family, name)() for name in declare.names(family)] for family in ("drafter", "shape", "verifier")
    )
    found, possible = [], []
    for drafter in drafters:
        for shape in shapes:
            reason = _asked(drafter, shape)
            if reason:
                found.append((drafter.declared_name, shape.declared_name, reason))
            else:
                possible.append((drafter, shape))
    for verifier in verifiers:
        told = set()
        for drafter, shape in possible:
            reason = _asked(verifier, drafter, shape)
            if reason and reason not in told:
                told.add(reason)
                other = drafter if repr(drafter.declared_name) in reason else shape
                found.append((verifier.declared_name, other.declared_name, reason))
    return found


def _asked(member, *others) -> str | None:
    """Why a member refuses others; one of another package that fails is told of, and hides nothing else."""
    try:
        return member.refuses(*others)
    except Exception as error:
        names = " and ".join(repr(other.declared_name) for other in others)
        return f"{member.declared_name!r} failed when asked about {names}: {type(error).__name__}: {error}"
