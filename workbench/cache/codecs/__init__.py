"""Quantizers: in how many bits a page is stored. One file per quantizer."""

from workbench.members import room

__getattr__ = room(__name__)
