"""Quantizers: in how many bits a sealed page is stored. One file per quantizer."""

from workbench.members import room

__getattr__ = room(__name__)
