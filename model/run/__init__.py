"""What a run leaves on disk: its directory, its weights, and a finished run loaded again.

Imports of `model` only `bert` and what is below it.
"""
