"""Comparisons of decoders on the same prompts, in one process."""

from workbench.experiments.compare import compare

__all__ = ["compare"]
