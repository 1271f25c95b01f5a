"""A made-up corpus in THUCNews's shape: `python -m pipeline.sample_corpus`. Imports only base modules of `pipeline`."""
