"""The shared BERT with its heads, and what one does with it: train, evaluate, predict, export."""

import os

# keras-bert works with Keras 2 only; this must be set before the first TensorFlow import of the process.
os.environ.setdefault("TF_USE_LEGACY_KERAS", "1")
# TensorFlow announces on stderr what every build of it announces; warnings and errors still show.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "1")
