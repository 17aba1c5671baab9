"""It has a distribution of its own."""

import workbench as wb
from tests.table import Row

ROWS = {"": Row(lambda draft: wb.Mirostat(), "own", "own", temperature=1.0)}
