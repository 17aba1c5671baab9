"""Views: pure functions from a trace to a Plotly figure, shared by the app, the notebooks and capsules.

Every view takes `theme` ("light", "dark", or None for either page); `description(figure)` says in a sentence what a
figure shows and `as_table(figure)` gives its data.
"""

from workbench.views.acceptance import acceptance, acceptance_length, divergence
from workbench.views.bits import bit_map
from workbench.views.branch import BranchDiff, branch_diff
from workbench.views.break_even import BreakEven, break_even, break_even_numbers
from workbench.views.cache import cache_footprint, ledger_over_time
from workbench.views.cache_map import cache_map
from workbench.views.figure import as_table, description
from workbench.views.forwards import forwards_timeline
from workbench.views.headroom import headroom
from workbench.views.signals import entropy, signals
from workbench.views.tree import draft_tree

__all__ = [
    "BranchDiff", "BreakEven", "acceptance", "acceptance_length", "as_table", "bit_map", "branch_diff", "break_even",
    "break_even_numbers", "cache_footprint", "cache_map", "description", "divergence", "draft_tree", "entropy",
    "forwards_timeline", "headroom", "ledger_over_time", "signals",
]  # fmt: skip
