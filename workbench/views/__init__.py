"""Views: pure functions from a trace to a Plotly figure, shared by the app, the notebooks and capsules.

Every view takes `theme` ("light", "dark", or None for either page); `description(figure)` says in a sentence what a
figure shows and `as_table(figure)` gives its data. `workbench/members.py` lists them.
"""

from importlib import import_module

from workbench.members import inside

# at once: several views have the name of their module, which an import of it would put here in their place
globals().update({name: getattr(import_module(module), name) for name, module in inside(__name__).items()})
__all__ = sorted(inside(__name__))
