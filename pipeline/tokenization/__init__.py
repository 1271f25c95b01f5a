"""Text → BERT ids, exactly as `keras_bert.Tokenizer`, with NumPy alone.

Imports neither TensorFlow nor Beam nor keras-bert, and of `pipeline` only its base modules.
"""

from pipeline.tokenization.tokenizer import TokenBatch, Tokenizer
from pipeline.tokenization.vocabulary import load_vocab

__all__ = ["TokenBatch", "Tokenizer", "load_vocab"]
