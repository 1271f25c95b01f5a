"""The training options: what is refused, and what follows from them."""

from typing import Any

import pytest

from model.config import LearningConfig, TrainConfig, spell
from pipeline.errors import OptionError

PATHS = {"data_dir": "data", "bert_dir": "bert", "output_dir": "run"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"data_dir": ""}, "--data: expected a directory"),
        (
            {"heads": ("category", "third")},
            "--heads: unknown head 'third'; the dataset has the labels of category, second",
        ),
        ({"heads": ()}, "--heads: expected one or more"),
        ({"heads": ("second", "second")}, "--heads: expected one or more of category, second, got 'second,second'"),
        ({"heads": ("category",), "loss_weights": {"second": 1.0}}, "--loss_weights: there is no head 'second'"),
        (
            {"heads": ("category",), "label_smoothing": {"second": 0.1}},
            "--label_smoothing: there is no head 'second'",
        ),
        ({"heads": ("category",), "balance_classes": ("second",)}, "--balance_classes: there is no head 'second'"),
        ({"loss_weights": {"category": -1.0}}, "--loss_weights: expected 0 or more, got category=-1"),
        ({"loss_weights": {"category": float("nan")}}, "--loss_weights: expected 0 or more"),
        ({"loss_weights": {"category": 0.0, "second": 0.0}}, "every head has weight 0"),
        ({"label_smoothing": {"category": 1.0}}, "--label_smoothing: expected 0 or more and below 1"),
        ({"pooling": "mean"}, "--pooling: expected one of cls, max, got 'mean'"),
        ({"buckets": (64, 32)}, "--buckets: expected 1 to 64 lengths in rising order, got '64,32'"),
        ({"buckets": (2, 32)}, "--buckets: expected lengths from 3"),
        ({"buckets": "some"}, "--buckets: expected one of auto, off"),
        ({"batch_size": 0}, "--batch_size: expected 1 or more, got 0"),
        ({"batch_size": 10, "accumulate_steps": 4}, "--accumulate_steps 4 does not divide --batch_size 10"),
        ({"max_len": 2}, "--max_len: expected 3 or more, got 2"),
        ({"limit_steps": 0}, "--limit_steps: expected 1 or more"),
        ({"cpu_replicas": 65}, "--cpu_replicas: expected 1 to 64, got 65"),
        ({"learning_rate": 0.0}, "--learning_rate: expected above 0"),
        ({"learning_rate": float("nan")}, "--learning_rate: expected above 0"),
        ({"warmup": 1.0}, "--warmup: expected 0 or more and below 1"),
        ({"dropout": -0.1}, "--dropout: expected 0 or more and below 1"),
        ({"clip_norm": -1.0}, "--clip_norm: expected 0 (off) or more"),
        ({"plateau_factor": 1.0}, "--plateau_factor: expected between 0 and 1"),
        ({"seed": 2**63}, "--seed: expected 0 to 2**63 - 1"),
        (
            {"encoder": "keras_bert", "precision": "bfloat16"},
            "--precision bfloat16: keras-bert's own graph works in float32",
        ),
    ],
)
def test_refuses_wrong_options(options: Any, message: str) -> None:
    with pytest.raises(OptionError) as error:
        TrainConfig.from_options(**(PATHS | options))
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_defaults_are_those_of_the_contract() -> None:
    config = TrainConfig.from_options(**PATHS)
    assert (config.model.heads, config.batches.batch_size, config.learning.epochs) == (("category", "second"), 32, 10)
    learning = config.learning
    assert (learning.learning_rate, learning.schedule, learning.early_stopping_patience) == (1e-5, "plateau", 3)


@pytest.mark.parametrize(
    ("schedule", "warmup", "share"),
    [
        ("linear", None, 0.1),
        ("plateau", None, 0.0),
        ("constant", None, 0.0),
        ("plateau", 0.2, 0.2),
        ("linear", 0.0, 0.0),
    ],
)
def test_warmup_depends_on_the_schedule_unless_it_is_given(schedule: Any, warmup: float | None, share: float) -> None:
    assert LearningConfig(schedule=schedule, warmup=warmup).warmup_share == share


def test_refuses_options_that_do_not_exist() -> None:
    with pytest.raises(TypeError, match="unknown training options: batchsize"):
        TrainConfig.from_options(**PATHS, batchsize=3)


@pytest.mark.parametrize(
    ("value", "text"),
    [(("a", "b"), "a,b"), ({"second": 0.5}, "second=0.5"), (None, "None"), ((64, 128), "64,128"), (1e-5, "1e-05")],
)
def test_spells_values_as_the_command_line_does(value: Any, text: str) -> None:
    assert spell(value) == text
