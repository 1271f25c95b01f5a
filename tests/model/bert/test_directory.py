"""What `--bert` makes of every kind and naming of a checkpoint: each row of docs/checkpoints.md is a case here."""

import dataclasses
import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from model.bert.directory import read_bert_dir
from model.classifier import build_classifier
from pipeline.errors import PipelineError
from tests.support.berts import (
    SMALL,
    hugging_face_tensors,
    make_bert_dir,
    pooled_outputs,
    random_batch,
    read_variables,
    safetensors_bytes,
)

DOCUMENT = Path(__file__).resolve().parents[3] / "docs" / "checkpoints.md"
HEADS = {"category": 3}
GOOGLE_FILES = ("bert_model.ckpt.index", "bert_model.ckpt.data-00000-of-00001")
CASES: dict[str, "Case"] = {}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
    """A row of the table.

    Attributes:
        make: changes a copy of a Google directory; returns what `--bert` is given, `None` for the directory.
        refused: part of the one line that says why; `None` if it loads.
        tolerance: of the outputs, against those of the Google directory.
    """

    make: Callable[[Path], Path | None]
    refused: str | None
    tolerance: float


def case(kind: str, refused: str | None = None, tolerance: float = 1e-6) -> Callable[..., None]:
    """Add a row; `kind` is its first cell."""

    def add(make: Callable[[Path], Path | None]) -> None:
        CASES[kind] = Case(make=make, refused=refused, tolerance=tolerance)

    return add


# What the cases change


def configure(directory: Path, changes: Mapping[str, Any]) -> None:
    path = next(directory.glob("*config*.json"))
    fields = json.loads(path.read_text("utf-8")) | changes
    path.write_text(json.dumps({name: value for name, value in fields.items() if value is not None}))


def save(directory: Path, variables: Mapping[str, np.ndarray], name: str = "bert_model.ckpt") -> None:
    for file in GOOGLE_FILES:
        (directory / file).unlink(missing_ok=True)
    tf.raw_ops.SaveV2(
        prefix=str(directory / name),
        tensor_names=list(variables),
        shape_and_slices=[""] * len(variables),
        tensors=[tf.constant(value) for value in variables.values()],
    )


def rename(directory: Path, name: str) -> None:
    for file in GOOGLE_FILES:
        (directory / file).rename(directory / file.replace("bert_model.ckpt", name))


def hugging_face(directory: Path, *, prefix: str = "", dtype: str = "F32", **config: Any) -> dict[str, np.ndarray]:
    """Turn a directory into Hugging Face's, whose `gelu_new` and epsilon compute what the Google directory does."""
    tensors = {f"{prefix}{name}": value for name, value in hugging_face_tensors(read_variables(directory)).items()}
    for file in GOOGLE_FILES:
        (directory / file).unlink()
    (directory / "bert_config.json").rename(directory / "config.json")
    configure(
        directory, {"model_type": "bert", "hidden_act": "gelu_new", "position_embedding_type": "absolute"} | config
    )
    (directory / "model.safetensors").write_bytes(safetensors_bytes(tensors, dtype))
    return tensors


def edit_vocab(
    directory: Path, edit: Callable[[list[bytes]], list[bytes]], start: bytes = b"", end: bytes = b"\n"
) -> None:
    path = directory / "vocab.txt"
    path.write_bytes(start + b"".join(line + end for line in edit(path.read_bytes().splitlines())))


# Google's


@case("`bert_config.json`, `vocab.txt`, `bert_model.ckpt`")
def _(directory: Path) -> None:
    pass


@case("`model.ckpt-100000` alone")
def _(directory: Path) -> None:
    rename(directory, "model.ckpt-100000")


@case("several `model.ckpt-N`, and a file `checkpoint` that names one")
def _(directory: Path) -> None:
    rename(directory, "model.ckpt-100000")
    save(directory, {"global_step": np.int64(7)}, "model.ckpt-99000")
    (directory / "checkpoint").write_text(
        'model_checkpoint_path: "/elsewhere/model.ckpt-100000"\nall_model_checkpoint_paths: "model.ckpt-99000"\n'
    )


@case(
    "several checkpoints, and none is named",
    "holds 2 checkpoints (bert_model.ckpt, model.ckpt-7); choose one with --bert DIR/bert_model.ckpt",
)
def _(directory: Path) -> None:
    for file in GOOGLE_FILES:
        shutil.copy(directory / file, directory / file.replace("bert_model.ckpt", "model.ckpt-7"))


@case("several checkpoints, and `--bert DIR/PREFIX` or `DIR/PREFIX.index`")
def _(directory: Path) -> Path:
    rename(directory, "model.ckpt-7")
    save(directory, {"global_step": np.int64(7)}, "bert_model.ckpt")
    assert read_bert_dir(directory / "model.ckpt-7.index") == read_bert_dir(directory / "model.ckpt-7")
    return directory / "model.ckpt-7"


@case("`roberta_zh_large_model.ckpt` with `bert_config_large.json`")
def _(directory: Path) -> None:
    rename(directory, "roberta_zh_large_model.ckpt")
    (directory / "bert_config.json").rename(directory / "bert_config_large.json")


@case(
    "two configurations of other names",
    "bert_config_base.json and bert_config_large.json are there; name one of them bert_config.json",
)
def _(directory: Path) -> None:
    shutil.copy(directory / "bert_config.json", directory / "bert_config_base.json")
    (directory / "bert_config.json").rename(directory / "bert_config_large.json")


@case("`[`, `]`, `*`, `?`, spaces, 中文 in the path")
def _(directory: Path) -> Path:
    return directory.rename(directory.with_name("lr=[1e-5] * what? 中文"))


@case("optimizer slots and `global_step` in the checkpoint")
def _(directory: Path) -> None:
    variables = read_variables(directory)
    slots = {f"{name}/adam_{slot}": np.zeros_like(value) for name, value in variables.items() for slot in "mv"}
    save(directory, variables | slots | {"global_step": np.int64(7)})


@case("float16 variables", tolerance=0.02)
def _(directory: Path) -> None:
    save(directory, {name: value.astype(np.float16) for name, value in read_variables(directory).items()})


@case("`initializer_range` or `type_vocab_size` missing, a byte-order mark before the configuration")
def _(directory: Path) -> None:
    configure(directory, {"initializer_range": None, "type_vocab_size": None})
    path = directory / "bert_config.json"
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())


@case("`hidden_act` `gelu_new`, `gelu_pytorch_tanh`, `gelu_fast`: the tanh approximation")
def _(directory: Path) -> None:
    configure(directory, {"hidden_act": "gelu_pytorch_tanh"})


@case("another activation", "hidden_act must be one of gelu, gelu_python, relu, tanh, linear, got 'swish'")
def _(directory: Path) -> None:
    configure(directory, {"hidden_act": "swish"})


@case("a run of ours")
def _(directory: Path) -> Path:
    run = directory.with_name("run")
    run.mkdir()
    shutil.copy(directory / "vocab.txt", run)
    shutil.copy(directory / "bert_config.json", run)
    (run / "config.json").write_text('{"run_format": 2}')
    directory.rename(run / "bert")
    return run


@case("a run of ours that is not finished", "a run has no encoder before it is finished; start its command again")
def _(directory: Path) -> None:
    for file in GOOGLE_FILES:
        (directory / file).unlink()
    (directory / "state").mkdir()


@case("no `.index`, no `.data-…`, no `vocab.txt`, no configuration", "the BERT directory has no bert_model.ckpt.index")
def _(directory: Path) -> None:
    (directory / "bert_model.ckpt.index").unlink()


@case("a checkpoint of TensorFlow 2's objects", "the checkpoint is of TensorFlow 2's objects, without Google's names")
def _(directory: Path) -> None:
    for file in GOOGLE_FILES:
        (directory / file).unlink()
    tf.train.Checkpoint(embeddings=tf.Variable([1.0])).write(str(directory / "bert_model.ckpt"))


# Vocabularies


@case("fewer entries than `vocab_size` (ERNIE 1.0: 17,964 of 18,000)")
def _(directory: Path) -> None:
    edit_vocab(directory, lambda lines: lines[:-3])


@case(
    "more entries than `vocab_size`",
    "62 entries, but vocab_size in DIR/bert_config.json is 60; the two files must belong to the same BERT",
)
def _(directory: Path) -> None:
    edit_vocab(directory, lambda lines: [*lines, b"one", b"more"])


@case("an empty or a repeated line in the vocabulary")
def _(directory: Path) -> None:
    edit_vocab(directory, lambda lines: [*lines[:20], b"", *lines[21:30], lines[40], *lines[31:]])


@case("a vocabulary with a byte-order mark, or with Windows's line ends")
def _(directory: Path) -> None:
    before = read_bert_dir(directory).vocab
    edit_vocab(directory, lambda lines: lines, start=b"\xef\xbb\xbf", end=b"\r\n")
    assert read_bert_dir(directory).vocab == before


# Hugging Face's


@case("Hugging Face: `config.json`, `vocab.txt`, `model.safetensors`")
def _(directory: Path) -> None:
    hugging_face(directory)


@case("Hugging Face: several files and `model.safetensors.index.json`")
def _(directory: Path) -> None:
    tensors = hugging_face(directory, prefix="bert.")
    (directory / "model.safetensors").unlink()
    names = sorted(tensors)
    files: dict[str, str] = {}
    for number in (1, 2):
        name = f"model-0000{number}-of-00002.safetensors"
        part = names[number - 1 :: 2]
        (directory / name).write_bytes(safetensors_bytes({key: tensors[key] for key in part}))
        files |= dict.fromkeys(part, name)
    (directory / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": files}))


@case("Hugging Face: a file of the index is missing", "the BERT directory has no model-00001-of-00001.safetensors")
def _(directory: Path) -> None:
    hugging_face(directory)
    (directory / "model.safetensors").unlink()
    index = {"weight_map": {"embeddings.word_embeddings.weight": "model-00001-of-00001.safetensors"}}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))


@case("Hugging Face: a model with heads (names begin with `bert.`), `LayerNorm.gamma` and `.beta` of old files")
def _(directory: Path) -> None:
    tensors = hugging_face(directory, prefix="bert.")
    old = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): value
        for name, value in tensors.items()
    }
    old |= {
        "cls.predictions.bias": np.zeros(60, np.float32),
        "bert.embeddings.position_ids": np.arange(24, dtype=np.float32),
    }
    (directory / "model.safetensors").write_bytes(safetensors_bytes(old))


@case("Hugging Face: `tokenizer.json` and no `vocab.txt`")
def _(directory: Path) -> None:
    hugging_face(directory)
    path = directory / "vocab.txt"
    ids = {token: number for number, token in enumerate(path.read_text().splitlines())}
    (directory / "tokenizer.json").write_text(json.dumps({"model": {"type": "WordPiece", "vocab": ids}}))
    path.unlink()


@case("Hugging Face: bfloat16 or float16 tensors", tolerance=0.1)
def _(directory: Path) -> None:
    hugging_face(directory, dtype="BF16")


@case(
    "Hugging Face: quantized tensors",
    "is of type I8, expected one of F64, F32, F16, BF16; quantized models are not read",
)
def _(directory: Path) -> None:
    hugging_face(directory, dtype="I8")


@case("ERNIE 1.0 (`model_type` `ernie`, `use_task_id` false)")
def _(directory: Path) -> None:
    hugging_face(directory, prefix="ernie.", model_type="ernie", use_task_id=False)


@case(
    "`pytorch_model.bin`",
    "pytorch_model.bin is a pickle, which could run code, and not read; convert it where transformers and torch are "
    "installed: from transformers import AutoModel, AutoTokenizer; "
    'AutoModel.from_pretrained("DIR").save_pretrained("NEW"); '
    'AutoTokenizer.from_pretrained("DIR").save_pretrained("NEW")',
)
def _(directory: Path) -> None:
    hugging_face(directory)
    (directory / "model.safetensors").unlink()
    (directory / "pytorch_model.bin").write_bytes(b"PK\x03\x04")


@case(
    "`tf_model.h5`, `flax_model.msgpack`, `model_state.pdparams`",
    "tf_model.h5 is Keras's format, and not read; convert it where transformers and torch are installed",
)
def _(directory: Path) -> None:
    hugging_face(directory)
    (directory / "model.safetensors").rename(directory / "tf_model.h5")


@case("a clone without Git LFS", "a pointer of Git LFS, not the file it points to; run git lfs pull there")
def _(directory: Path) -> None:
    hugging_face(directory)
    (directory / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")


@case("`model.safetensors` cut short, or damaged in its header", "damaged, cut short or no safetensors file")
def _(directory: Path) -> None:
    hugging_face(directory)
    path = directory / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])


# Other architectures


@case("ALBERT, by its configuration", "num_hidden_groups is 1, that is ALBERT; only BERT is read")
def _(directory: Path) -> None:
    configure(directory, {"num_hidden_groups": 1})


@case("ALBERT, by its variables", "the checkpoint is of ALBERT, which shares its layers")
def _(directory: Path) -> None:
    save(directory, {"bert/encoder/embedding_hidden_mapping_in/kernel": np.zeros((16, 16), np.float32)})


@case(
    "RoBERTa, RoFormer, DistilBERT, … of Hugging Face",
    "model_type is 'roformer', that is another architecture; only BERT is read",
)
def _(directory: Path) -> None:
    hugging_face(directory, model_type="roformer")


@case(
    "RoFormer, by its variables",
    "the checkpoint has no position embeddings, like RoFormer and NEZHA; only BERT is read",
)
def _(directory: Path) -> None:
    variables = read_variables(directory)
    del variables["bert/embeddings/position_embeddings"]
    save(directory, variables)


@case("NEZHA", "use_relative_position is True, that is NEZHA; only BERT is read")
def _(directory: Path) -> None:
    configure(directory, {"use_relative_position": True})


@case("ERNIE 2 and 3", "use_task_id is True, that is ERNIE 2 or 3; only BERT is read")
def _(directory: Path) -> None:
    hugging_face(directory, model_type="ernie", use_task_id=True)


@case("ELECTRA", "embedding_size is 16, that is ALBERT or ELECTRA; only BERT is read")
def _(directory: Path) -> None:
    configure(directory, {"embedding_size": 16})


@case(
    "`position_embedding_type` `relative_key`",
    "position_embedding_type is 'relative_key', that is a BERT with relative positions; only BERT is read",
)
def _(directory: Path) -> None:
    hugging_face(directory, position_embedding_type="relative_key")


@case("a decoder", "is_decoder is True, that is a decoder; only BERT is read")
def _(directory: Path) -> None:
    hugging_face(directory, is_decoder=True)


# The tests


@pytest.fixture(scope="module")
def google_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_bert_dir(tmp_path_factory.mktemp("google") / "bert", SMALL, stddev=0.2)


@pytest.fixture(scope="module")
def expected(google_dir: Path) -> np.ndarray:
    return pooled_outputs(build_classifier(google_dir, HEADS), random_batch(SMALL, [20, 9]))


@pytest.mark.parametrize("kind", CASES, ids=str)
def test_row(kind: str, google_dir: Path, expected: np.ndarray, tmp_path: Path) -> None:
    row = CASES[kind]
    directory = shutil.copytree(google_dir, tmp_path / "bert")
    path = row.make(directory) or directory
    if row.refused is not None:
        with pytest.raises(PipelineError) as caught:
            build_classifier(path, HEADS)
        assert row.refused.replace("DIR", str(directory)) in str(caught.value)
        assert caught.value.exit_status == 2
        return
    assert read_bert_dir(path).checkpoint_sha256
    outputs = pooled_outputs(build_classifier(path, HEADS), random_batch(SMALL, [20, 9]))
    np.testing.assert_allclose(outputs, expected, atol=row.tolerance)


def test_the_document_has_a_row_for_each_case_and_no_other() -> None:
    rows = {}
    for line in DOCUMENT.read_text("utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip("|").split(" | ")]
        if line.startswith("| ") and len(cells) == 2 and cells[1].startswith(("loaded", "refused")):
            rows[cells[0]] = cells[1]
    assert list(rows) == list(CASES)
    for kind, row in CASES.items():
        assert rows[kind].startswith("loaded") if row.refused is None else f"`{row.refused}`" in rows[kind], kind
