"""The self-tests as a process of their own."""

import json
import sys

from workbench_kernels.selftest import check_all

for found in check_all(sys.argv[1]):
    print(json.dumps(found), flush=True)
