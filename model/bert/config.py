"""What the configuration file of a BERT says: the sizes, the activation, epsilon, the dropout rates.

`bert_config.json` is the file Google ships with its checkpoints; the Chinese one looks like this (fields we have no use
for, here `directionality` and `pooler_*`, are left aside):

    {"attention_probs_dropout_prob": 0.1, "directionality": "bidi", "hidden_act": "gelu", "hidden_dropout_prob": 0.1,
     "hidden_size": 768, "initializer_range": 0.02, "intermediate_size": 3072, "max_position_embeddings": 512,
     "num_attention_heads": 12, "num_hidden_layers": 12, "pooler_fc_size": 768, …, "type_vocab_size": 2,
     "vocab_size": 21128}

`config.json` is Hugging Face's. The names are the same, their meaning differs in two places: `gelu` is the exact
function there and the tanh approximation for Google and keras-bert, and an absent `layer_norm_eps` is 1e-12 there and
1e-14 for keras-bert.
"""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.errors import InputFormatError, MissingInputError, OptionError

CONFIG_FILE_NAME = "bert_config.json"
HUGGING_FACE_CONFIG_NAME = "config.json"

EXACT_GELU = "gelu_python"  # Hugging Face's unambiguous name
# Those of `get_activation` in Google's modeling.py, where "gelu" is the tanh approximation, and the exact one.
ACTIVATIONS = ("gelu", EXACT_GELU, "relu", "tanh", "linear")
# Other names of the tanh approximation, in configurations of both kinds.
_APPROXIMATE_GELUS = ("gelu_new", "gelu_fast", "gelu_pytorch_tanh", "gelu_accurate")

KERAS_BERT_EPSILON = 1e-14  # the square of Keras's default epsilon
GOOGLE_EPSILON = 1e-12  # of modeling.py, and Hugging Face's default; makes no difference to float32 outputs

# Fields by which another architecture is known: the values a BERT may have, and what has others.
_OTHER_ARCHITECTURES: dict[str, tuple[tuple[Any, ...], str]] = {
    "model_type": (("bert", "ernie"), "another architecture"),  # ERNIE 1.0 has BERT's
    "use_task_id": ((False,), "ERNIE 2 or 3"),
    "position_embedding_type": (("absolute",), "a BERT with relative positions"),
    "use_relative_position": ((False,), "NEZHA"),
    "num_hidden_groups": ((), "ALBERT"),
    "is_decoder": ((False,), "a decoder"),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class BertConfig:
    """The hyperparameters of one BERT, under the names and with the meaning of `bert_config.json`.

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
    layer_norm_eps: float = KERAS_BERT_EPSILON

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
        if not 0 < self.layer_norm_eps < 1:
            raise OptionError(f"layer_norm_eps must be between 0 and 1, got {self.layer_norm_eps!r}")
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
        """Read and check a `config.json`, with Hugging Face's meaning, or any other file, with Google's.

        Raises:
            MissingInputError: there is no such file.
            InputFormatError: it is no JSON object, lacks a field, holds an impossible value, or describes another
                architecture than BERT's.
        """
        path = Path(path)
        if not path.is_file():
            raise MissingInputError(f"{path}: no such file; expected the {CONFIG_FILE_NAME} of a BERT directory")
        try:
            fields = json.loads(path.read_text(encoding="utf-8-sig"))
        except ValueError as error:
            raise InputFormatError(f"{path}: not a JSON file ({error}); expected a {CONFIG_FILE_NAME}") from error
        if not isinstance(fields, dict):
            raise InputFormatError(f"{path}: expected a JSON object, got {type(fields).__name__}")
        _check_architecture(fields, path)
        is_hugging_face = path.name == HUGGING_FACE_CONFIG_NAME
        if is_hugging_face:
            fields.setdefault("layer_norm_eps", GOOGLE_EPSILON)
            if fields.setdefault("hidden_act", "gelu") == "gelu":
                fields["hidden_act"] = EXACT_GELU
        if fields.get("hidden_act") in _APPROXIMATE_GELUS:
            fields["hidden_act"] = "gelu"
        # Absent from some published files, and then what they are in all others.
        optional = {"type_vocab_size", "initializer_range", "layer_norm_eps"}
        known: dict[str, Any] = {}
        for field in dataclasses.fields(cls):
            if field.name in fields:
                known[field.name] = fields[field.name]
            elif field.name == "vocab_size" or not (is_hugging_face or field.name in optional):
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
        fields = dataclasses.asdict(self)
        if self.layer_norm_eps == KERAS_BERT_EPSILON:
            del fields["layer_norm_eps"]  # Google's files have no such field
        return json.dumps(fields, indent=2, sort_keys=True) + "\n"

    def to_hugging_face(self) -> dict[str, Any]:
        """Return the content of a `config.json` that describes the same BERT to Hugging Face's `BertModel`."""
        activation = {"gelu": "gelu_new", EXACT_GELU: "gelu"}.get(self.hidden_act, self.hidden_act)
        return {
            "architectures": ["BertModel"],
            "model_type": "bert",
            **dataclasses.asdict(self),
            "hidden_act": activation,
            "pad_token_id": 0,
            "position_embedding_type": "absolute",
        }


def _check_architecture(fields: Mapping[str, Any], path: Path) -> None:
    """Refuse the configuration of another architecture, by what its files are known by.

    Raises:
        InputFormatError: it is one.
    """
    for name, (values, architecture) in _OTHER_ARCHITECTURES.items():
        value = fields.get(name)
        if value is not None and value not in values:
            raise InputFormatError(f"{path}: {name} is {value!r}, that is {architecture}; only BERT is read")
    width = fields.get("embedding_size")
    if width is not None and width != fields.get("hidden_size"):
        raise InputFormatError(f"{path}: embedding_size is {width!r}, that is ALBERT or ELECTRA; only BERT is read")
