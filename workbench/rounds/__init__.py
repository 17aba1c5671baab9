"""What a decoder works with: the state of a run, the round it is in, and what that costs."""

from workbench.rounds.round import Round
from workbench.rounds.state import Runner, State

__all__ = ["Round", "Runner", "State"]
