"""Draft-then-verify decoding as a choice of three: a drafter, a draft shape and a verifier over one tree type."""

from workbench.members import room
from workbench.speculation.refusals import refusals as refusals

__getattr__ = room(__name__)
