"""Engines as processes of this machine, for `benchmarks.engines` and for the tests of engines."""
