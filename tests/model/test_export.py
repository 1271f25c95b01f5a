"""The SavedModel: where there is TensorFlow alone, it says what prediction says; what is wrong is not exported."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from model import files
from model.bert.safetensors import read_tensors
from model.classifier import build_classifier
from model.decoding import decode_labels
from model.export import export_run, main
from model.run.finished import load_finished_run
from model.serving import saved_model as saved_model_module
from model.serving.graph_tokenizer import GraphTokenizer
from model.serving.predictor import Predictor
from model.serving.saved_model import check_records, make_tokenize_fn, rebuild_text
from pipeline.command_line import run_command
from pipeline.corpus.documents import normalize_text
from pipeline.errors import (
    InputFormatError,
    MissingInputError,
    OptionError,
    OutputExistsError,
    OutputWriteError,
    SchemaMismatchError,
)
from pipeline.tokenization.tokenizer import Tokenizer
from pipeline.tokenization.vocabulary import load_vocab
from tests.support.berts import pooled_outputs
from tests.support.finished_runs import LABELS, MAX_LEN, TEXTS, VOCAB, make_finished_run, make_text_data_dir
from tests.support.hard_texts import HARD_TEXTS
from tests.support.real_data import NEEDS_ONNX

# Run by another Python, outside the repository. Prints everything both signatures return for the texts on its input.
CLIENT = """
import json, sys
import tensorflow as tf

loaded = tf.saved_model.load(sys.argv[1])
request = json.load(sys.stdin)
text = loaded.signatures["serving_default"](text=tf.constant(request["texts"]))
ids = loaded.signatures["ids"](
    indices=tf.constant(request["indices"], tf.int32), segments=tf.zeros_like(request["indices"], tf.int32)
)
ours = [name for name in sys.modules if name.split(".")[0] in ("model", "pipeline", "keras_bert")]


def plain(outputs):
    return {
        name: [value.decode() if isinstance(value, bytes) else value for value in tensor.numpy().tolist()]
        for name, tensor in outputs.items()
    }


print(json.dumps({"text": plain(text), "ids": plain(ids), "ours": ours}))
"""


def vocab_of(tokens: Any) -> Any:
    return {token: token_id for token_id, token in enumerate(tokens)}


def ask(saved_model: Any, texts: Sequence[str], indices: Any, tmp_path: Path) -> Any:
    """Answers of a process that has no PYTHONPATH and does not stand in the repository."""
    environment = {
        name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "TF_USE_LEGACY_KERAS")
    }
    client = tmp_path / "client.py"
    client.write_text(CLIENT, "utf-8")
    process = subprocess.run(
        [sys.executable, "-I", str(client), str(saved_model)],
        input=json.dumps({"texts": texts, "indices": indices}),
        capture_output=True,
        text=True,
        cwd="/",
        env=environment,
        check=True,
    )
    return json.loads(process.stdout)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return make_finished_run(tmp_path_factory.mktemp("export"))


@pytest.fixture(scope="module")
def saved_model(run: Any) -> Any:
    output = run.parent / "saved_model"
    assert main(["--run", str(run), "--output", str(output)]) == 0
    return output


def test_says_elsewhere_what_prediction_says(run: Any, saved_model: Any, tmp_path: Path) -> None:
    finished = load_finished_run(str(run))
    predictor = Predictor(finished, batch_size=5)
    texts = [*TEXTS, *HARD_TEXTS]
    errors = predictor.predict(texts).errors
    texts = [text for row, text in enumerate(texts) if row not in errors]
    expected = predictor.predict(texts)
    tokenizer = Tokenizer(vocab_of(VOCAB), max_len=MAX_LEN)
    few = texts[:4]
    rows = [tokenizer.encode(normalize_text(text))[0] for text in few]
    indices = [row + [0] * (MAX_LEN - len(row)) for row in rows]

    answers = ask(saved_model, texts, indices, tmp_path)
    assert answers["ours"] == []
    for head, names in zip(("category", "second"), LABELS, strict=True):
        probabilities = expected.probabilities[head]
        assert set(probabilities.argmax(axis=1)) == set(range(len(names)))
        best = [names[label] for label in probabilities.argmax(axis=1)]
        np.testing.assert_allclose(answers["text"][f"{head}_probabilities"], probabilities, atol=1e-5)
        np.testing.assert_allclose(answers["text"][f"{head}_probability"], probabilities.max(axis=1), atol=1e-5)
        assert answers["text"][f"{head}_label"] == best
        np.testing.assert_allclose(answers["ids"][f"{head}_probabilities"], probabilities[:4], atol=1e-5)
        np.testing.assert_allclose(answers["ids"][f"{head}_probability"], probabilities[:4].max(axis=1), atol=1e-5)
        assert answers["ids"][f"{head}_label"] == best[:4]
    assert set(answers["text"]) == set(answers["ids"])
    assert len(answers["text"]) == 6


def test_signatures(saved_model: Any) -> None:
    loaded = tf.saved_model.load(str(saved_model))
    assert set(loaded.signatures) == {"serving_default", "ids"}
    for name, expected in (
        ("serving_default", {"text": (tf.string, [None])}),
        ("ids", {"indices": (tf.int32, [None, None]), "segments": (tf.int32, [None, None])}),
    ):
        signature = loaded.signatures[name]
        specifications = signature.structured_input_signature[1]
        assert {key: (spec.dtype, spec.shape.as_list()) for key, spec in specifications.items()} == expected
        outputs = {key: (spec.dtype, len(spec.shape)) for key, spec in signature.structured_outputs.items()}
        assert outputs == {
            f"{head}_{what}": form
            for head in ("category", "second")
            for what, form in (
                ("label", (tf.string, 1)),
                ("probability", (tf.float32, 1)),
                ("probabilities", (tf.float32, 2)),
            )
        }


def test_empty_batches_and_empty_texts(saved_model: Any) -> None:
    serve = tf.saved_model.load(str(saved_model)).signatures["serving_default"]
    assert serve(text=tf.constant([], tf.string))["category_probabilities"].shape == (0, 3)
    answers = serve(text=tf.constant(["", "\x00", "你好"]))["category_probabilities"].numpy()
    assert np.array_equal(answers[0], answers[1])
    assert not np.allclose(answers[0], answers[2])


def test_leaves_nothing_else_behind(run: Any, saved_model: Any) -> None:
    assert sorted(path.name for path in saved_model.parent.iterdir()) == ["bert", "data", "run", "saved_model"]


@pytest.mark.parametrize("options", [{"encoder": "keras_bert"}, {"pooling": "max", "heads": ("second",)}])
def test_other_models(tmp_path: Path, options: dict[str, Any] | dict[str, str]) -> None:
    run = make_finished_run(tmp_path, **options)
    export_run(str(run), str(tmp_path / "models" / "news" / "1"))
    serve = tf.saved_model.load(str(tmp_path / "models" / "news" / "1")).signatures["serving_default"]
    answers = serve(text=tf.constant(TEXTS))
    expected = Predictor(load_finished_run(str(run))).predict(TEXTS).probabilities
    assert len(answers) == 3 * len(expected)
    for head, probabilities in expected.items():
        np.testing.assert_allclose(answers[f"{head}_probabilities"], probabilities, atol=1e-5)


def test_joint_decoding_in_the_graph(tmp_path: Path) -> None:
    run = make_finished_run(tmp_path)
    pairs = {"体育": ["静"], "财经/交易": ["动"], "娱乐": ["动", "静"]}
    config = run / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text("utf-8")) | {"label_pairs": pairs}), "utf-8")
    assert main(["--run", str(run), "--output", str(tmp_path / "joint"), "--decode", "joint"]) == 0
    answers = tf.saved_model.load(str(tmp_path / "joint")).signatures["serving_default"](text=tf.constant(TEXTS))
    finished = load_finished_run(str(run))
    probabilities = Predictor(finished).predict(TEXTS).probabilities
    chosen = decode_labels(probabilities, decode="joint", pairs=finished.pairs)
    assert any((chosen[head] != values.argmax(axis=1)).any() for head, values in probabilities.items())
    for head, names in zip(("category", "second"), LABELS, strict=True):
        assert [label.decode() for label in answers[f"{head}_label"].numpy()] == [
            names[label] for label in chosen[head]
        ]
        np.testing.assert_allclose(
            answers[f"{head}_probability"],
            np.take_along_axis(probabilities[head], chosen[head][:, None], 1)[:, 0],
            atol=1e-5,
        )
        np.testing.assert_allclose(answers[f"{head}_probabilities"], probabilities[head], atol=1e-5)
    single = make_finished_run(tmp_path / "single", heads=("category",))
    with pytest.raises(OptionError, match="--decode joint: needs the heads"):
        export_run(str(single), str(tmp_path / "none"), decode="joint")


def test_shorter_rows_from_a_dataset_that_was_moved(tmp_path: Path) -> None:
    run = make_finished_run(tmp_path, max_len=7)
    (tmp_path / "data").rename(tmp_path / "elsewhere")
    output = tmp_path / "empty"
    output.mkdir()
    assert main(["--run", str(run), "--output", str(output), "--data", str(tmp_path / "elsewhere")]) == 0
    serve = tf.saved_model.load(str(output)).signatures["serving_default"]
    answers = serve(text=tf.constant(["中" * 5 + "好", "中" * 5, "中" * 4 + "好"]))["category_probabilities"].numpy()
    np.testing.assert_allclose(answers[0], answers[1], atol=1e-6)
    assert not np.allclose(answers[0], answers[2], atol=1e-3)


def test_rebuilt_texts() -> None:
    tokens = ["be", "##rt", "中", "a", "a", "##b", "[UNK]", "##b", "[UNK]", "。", "。", "##"]
    assert rebuild_text(tokens, "?") == " bert 中 a ab ?b ? 。 。 ##"


def test_records_give_back_their_ids(run: Any) -> None:
    """Words, [UNK] inside of words, cut words, runs of 。: all of them in the records."""
    vocab = load_vocab(run / "vocab.txt")
    tokenize_fn = make_tokenize_fn(GraphTokenizer(vocab, max_len=MAX_LEN))
    num_records = check_records(tokenize_fn, Tokenizer(vocab, max_len=MAX_LEN), vocab, str(run.parent / "data"))
    assert num_records == len(TEXTS) + 5 + len(TEXTS)


class WrongTokenizer(GraphTokenizer):
    """A tokenizer whose ids are right except for one."""

    def __init__(self, vocab: Any, *, max_len: Any, token: Any) -> None:
        super().__init__(vocab, max_len=max_len)
        self._wrong_id = vocab[token]

    def __call__(self, texts: Sequence[str]) -> tuple[Any, ...]:
        indices, segments = super().__call__(texts)
        return tf.where(indices == self._wrong_id, self._unk_id, indices), segments


def test_refuses_wrong_ids(run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        saved_model_module,
        "GraphTokenizer",
        lambda vocab, max_len, cased: WrongTokenizer(vocab, max_len=max_len, token="好"),
    )
    message = (
        r"split train, record 1: the graph gives other ids .*expected \[\d.* at position 2, got \[3.*nothing was exp"
    )
    with pytest.raises(SchemaMismatchError, match=message):
        export_run(str(run), str(tmp_path / "saved_model"))
    assert not list(tmp_path.glob("saved_model*"))


def test_refuses_records_of_another_tokenizer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Records in which a word was cut otherwise, as another Unicode version or another tokenizer would."""
    run = make_finished_run(tmp_path)
    monkeypatch.setattr(
        Tokenizer, "encode", lambda self, text: ([1, VOCAB.index("be"), VOCAB.index("##rt"), 2], [0] * 4)
    )
    make_text_data_dir(tmp_path / "data")
    monkeypatch.undo()
    with pytest.raises(SchemaMismatchError, match=r"record 0: run_preprocess\.py's tokenizer gives other ids"):
        export_run(str(run), str(tmp_path / "saved_model"))
    assert not list(tmp_path.glob("saved_model*"))


def test_exports_into_the_current_directory(run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "1").mkdir()
    monkeypatch.chdir(tmp_path / "1")
    export_run(str(run), ".")
    assert {"saved_model.pb", "variables"} <= {path.name for path in (tmp_path / "1").iterdir()}
    assert [path.name for path in tmp_path.iterdir()] == ["1"]


def test_refuses_what_is_there(run: Any, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    for output in (tmp_path, tmp_path / "file"):
        with pytest.raises(OutputExistsError, match=f"{output.name}: is there already"):
            export_run(str(run), str(output))
    assert (tmp_path / "file").read_text() == "mine"


def test_refuses_outputs_and_options_that_cannot_work(run: Any, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="expected a local directory"):
        export_run(str(run), "gs://bucket/model")
    with pytest.raises(OptionError, match=r"exp\[1\].*cannot load a model from there"):
        export_run(str(run), str(tmp_path / "exp[1]" / "1"))
    for option, value in (("data", "data"), ("decode", "joint"), ("precision", "bfloat16")):
        options: dict[str, Any] = {"data_dir" if option == "data" else option: value}
        with pytest.raises(OptionError, match=f"--{option}: only used with --format saved_model, not hf"):
            export_run(str(run), str(tmp_path / "hf"), form="hf", **options)
    assert list(tmp_path.iterdir()) == []


def test_a_hugging_face_directory_holds_the_model_and_its_labels(run: Any, tmp_path: Path) -> None:
    """That `transformers` computes the same with it, test_hugging_face.py shows."""
    output = tmp_path / "hf [1]"
    assert main(["--run", str(run), "--output", str(output), "--format", "hf"]) == 0
    assert sorted(path.name for path in output.iterdir()) == [
        *("README.md", "config.json", "heads.json", "heads.safetensors", "model.safetensors"),
        *("tokenizer_config.json", "vocab.txt"),
    ]
    model = load_finished_run(str(run)).model
    about = json.loads((output / "heads.json").read_text("utf-8"))
    assert about == {"labels": dict(zip(model.output, map(list, LABELS), strict=True)), "pooling": "cls", "max_len": 20}
    heads = read_tensors(output / "heads.safetensors")
    for head in model.output:
        kernel, bias = model.get_layer(f"{head}_logits").get_weights()
        np.testing.assert_array_equal(heads[f"{head}.weight"].read(), kernel.T)
        np.testing.assert_array_equal(heads[f"{head}.bias"].read(), bias)
    assert json.loads((output / "tokenizer_config.json").read_text())["do_lower_case"] is True
    # What was written is a BERT directory.
    again = build_classifier(output, {"category": 3})
    batch = [np.array([[1, 7, 8, 2]], np.int32), np.zeros((1, 4), np.int32)]
    np.testing.assert_allclose(pooled_outputs(again, batch), pooled_outputs(model, batch), atol=1e-6)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # warnings of other libraries are their own
@pytest.mark.parametrize("options", [{}, {"pooling": "max", "heads": ("second",)}, {"encoder": "keras_bert"}])
def test_onnx_runtime_computes_the_same(tmp_path: Path, options: dict[str, Any] | dict[str, str]) -> None:
    pytest.importorskip("tf2onnx", reason=NEEDS_ONNX)
    onnxruntime = pytest.importorskip("onnxruntime", reason=NEEDS_ONNX)
    run = make_finished_run(tmp_path, **options)
    assert main(["--run", str(run), "--output", str(tmp_path / "onnx"), "--format", "onnx"]) == 0
    finished = load_finished_run(str(run))
    assert json.loads((tmp_path / "onnx" / "labels.json").read_text("utf-8")) == finished.labels
    session = onnxruntime.InferenceSession(tmp_path / "onnx" / "model.onnx")
    assert [(value.name, value.shape) for value in session.get_inputs()] == [
        (name, ["batch", "length"]) for name in ("indices", "segments")
    ]
    for rows, length in ((1, 3), (2, MAX_LEN), (5, 9)):
        indices = np.random.default_rng(0).integers(4, len(VOCAB), (rows, length)).astype(np.int32)
        indices[0, 2:] = 0
        outputs = finished.model([indices, np.zeros_like(indices)])
        found = session.run(None, {"indices": indices, "segments": np.zeros_like(indices)})
        for value, array in zip(session.get_outputs(), found, strict=True):
            np.testing.assert_allclose(array, outputs[value.name.removesuffix("_probabilities")], atol=1e-5)


def test_says_what_onnx_needs(run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tf2onnx", None)
    with pytest.raises(OptionError, match=r"no tf2onnx; pip install 'two-headed-bert\[onnx\]'"):
        export_run(str(run), str(tmp_path / "onnx"), form="onnx")


def test_a_cased_run(tmp_path: Path) -> None:
    """Letter case reaches prediction and the graph, and a dataset without it is refused."""
    run = make_finished_run(tmp_path, cased=True)
    finished = load_finished_run(str(run))
    assert finished.cased
    texts = ["BERT Été", "bert ete", "Σας ΣΑΣ", *TEXTS[:3]]
    expected = Predictor(finished).predict(texts).probabilities["category"]
    assert not np.allclose(expected[0], expected[1], atol=1e-3)
    export_run(str(run), str(tmp_path / "saved_model"))
    serve = tf.saved_model.load(str(tmp_path / "saved_model")).signatures["serving_default"]
    answers = serve(text=tf.constant(texts))["category_probabilities"]
    np.testing.assert_allclose(answers, expected, atol=1e-5)
    make_text_data_dir(tmp_path / "lower")
    with pytest.raises(SchemaMismatchError, match="made without --cased, and the run's dataset with"):
        export_run(str(run), str(tmp_path / "none"), data_dir=str(tmp_path / "lower"))


def test_leaves_nothing_when_it_cannot_write(run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_args: Any, **_options: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files, "sync_path", fail)
    with pytest.raises(OutputWriteError, match="No space left"):
        export_run(str(run), str(tmp_path / "saved_model"))
    assert list(tmp_path.iterdir()) == []


def test_refuses_incomplete_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = str(tmp_path / "saved_model")
    assert run_command(main, ["--run", str(tmp_path / "none"), "--output", output]) == 2
    run = make_finished_run(tmp_path)
    vocab = run / "vocab.txt"
    content = vocab.read_bytes()
    vocab.write_bytes(content + b"more\n")
    with pytest.raises(InputFormatError, match="not the vocabulary this run was trained with"):
        export_run(str(run), output)
    vocab.write_bytes(content)
    (tmp_path / "data" / "dataset.json").unlink()
    with pytest.raises(MissingInputError, match=r"no dataset\.json"):
        export_run(str(run), output)
    (run / "report.json").unlink()
    with pytest.raises(MissingInputError, match="not finished"):
        export_run(str(run), output)
    assert not list(tmp_path.glob("saved_model*"))
