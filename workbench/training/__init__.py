"""Training of the embedded models, and of the small parts that drafters, shapes and verifiers need, for any target.

    python -m workbench.training medusa --target embedded --out DIR [--minutes 8]

What is trained is a recipe, a line of `workbench/members.py`: of a part, or of a stage of the embedded models. Text
comes from `data` and `corpus`, and one loop, in `fit`, trains them all.
"""
