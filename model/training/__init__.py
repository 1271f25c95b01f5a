"""The training loop and its parts: steps, optimizer, strategy, state. Imports all of `model` but the commands."""
