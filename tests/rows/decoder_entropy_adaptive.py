"""The small model writes most of it."""

import workbench as wb
from tests.table import Row

ROWS = {"": Row(lambda draft: wb.EntropyAdaptive(small=draft, threshold=1.5, dwell=2), "lossy", "lossy")}
