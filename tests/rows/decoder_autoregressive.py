"""Plain decoding."""

import workbench as wb
from tests.table import Row

ROWS = {"": Row(lambda draft: wb.Autoregressive(), "exact", "seeded")}
