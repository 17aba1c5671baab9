"""Merges several times in a hundred tokens; random keys are hardly alike."""

import workbench as wb

SETTINGS = {"method": wb.H2O(budget=44, recent=32), "threshold": 0.1}
