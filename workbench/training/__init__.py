"""Training of the embedded models, and of the small parts that drafters, shapes and verifiers need, for any target.

    python -m workbench.training medusa --target embedded --out DIR [--minutes 8]

A part is a row of `parts.PARTS`, a model a row of `target.STAGES`; text comes from `data` and `corpus`, and one loop,
in `fit`, trains them all.
"""
