"""Views: pure functions from a trace to a Plotly figure, shared by the app, the notebooks and capsules."""

from workbench.views.acceptance import acceptance, draft_tree
from workbench.views.bits import bit_map
from workbench.views.cache import cache_footprint
from workbench.views.forwards import forwards_timeline
from workbench.views.signals import entropy, signals

__all__ = ["acceptance", "bit_map", "cache_footprint", "draft_tree", "entropy", "forwards_timeline", "signals"]
