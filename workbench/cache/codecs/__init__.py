"""Quantizers: in how many bits a sealed page is stored. One file per quantizer."""

from workbench.cache.codecs.base import Quantizer
from workbench.cache.codecs.kivi import KIVI
from workbench.cache.codecs.paged import Paged

__all__ = ["KIVI", "Paged", "Quantizer"]
