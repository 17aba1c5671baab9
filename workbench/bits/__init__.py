"""Quantizers: in how many bits a sealed page is stored. One file per quantizer."""

from workbench.bits.base import Quantizer
from workbench.bits.kivi import KIVI
from workbench.bits.paged import Paged

__all__ = ["KIVI", "Paged", "Quantizer"]
