"""The shared BERT with its heads, and what one does with it: train, evaluate, predict, export."""

import os

# For keras-bert, which works with Keras 2 only: TensorFlow reads this when it is imported. Our own code uses Keras 2 by
# its own name, tf_keras, whatever TensorFlow was started with.
os.environ.setdefault("TF_USE_LEGACY_KERAS", "1")
