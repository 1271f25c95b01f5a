"""TFRecords → `tf.data` batches, in an order that is a pure function of (seed, epoch).

The only package of `pipeline` that imports TensorFlow, and only in `reader` and `record_parser`: planning needs none.
Imports no Beam.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipeline.input_pipeline.reader import eval_dataset, train_dataset

__all__ = ["eval_dataset", "train_dataset"]


def __getattr__(name: str) -> Any:
    """Import the reader, and TensorFlow with it, at the first use of one of its functions (PEP 562)."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from pipeline.input_pipeline import reader

    return getattr(reader, name)
