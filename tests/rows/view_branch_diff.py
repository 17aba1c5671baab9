"""A run beside itself."""

from workbench import views


def draw(trace, theme=None):
    return views.branch_diff(trace, trace, theme)[1]
