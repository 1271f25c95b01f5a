"""Notebooks import TensorFlow first, and Keras 3 with it; ours is Keras 2, whatever else the process has loaded."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.runs import make_inputs

REPOSITORY = Path(__file__).resolve().parents[2]
# As in a notebook: TensorFlow and its Keras 3 first, then README's "From Python", then a training.
NOTEBOOK = """
import sys
import tensorflow as tf
from tensorflow.keras import layers

assert tf.keras.__version__.startswith("3."), tf.keras.__version__
data_dir, bert_dir, output_dir = sys.argv[1:]
from pipeline.input_pipeline import train_dataset
from model.classifier import build_classifier

model = build_classifier(bert_dir, heads={"category": 3, "second": 2})
losses = dict.fromkeys(model.output, "sparse_categorical_crossentropy")
model.compile("adam", losses)
model.fit(train_dataset(data_dir, global_batch_size=8, seed=0, epoch=0), verbose=0)

from model.config import TrainConfig
from model.trainer import train_and_evaluate

config = TrainConfig.from_options(data_dir=data_dir, bert_dir=bert_dir, output_dir=output_dir, limit_steps=2)
print(train_and_evaluate(config).training.steps)

from pipeline.errors import OptionError

try:
    build_classifier(bert_dir, heads={"category": 3}, encoder="keras_bert")
except OptionError as error:
    print(error)
"""


@pytest.mark.parametrize("variable", [None, "0"])
def test_tensorflow_and_keras_3_first(tmp_path: Path, variable: str | None) -> None:
    inputs = make_inputs(tmp_path)
    environment = {name: value for name, value in os.environ.items() if name != "TF_USE_LEGACY_KERAS"}
    if variable is not None:
        environment["TF_USE_LEGACY_KERAS"] = variable
    done = subprocess.run(
        [sys.executable, "-c", NOTEBOOK, inputs["data_dir"], inputs["bert_dir"], str(tmp_path / "run")],
        cwd=REPOSITORY,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    steps, refusal = done.stdout.splitlines()
    assert steps == "2"
    assert refusal.startswith(
        "--encoder keras_bert needs Keras 2, and TensorFlow was started with another; set TF_USE_LE"
    )
