"""What the command lines say, as frozen dataclasses that are valid once they exist.

Functions take these, never parsed arguments. `describe` gives the plain values that are saved beside what they made.
"""

import codecs
import dataclasses
import math
import os
import re
from typing import Any, Literal

from pipeline.errors import OptionError

STANDARD_SPLITS = ("train", "dev", "test")
INPUT_FORMATS = ("auto", "tree", "zip", "tsv")
TSV_COLUMNS = ("text", "category", "second")
COMPRESSIONS = ("none", "gzip")
SECOND_LABELS = ("taxonomy", "random", "column")
DUPLICATE_POLICIES = ("keep", "drop")

MIN_MAX_LEN = 3  # [CLS], one token, [SEP]
MAX_MAX_LEN = 65_535  # lengths are stored as uint16
MAX_SHARDS = 99_999  # five digits in a shard's name
_SPLIT_NAME = re.compile(r"[A-Za-z0-9_]+")


def require(condition: bool, message: str) -> None:
    """Raise an `OptionError` with this message unless the condition holds."""
    if not condition:
        raise OptionError(message)


def require_choice(option: str, value: str, choices: tuple[str, ...]) -> None:
    """Raise an `OptionError` unless an option's value is one of its choices."""
    require(value in choices, f"--{option}: expected one of {', '.join(choices)}, got {value!r}")


def _require_split_name(option: str, name: str) -> None:
    # Files are named after splits.
    require(
        bool(_SPLIT_NAME.fullmatch(name)) and name != "rejected",
        f"--{option}: {name!r} cannot name a split; use letters, digits and '_', and not 'rejected'",
    )


def _keeps_ascii(encoding: str) -> bool:
    """Tell whether every ASCII byte means itself in an encoding, wherever it stands.

    Raises:
        OptionError: there is no such encoding of text.
    """
    plain = bytes(range(128))
    try:
        # An encoding of escapes decodes the first, and warns about the second.
        return rb"\u0041".decode(encoding) == r"\u0041" and plain.decode(encoding) == plain.decode("ascii")
    except LookupError:
        raise OptionError(f"--tsv_encoding: unknown encoding {encoding!r}; try utf-8 or gb18030") from None
    except UnicodeError:
        return False


def num_cores() -> int:
    """Return how many cores this process may use; all of them where a process cannot be tied to some (macOS)."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def describe(config: Any) -> dict[str, Any]:
    """Return a configuration as JSON values, in the order of its fields."""
    return {
        key: list(value) if isinstance(value, tuple) else value for key, value in dataclasses.asdict(config).items()
    }


@dataclasses.dataclass(frozen=True)
class InputSpec:
    """One `--input`: documents, and the split they are pinned to.

    Attributes:
        path: a tree, an archive, a TSV or a glob pattern, local or remote.
        split: the split all its documents go to; `None` lets their hash decide.
    """

    path: str
    split: str | None = None

    def __post_init__(self) -> None:
        require(bool(self.path), "--input: expected PATH or SPLIT=PATH, got no path")
        if self.split is not None:
            _require_split_name("input", self.split)

    @classmethod
    def parse(cls, text: str) -> "InputSpec":
        """Parse `PATH` or `SPLIT=PATH`."""
        split, equals, path = text.partition("=")
        return cls(path, split) if equals and _SPLIT_NAME.fullmatch(split) else cls(text)


@dataclasses.dataclass(frozen=True, kw_only=True)
class PreprocessConfig:
    """The options of `run_preprocess.py`; see its `--help` for their meaning.

    Attributes:
        cased: keep letter case and accents; `None` does what the tokenizer configuration beside the vocabulary says.
        split_weights: (name, share) pairs whose shares sum to 1; they hold for inputs without a split of their own.
        num_shards: per split; `None` derives it from the number of documents.
    """

    inputs: tuple[InputSpec, ...]
    vocab_path: str
    output_dir: str
    input_format: Literal["auto", "tree", "zip", "tsv"] = "auto"
    tsv_columns: tuple[str, ...] = ("text", "category")
    tsv_header: bool = False
    tsv_encoding: str = "utf-8"
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
        require(bool(self.inputs), "--input: expected at least one, got none")
        require(bool(self.output_dir), "--output: expected a directory, got an empty name")
        require_choice("input_format", self.input_format, INPUT_FORMATS)
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
        self._check_columns()
        self._check_split_weights()
        second = self.second_label
        for name, wanted in (("taxonomy_path", "taxonomy"), ("num_random_labels", "random")):
            require(
                second == wanted or self.is_default(name),
                f"--{name.removesuffix('_path')}: only used with --second_label {wanted}, which is {second!r}",
            )

    def _check_columns(self) -> None:
        columns = ",".join(self.tsv_columns)
        known = [column for column in self.tsv_columns if column in TSV_COLUMNS]
        require(
            sorted(set(known)) == sorted(known) and {"text", "category"} <= set(known),
            f"--tsv_columns: expected text, category (and second) once each, '-' to skip one, got {columns!r}",
        )
        unknown = [column for column in self.tsv_columns if column not in (*TSV_COLUMNS, "-")]
        require(not unknown, f"--tsv_columns: expected text, category, second or '-', got {', '.join(unknown)}")
        require(
            self.second_label != "column" or "second" in self.tsv_columns,
            f"--second_label column: --tsv_columns must name the column 'second', got {columns!r}",
        )
        # Lines and columns are cut before they are decoded, which needs an encoding that keeps ASCII bytes as they are.
        require(
            _keeps_ascii(self.tsv_encoding),
            f"--tsv_encoding: {self.tsv_encoding!r} does not keep ASCII bytes; convert the file to UTF-8 first",
        )
        # Rejected documents are listed under this name, which must not depend on how it is spelt.
        object.__setattr__(self, "tsv_encoding", codecs.lookup(self.tsv_encoding).name)

    def _check_split_weights(self) -> None:
        text = ",".join(f"{name}={share:g}" for name, share in self.split_weights)
        names = [name for name, _ in self.split_weights]
        for name, share in self.split_weights:
            _require_split_name("split_weights", name)
            require(0.0 <= share <= 1.0, f"--split_weights: expected shares from 0 to 1, got {name}={share:g}")
        require(len(set(names)) == len(names), f"--split_weights: a split stands twice in {text!r}")
        total = math.fsum(share for _, share in self.split_weights)
        require(abs(total - 1.0) < 1e-9, f"--split_weights: expected shares that sum to 1, got {total:g} ({text})")
        require(
            self.is_default("split_weights") or any(spec.split is None for spec in self.inputs),
            "--split_weights: only used for inputs without a split of their own, and every --input has one",
        )

    def is_default(self, name: str) -> bool:
        """Tell whether an option has its default value."""
        return bool(getattr(self, name) == getattr(PreprocessConfig, name))

    @property
    def split_names(self) -> tuple[str, ...]:
        """The splits this job writes: train, dev and test first, then others as they were named."""
        pinned = [spec.split for spec in self.inputs if spec.split]
        hashed = [name for name, share in self.split_weights if share > 0] if len(pinned) < len(self.inputs) else []
        names = dict.fromkeys([*hashed, *pinned])
        return (*(name for name in STANDARD_SPLITS if name in names), *(n for n in names if n not in STANDARD_SPLITS))

    def describe_content(self) -> dict[str, Any]:
        """Return the options that shape a dataset's content, for `dataset.json`.

        Where the documents lie, in what kind of container, and whether the job may go on, is left out: the same
        documents give the same dataset.
        """
        leave_out = ("inputs", "vocab_path", "output_dir", "category_names_path", "taxonomy_path")
        permissions = ("overwrite", "max_rejected_fraction")
        said_elsewhere = ("cased", "seed", "max_len", "compression")
        of_containers = ("input_format", "tsv_columns", "tsv_header", "tsv_encoding")
        skipped = (*leave_out, *permissions, *said_elsewhere, *of_containers)
        return {key: value for key, value in describe(self).items() if key not in skipped}
