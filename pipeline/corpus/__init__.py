"""Where documents come from: a tree, an archive or a table becomes chunks, a chunk becomes documents.

Imports neither TensorFlow nor Beam, and of `pipeline` only `dataset` and the base modules.
"""

from pipeline.corpus.documents import RawDocument, Rejection, normalize_text

__all__ = ["RawDocument", "Rejection", "normalize_text"]
