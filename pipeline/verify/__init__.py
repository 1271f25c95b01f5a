"""A dataset read back and checked: `python -m pipeline.verify DIR`.

Imports neither TensorFlow nor Beam.
"""
