"""The stored example, defined once; the encoder and the parser both loop over `EXAMPLE_FEATURES`.

One document `体育/123.txt` with the text `日本队夺冠` becomes, under the BERT-base Chinese vocabulary:

    indices       [101, 3189, 3315, 7339, 1932, 1094, 102]   BERT input_ids, [CLS] … [SEP], cut to max_len, not padded
    segments      [0, 0, 0, 0, 0, 0, 0]                       BERT token_type_ids
    label         2                                           id in the category map
    second_label  1                                           id in the second map
    key           b"体育/123.txt"                              where the document came from
"""

import dataclasses
import hashlib
import json
from typing import Literal

FORMAT_VERSION = 1

INDICES = "indices"
SEGMENTS = "segments"
LABEL = "label"
SECOND_LABEL = "second_label"
KEY = "key"

CATEGORY_HEAD = "category"
SECOND_HEAD = "second"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Feature:
    """One feature of the stored `tf.train.Example`.

    Attributes:
        name: the feature's key in the example.
        dtype: `int64` or `bytes`, the kind of list that holds it.
        shape: `ragged` for one value per token, `scalar` for exactly one value.
        meaning: a short description.
    """

    name: str
    dtype: Literal["int64", "bytes"]
    shape: Literal["ragged", "scalar"]
    meaning: str


EXAMPLE_FEATURES = (
    Feature(name=INDICES, dtype="int64", shape="ragged", meaning="BERT input ids, [CLS] … [SEP], not padded"),
    Feature(name=KEY, dtype="bytes", shape="scalar", meaning="where the document came from, UTF-8"),
    Feature(name=LABEL, dtype="int64", shape="scalar", meaning="category id"),
    Feature(name=SECOND_LABEL, dtype="int64", shape="scalar", meaning="second label's id"),
    Feature(name=SEGMENTS, dtype="int64", shape="ragged", meaning="segment ids, all 0 for one text"),
)

# Which stored feature holds the label of which head, in the order in which the heads are reported.
HEAD_FEATURES = {CATEGORY_HEAD: LABEL, SECOND_HEAD: SECOND_LABEL}


def schema_fingerprint() -> str:
    """Return a SHA-256 over what a reader depends on: format version, names, dtypes and shapes (not the prose)."""
    essence = [FORMAT_VERSION, [[feature.name, feature.dtype, feature.shape] for feature in EXAMPLE_FEATURES]]
    return hashlib.sha256(json.dumps(essence, separators=(",", ":")).encode()).hexdigest()
