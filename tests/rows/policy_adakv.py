"""Budgets that differ by head, over and over, with merging."""

import workbench as wb

SETTINGS = {"method": wb.CaM(budget=44, recent=32, spread=3)}
