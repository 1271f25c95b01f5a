"""A finished run at work: predictions from texts, and the SavedModel. Imports `model.run`, `model.report` and below."""
