"""Seeded, and by rejection."""

import workbench as wb
from tests.table import Row

ROWS = {
    "": Row(lambda draft: wb.Pearl(draft, length=3), "exact", "seeded"),
    "rejection": Row(lambda draft: wb.Pearl(draft, 3, wb.Rejection()), "exact", "distribution"),
}
