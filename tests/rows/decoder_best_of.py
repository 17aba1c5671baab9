"""Only its last round appends anything; at temperature 0 it has one sample."""

import workbench as wb
from tests.table import Row

ROWS = {
    "": Row(lambda draft: wb.BestOf(n=3), "exact", "own"),
    "scorer": Row(lambda draft: wb.BestOf(n=3, scorer=wb.LogProbability("mean")), "exact", "own"),
}
