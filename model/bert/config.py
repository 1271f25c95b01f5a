"""What `bert_config.json` says about a BERT: the sizes, the activation, the dropout rates.

The file is the one Google ships with its checkpoints; the Chinese one looks like this (fields we have no use for, here
`directionality` and `pooler_*`, are left aside):

    {"attention_probs_dropout_prob": 0.1, "directionality": "bidi", "hidden_act": "gelu", "hidden_dropout_prob": 0.1,
     "hidden_size": 768, "initializer_range": 0.02, "intermediate_size": 3072, "max_position_embeddings": 512,
     "num_attention_heads": 12, "num_hidden_layers": 12, "pooler_fc_size": 768, …, "type_vocab_size": 2,
     "vocab_size": 21128}
"""

import dataclasses
import json
from pathlib import Path
from typing import Any

from pipeline.errors import InputFormatError, MissingInputError, OptionError

CONFIG_FILE_NAME = "bert_config.json"
ACTIVATIONS = ("gelu", "relu", "tanh", "linear")  # those of `get_activation` in Google's modeling.py


@dataclasses.dataclass(frozen=True, kw_only=True)
class BertConfig:
    """The hyperparameters of one BERT, under the names of `bert_config.json`.

    Raises:
        OptionError: a field has a value no BERT can have; the message starts with the field's name.
    """

    vocab_size: int
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    max_position_embeddings: int = 512
    type_vocab_size: int = 2
    hidden_act: str = "gelu"
    hidden_dropout_prob: float = 0.1
    attention_probs_dropout_prob: float = 0.1
    initializer_range: float = 0.02

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.type is int and (type(value) is not int or value < 1):
                raise OptionError(f"{field.name} must be a whole number above 0, got {value!r}")
            if field.type is float and type(value) not in (int, float):
                raise OptionError(f"{field.name} must be a number, got {value!r}")
        for name in ("hidden_dropout_prob", "attention_probs_dropout_prob"):
            if not 0 <= getattr(self, name) < 1:
                raise OptionError(f"{name} must be at least 0 and below 1, got {getattr(self, name)!r}")
        if not 0 < self.initializer_range < 1:
            raise OptionError(f"initializer_range must be between 0 and 1, got {self.initializer_range!r}")
        if self.hidden_act not in ACTIVATIONS:
            raise OptionError(f"hidden_act must be one of {', '.join(ACTIVATIONS)}, got {self.hidden_act!r}")
        if self.hidden_size % self.num_attention_heads:
            raise OptionError(
                f"hidden_size {self.hidden_size} is not a multiple of num_attention_heads {self.num_attention_heads}"
            )

    @property
    def head_size(self) -> int:
        """Width of one attention head."""
        return self.hidden_size // self.num_attention_heads

    @classmethod
    def from_file(cls, path: str | Path) -> "BertConfig":
        """Read and check a `bert_config.json`.

        Raises:
            MissingInputError: there is no such file.
            InputFormatError: it is no JSON object, lacks a field or holds an impossible value.
        """
        path = Path(path)
        if not path.is_file():
            raise MissingInputError(f"{path}: no such file; expected the bert_config.json of a BERT directory")
        try:
            fields = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise InputFormatError(f"{path}: not a JSON file ({error}); expected a bert_config.json") from error
        if not isinstance(fields, dict):
            raise InputFormatError(f"{path}: expected a JSON object, got {type(fields).__name__}")
        known: dict[str, Any] = {}
        for field in dataclasses.fields(cls):
            if field.name in fields:
                known[field.name] = fields[field.name]
            elif field.name != "type_vocab_size":  # absent from some published files, and always 2 there
                raise InputFormatError(f"{path}: field {field.name!r} is missing")
        try:
            return cls(**known)
        except OptionError as error:
            raise InputFormatError(f"{path}: {error}") from error

    def with_dropout(self, rate: float) -> "BertConfig":
        """Return this configuration with `rate` for both dropout probabilities.

        Raises:
            OptionError: not 0 <= rate < 1.
        """
        if not 0 <= rate < 1:
            raise OptionError(f"dropout must be at least 0 and below 1, got {rate!r}")
        return dataclasses.replace(self, hidden_dropout_prob=rate, attention_probs_dropout_prob=rate)

    def to_json(self) -> str:
        """Return the text of a `bert_config.json` that reads back as this configuration."""
        return json.dumps(dataclasses.asdict(self), indent=2, sort_keys=True) + "\n"
