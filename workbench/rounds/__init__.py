"""What a decoder works with: the state of a run, the round it is in, and what that costs."""

from workbench.members import room

__getattr__ = room(__name__)
