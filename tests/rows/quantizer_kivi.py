"""Every width, pages of 64 with raw keys, and widths of single layers."""

import workbench as wb

ROWS = {
    "8": wb.KIVI(bits=8, residual=0),
    "4": wb.KIVI(bits=4),
    "2": wb.KIVI(bits=2, residual=0),
    "4-64": wb.KIVI(bits=4, page_size=64, residual=0),
    "2-raw": wb.KIVI(bits=2, residual=0, raw_keys=True),
    "-k8v2": wb.KIVI(bits_k=8, bits_v=2, layers={1: 4}, on_device=64),
}
