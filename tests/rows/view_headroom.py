"""Of the run's own table."""

import workbench as wb
from workbench import views


def draw(trace, theme=None):
    return views.headroom(wb.headroom(trace), theme)
