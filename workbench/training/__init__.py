"""Training of the small parts that drafters, shapes and verifiers need, for any target: minutes on a CPU.

    python -m workbench.training medusa --target embedded --out DIR [--minutes 8]

A part is a row of `parts.PARTS`. Text comes from `data`, the loop is in `fit`.
"""
