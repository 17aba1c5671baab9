"""It looks ahead, which tests of whole families see it do."""

import workbench as wb
from tests.table import Row

ROWS = {"": Row(lambda draft: wb.AdaDec(threshold=0.5, lookahead=3), "own", None)}
