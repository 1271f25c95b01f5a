"""The shared BERT: encoder, layers, kernels, its configuration and Google-format checkpoints.

Imports of `model` only `files` and `config`.
"""
