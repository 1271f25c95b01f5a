"""The shared BERT with its heads, and what one does with it: train, evaluate, predict, export."""

import os

# keras-bert works with Keras 2 only; this must be set before the first TensorFlow import of the process.
os.environ.setdefault("TF_USE_LEGACY_KERAS", "1")
