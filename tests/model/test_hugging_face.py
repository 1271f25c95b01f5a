"""Checkpoints that `transformers` wrote: in, trained, out again, with equal outputs there and here."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from model.classifier import build_classifier
from model.export import export_run
from model.run.finished import load_finished_run
from model.serving.predictor import Predictor
from model.trainer import train_and_evaluate
from pipeline.errors import InputFormatError
from tests.support.berts import pooled_outputs, random_batch
from tests.support.real_data import NEEDS_TRANSFORMERS
from tests.support.runs import IN_PROCESS, TINY_BERT, VOCAB, make_data_dir, tiny_config
from tests.support.search import first_group

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]  # warnings of another library are its own


@pytest.fixture(scope="module")
def transformers() -> Any:
    for module in ("torch", "safetensors"):
        pytest.importorskip(module, reason=NEEDS_TRANSFORMERS)
    return pytest.importorskip("transformers", reason=NEEDS_TRANSFORMERS)


def make_bert(transformers: Any, path: Path, *, cased: bool = False, max_shard_size: str = "1GB", **config: Any) -> Any:
    """Save a random BERT whose biases and scales are random, too, with vocabulary and tokenizer configuration."""
    import torch

    sizes = dataclasses.asdict(TINY_BERT) | {"num_hidden_layers": 2}
    for name in ("hidden_act", "layer_norm_eps"):
        del sizes[name]
    torch.manual_seed(0)
    bert = transformers.BertModel(transformers.BertConfig(**sizes | config)).eval()
    with torch.no_grad():
        for parameter in bert.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    bert.save_pretrained(path, max_shard_size=max_shard_size)
    (path / "vocab.txt").write_text("".join(f"{token}\n" for token in VOCAB))
    (path / "tokenizer_config.json").write_text(json.dumps({"do_lower_case": not cased}))
    return bert


def hidden_states(bert: Any, batch: list[np.ndarray]) -> np.ndarray:
    """Return what Hugging Face's encoder makes of indices and segments at [CLS], float32 [B, H]."""
    import torch

    indices, segments = (torch.tensor(values, dtype=torch.long) for values in batch)
    with torch.no_grad():
        outputs = bert(input_ids=indices, token_type_ids=segments, attention_mask=(indices != 0).long())
    return outputs.last_hidden_state[:, 0].numpy()


@pytest.mark.parametrize(
    "options",
    [
        {},  # the exact gelu, epsilon 1e-12
        {"max_shard_size": "5KB"},
        {"layer_norm_eps": 1e-5},
        {"hidden_act": "gelu_new"},
        {"hidden_act": "gelu_pytorch_tanh", "layer_norm_eps": 1e-3},
        {"hidden_act": "relu"},
        {"cased": True},
    ],
    ids=str,
)
def test_in_trained_and_out(transformers: Any, tmp_path: Path, options: dict[str, Any]) -> None:
    bert = make_bert(transformers, tmp_path / "bert", **options)
    assert (tmp_path / "bert" / "model.safetensors").exists() != ("max_shard_size" in options)
    batch = random_batch(TINY_BERT, [16, 9, 1])
    imported = pooled_outputs(build_classifier(tmp_path / "bert", {"category": 3}), batch)
    np.testing.assert_allclose(imported, hidden_states(bert, batch), atol=1e-4)

    cased = options.get("cased", False)
    info_dir = make_data_dir(tmp_path / "data", cased=cased)
    config = tiny_config(
        data_dir=str(info_dir),
        bert_dir=str(tmp_path / "bert"),
        output_dir=str(tmp_path / "run"),
        limit_steps=2,
        **IN_PROCESS,
    )
    train_and_evaluate(config)
    finished = load_finished_run(str(tmp_path / "run"))
    assert finished.cased == cased
    trained = pooled_outputs(finished.model, batch)
    assert np.abs(trained - imported).max() > 1e-3
    # What a run leaves is a BERT directory again, which computes the same.
    again = build_classifier(tmp_path / "run", {"category": 3})
    np.testing.assert_allclose(pooled_outputs(again, batch), trained, atol=1e-6)

    export_run(str(tmp_path / "run"), str(tmp_path / "out"), form="hf")
    exported = transformers.BertModel.from_pretrained(tmp_path / "out").eval()
    np.testing.assert_allclose(hidden_states(exported, batch), trained, atol=1e-4)
    np.testing.assert_allclose(
        pooled_outputs(build_classifier(tmp_path / "out", {"category": 3}), batch), trained, atol=1e-5
    )
    tokenizer = transformers.BertTokenizer.from_pretrained(tmp_path / "out")
    words = "w3 W4 w45"
    expected = [
        VOCAB.index(word if cased else word.lower()) if word != "W4" or not cased else 3 for word in words.split()
    ]
    assert tokenizer(words)["input_ids"] == [1, *expected, 2]


@pytest.mark.parametrize("pooling", ["cls", "max"])
def test_the_loader_in_the_exports_readme(transformers: Any, tmp_path: Path, pooling: str) -> None:
    make_bert(transformers, tmp_path / "bert")
    paths = {
        "data_dir": make_data_dir(tmp_path / "data"),
        "bert_dir": tmp_path / "bert",
        "output_dir": tmp_path / "run",
    }
    options = {name: str(path) for name, path in paths.items()} | {"pooling": pooling, "limit_steps": 2} | IN_PROCESS
    train_and_evaluate(tiny_config(**options))
    export_run(str(tmp_path / "run"), str(tmp_path / "out"), form="hf")
    readme = (tmp_path / "out" / "README.md").read_text("utf-8")
    code = first_group(r"(?s)```python\n(.*?)```", readme)
    assert len(code.strip().splitlines()) <= 14
    text = "w3 w7 w7 w20"
    done = subprocess.run(
        [sys.executable, "-c", code.replace("日本队夺冠", text)],
        cwd=tmp_path / "out",
        capture_output=True,
        text=True,
        check=True,
    )
    printed = [line.split() for line in done.stdout.splitlines()]
    finished = load_finished_run(str(tmp_path / "run"))
    probabilities = Predictor(finished).predict([text]).probabilities
    for (head, label, probability), (ours, names) in zip(printed, finished.labels.items(), strict=True):
        assert (head, label) == (ours, names[probabilities[ours][0].argmax()])
        assert float(probability) == pytest.approx(float(probabilities[ours].max()), abs=1e-4)


def test_a_pickle_is_converted_by_the_lines_of_the_message(transformers: Any, tmp_path: Path) -> None:
    import torch

    bert = make_bert(transformers, tmp_path / "bert")
    (tmp_path / "bert" / "model.safetensors").unlink()
    torch.save(bert.state_dict(), tmp_path / "bert" / "pytorch_model.bin")
    with pytest.raises(InputFormatError, match=r"pytorch_model\.bin is a pickle") as caught:
        build_classifier(tmp_path / "bert", {"category": 3})
    lines = str(caught.value).partition("are installed: ")[2].replace('"NEW"', repr(str(tmp_path / "new")))
    subprocess.run([sys.executable, "-c", lines], check=True, capture_output=True)
    batch = random_batch(TINY_BERT, [16, 9])
    converted = pooled_outputs(build_classifier(tmp_path / "new", {"category": 3}), batch)
    np.testing.assert_allclose(converted, hidden_states(bert, batch), atol=1e-4)
