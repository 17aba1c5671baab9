"""Every width, and widths of single layers."""

import workbench as wb

ROWS = {
    "8": wb.KIVI(bits=8, residual=0),
    "4": wb.KIVI(bits=4),
    "2": wb.KIVI(bits=2, residual=0),
    "-k8v2": wb.KIVI(bits_k=8, bits_v=2, layers={1: 4}, on_device=64),
}
