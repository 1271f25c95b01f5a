"""What a run measures and shows: metrics, confusion, figures, one HTML page.

Imports of `model` only `run` and what is below it.
"""
