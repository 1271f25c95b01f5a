"""The options of the preprocessing job, as a frozen dataclass that is valid once it exists."""

import dataclasses
import math
from typing import Any, Literal

from pipeline.corpus.options import CorpusOptions, require_split_name
from pipeline.dataset.shards import COMPRESSIONS, MAX_MAX_LEN, MAX_SHARDS
from pipeline.errors import require, require_choice
from pipeline.tokenization.vocabulary import MIN_MAX_LEN

SECOND_LABELS = ("taxonomy", "random", "column")
DUPLICATE_POLICIES = ("keep", "drop")


@dataclasses.dataclass(frozen=True, kw_only=True)
class PreprocessConfig:
    """The options of `run_preprocess.py`; see its `--help` for their meaning.

    Attributes:
        corpus: where documents lie, and what their files are.
        cased: keep letter case and accents; `None` follows the tokenizer configuration beside the vocabulary.
        split_weights: (name, share) pairs whose shares sum to 1; they hold for inputs without a split of their own.
        num_shards: per split; `None` derives it from the number of documents.
    """

    corpus: CorpusOptions
    vocab_path: str
    output_dir: str
    category_names_path: str | None = None
    cased: bool | None = None
    max_len: int = 512
    split_weights: tuple[tuple[str, float], ...] = (("train", 0.8), ("dev", 0.1), ("test", 0.1))
    seed: int = 0
    second_label: Literal["taxonomy", "random", "column"] = "taxonomy"
    taxonomy_path: str | None = None
    num_random_labels: int = 3
    num_shards: int | None = None
    compression: Literal["none", "gzip"] = "none"
    duplicates: Literal["keep", "drop"] = "keep"
    max_rejected_fraction: float = 0.01
    overwrite: bool = False

    def __post_init__(self) -> None:
        require(bool(self.output_dir), "--output: expected a directory, got an empty name")
        require_choice("second_label", self.second_label, SECOND_LABELS)
        require_choice("compression", self.compression, COMPRESSIONS)
        require_choice("duplicates", self.duplicates, DUPLICATE_POLICIES)
        require(
            MIN_MAX_LEN <= self.max_len <= MAX_MAX_LEN,
            f"--max_len: expected {MIN_MAX_LEN} to {MAX_MAX_LEN}, got {self.max_len}",
        )
        require(0 <= self.seed < 2**63, f"--seed: expected 0 to 2**63 - 1, got {self.seed}")
        require(
            self.num_shards is None or 1 <= self.num_shards <= MAX_SHARDS,
            f"--num_shards: expected auto or 1 to {MAX_SHARDS}, got {self.num_shards}",
        )
        require(self.num_random_labels >= 2, f"--num_random_labels: expected at least 2, got {self.num_random_labels}")
        require(
            0.0 <= self.max_rejected_fraction <= 1.0,
            f"--max_rejected_fraction: expected 0 to 1, got {self.max_rejected_fraction}",
        )
        self._check_split_weights()
        corpus = self.corpus
        require(
            "category" in corpus.columns.fields,
            f"--columns: expected text, category (and second) once each, got {str(corpus.columns)!r}",
        )
        require("category" in corpus.levels, "--levels: a corpus to learn from needs the level category")
        require(
            self.second_label != "column" or "second" in (*corpus.columns.fields, *corpus.levels),
            f"--second_label column: --columns, or --levels of a tree, must name 'second', got {str(corpus.columns)!r}",
        )

    def _check_split_weights(self) -> None:
        text = ",".join(f"{name}={share:g}" for name, share in self.split_weights)
        names = [name for name, _ in self.split_weights]
        for name, share in self.split_weights:
            require_split_name("split_weights", name)
            require(0.0 <= share <= 1.0, f"--split_weights: expected shares from 0 to 1, got {name}={share:g}")
        require(len(set(names)) == len(names), f"--split_weights: a split is named twice in {text!r}")
        total = math.fsum(share for _, share in self.split_weights)
        require(abs(total - 1.0) < 1e-9, f"--split_weights: expected shares that sum to 1, got {total:g} ({text})")
        require(
            self.is_default("split_weights") or any(spec.split is None for spec in self.corpus.inputs),
            "--split_weights: only used for inputs without a split of their own, and every --input has one",
        )

    def is_default(self, name: str) -> bool:
        """Tell whether an option has its default value."""
        return bool(getattr(self, name) == getattr(PreprocessConfig, name))

    def describe_content(self) -> dict[str, Any]:
        """Return the options that shape a dataset's content and are said nowhere else in `dataset.json`.

        Where the documents lie and in what kind of container is left out: the same documents give the same dataset.
        """
        return {
            "split_weights": [list(pair) for pair in self.split_weights],
            "second_label": self.second_label,
            "num_random_labels": self.num_random_labels,
            "num_shards": self.num_shards,
            "duplicates": self.duplicates,
        }
