"""Several rounds append nothing; what all beams begin with is text at once."""

import workbench as wb
from tests.table import Row

ROWS = {"": Row(lambda draft: wb.Beam(beams=3), "own", None)}
