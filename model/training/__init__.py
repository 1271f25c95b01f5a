"""The training loop and its parts: steps, optimizer, strategy, state. Imports `model.report` and what is below it."""
