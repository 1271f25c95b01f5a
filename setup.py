"""What Beam's `--setup_file` asks for; the metadata is in pyproject.toml."""

from setuptools import setup

setup()
