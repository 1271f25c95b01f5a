"""`run_preprocess.py` from its command line to the dataset directory: real data, golden bytes, and everything wrong."""

import dataclasses
import gzip
import hashlib
import json
import os
import signal
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import run_preprocess
from pipeline.corpus.documents import normalize_text
from pipeline.corpus.options import CorpusOptions
from pipeline.dataset.info import read_dataset_info
from pipeline.dataset.labels import read_taxonomy
from pipeline.engines.named import EngineOptions
from pipeline.job.config import PreprocessConfig
from tests.support.corpora import (
    QUICK,
    Outcome,
    digest_files,
    made_up_documents,
    made_up_text,
    read_dataset,
    run_command_line,
    texts_of,
    write_lines,
    write_tree,
    write_vocab,
    write_zip,
)
from tests.support.real_data import real_data
from tests.support.workshop import (
    StoppedJob,
    Workshop,
    is_alive,
    make_workshop,
    only_error,
    start,
    stop_job,
    wait_for,
    wait_for_files,
    wait_for_workers,
)


@pytest.fixture
def workshop(tmp_path: Path) -> Workshop:
    return make_workshop(tmp_path)


# Real documents


@pytest.fixture(scope="module")
def real_dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The 52 real documents, preprocessed with the defaults."""
    output = tmp_path_factory.mktemp("real") / "dataset"
    outcome = run_command_line(*real_arguments(real_data("fulltext", "THUCNews"), output), *QUICK)
    assert (outcome.status, outcome.stderr) == (0, "")
    assert "documents: 52 read = 52 written + 0 rejected (none)" in outcome.stdout
    return output


def real_arguments(corpus: Path, output: Path) -> list[str | Path]:
    return ["--input", corpus, "--vocab", real_data("bert_base_chinese", "vocab.txt"), "--output", output]


def test_real_documents_have_keras_berts_ids_and_their_labels(real_dataset: Path) -> None:
    import keras_bert

    from pipeline.tokenization.vocabulary import load_vocab

    corpus = real_data("fulltext", "THUCNews")
    info, examples = read_dataset(real_dataset)
    assert set(examples) == {path.relative_to(corpus).as_posix() for path in corpus.rglob("*.txt")}
    tokenizer = keras_bert.Tokenizer(load_vocab(real_data("bert_base_chinese", "vocab.txt")))
    taxonomy = read_taxonomy(None)
    labels = texts_of(info, examples)
    for key, stored in examples.items():
        text = normalize_text((corpus / key).read_text(encoding="utf-8"))
        indices, segments = tokenizer.encode(text, max_len=512)
        length = len(stored.features["indices"])
        # keras-bert pads, and its padding has the id 0, which no token of a text has.
        assert stored.features["indices"] == indices[:length]
        assert not any(indices[length:])
        assert stored.features["segments"] == segments[:length]
        assert labels[key] == (key.split("/")[0], taxonomy.parent(key.split("/")[0]))
    assert len(info.labels["category"]) == 14
    assert len(info.labels["second"]) == 3
    assert info.documents.read == info.documents.written == 52
    assert {stored.split for stored in examples.values()} == {"train", "dev", "test"}


def test_real_documents_from_an_archive_give_the_same_directory(real_dataset: Path, tmp_path: Path) -> None:
    corpus = real_data("fulltext", "THUCNews")
    documents = {f"THUCNews/{path.relative_to(corpus)}": path.read_bytes() for path in sorted(corpus.rglob("*.txt"))}
    archive = write_zip(tmp_path / "THUCNews.zip", documents)
    assert run_command_line(*real_arguments(archive, tmp_path / "dataset"), *QUICK).status == 0
    assert digest_files(tmp_path / "dataset") == digest_files(real_dataset)


def test_real_documents_with_worker_processes_give_the_same_directory(real_dataset: Path, tmp_path: Path) -> None:
    corpus = real_data("fulltext", "THUCNews")
    arguments = [*real_arguments(corpus, tmp_path / "dataset"), "--direct_num_workers", "3"]
    outcome = run_command_line(*arguments)
    assert (outcome.status, outcome.stderr) == (0, "")
    assert digest_files(tmp_path / "dataset") == digest_files(real_dataset)
    refused = run_command_line(*arguments)
    assert refused.status == 2
    assert digest_files(tmp_path / "dataset") == digest_files(real_dataset)


# What a dataset is made of

# File → SHA-256 of its content, of shards without compression, of `dataset.json` as `digest_of_info` takes it.
GOLDEN = {
    "dataset.json": "ad12c1df97dab40a5c1b91fe5793765f3b8cb3e0cbe474f453a28ab9b27c460e",
    "dev-00000-of-00002.tfrecord": "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
    "dev-00001-of-00002.tfrecord": "f402201fbea1e21ab872e0b193069c90eae4d4dc9fdc42a7a7399b4747749576",
    "dev-lengths.npy": "5c3b77ba6f192497449708bdb46ddec21d978ca0015c916de71872e2ef18bcc8",
    "rejected-00000-of-00001.jsonl": "7cd74b3cebc6cae6e609d4058f638a0866b5846d6beacfedbc24309ad48a7806",
    "test-00000-of-00002.tfrecord": "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
    "test-00001-of-00002.tfrecord": "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
    "test-lengths.npy": "0698e782887bb0dfadc446c2ecae6a9e9055d5c0f59c7e327f5a826675bb86cc",
    "train-00000-of-00002.tfrecord": "cb0f9ceebbfe700bb2178c1186bd6bd4a4c271761c117a19aca277da733981f5",
    "train-00001-of-00002.tfrecord": "56ec8a09d0bbd2415fa366e3f5971d569e9f831ddb15e6f78974a8c2f7f5ccc1",
    "train-lengths.npy": "48a82ea84a573797ed3919bb1749b2ac3ea286341d5333a686b25004e9469680",
    "vocab.txt": "1f2d361d36db30d20ba56bf686b1ba6203092440548c79a379c63c74dab4c063",
}


def digest_of_info(path: Path) -> str:
    """Return the SHA-256 of what `dataset.json` says, but for the versions that wrote it."""
    content = json.loads(path.read_text(encoding="utf-8"))
    del content["checksum"], content["versions"]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def make_golden_dataset(tmp_path: Path, *options: str) -> Path:
    made = Workshop(tmp_path)
    write_vocab(made.vocab)
    write_tree(made.corpus, made_up_documents(9))
    write_tree(made.corpus, {"体育/twin.txt": made_up_text(0), "科技/bad.txt": b"\xff"})
    made.make("--seed", "11", "--max_len", "24", "--num_shards", "2", "--max_rejected_fraction", "0.2", *options)
    return made.output


def test_golden_dataset(tmp_path: Path) -> None:
    """Every byte of a small dataset. If this fails, datasets of users change: raise the format version and say why."""
    output = make_golden_dataset(tmp_path)
    assert {**digest_files(output), "dataset.json": digest_of_info(output / "dataset.json")} == GOLDEN


def test_golden_dataset_compressed(tmp_path: Path) -> None:
    output = make_golden_dataset(tmp_path, "--compression", "gzip")
    found = digest_files(output)
    assert set(found) == {f"{name}.gz" if name.endswith(".tfrecord") else name for name in GOLDEN}
    for name, digest in GOLDEN.items():
        if name.endswith(".tfrecord"):
            # Versions of zlib may compress differently; what they compress may not differ.
            content = gzip.decompress((output / f"{name}.gz").read_bytes())
            assert hashlib.sha256(content).hexdigest() == digest
        elif name != "dataset.json":
            assert found[name] == digest


def test_gzip_shards_hold_the_same_records(workshop: Workshop, tmp_path: Path) -> None:
    workshop.make()
    _, plain = read_dataset(workshop.output)
    workshop.make("--compression", "gzip", "--overwrite")
    info, packed = read_dataset(workshop.output)
    assert [(key, stored.features) for key, stored in plain.items()] == [(k, s.features) for k, s in packed.items()]
    assert info.compression == "gzip"
    assert not list(workshop.output.glob("*.tfrecord"))
    for path in workshop.output.glob("*.tfrecord.gz"):
        gzip.decompress(path.read_bytes())


def test_published_splits_stay_and_class_indices_get_names(workshop: Workshop, tmp_path: Path) -> None:
    names = write_lines(tmp_path / "class.txt", ["科技", "股票", "体育"])
    train = write_lines(tmp_path / "train.txt", [f"{made_up_text(i, 10).split()[0]}\t{i % 3}" for i in range(9)])
    dev = write_lines(tmp_path / "dev.txt", [f"{made_up_text(i, 10).split()[0]}\t{i % 3}" for i in range(20, 24)])
    workshop.make("--category_names", names, inputs=(f"train={train}", f"dev={dev}"))
    info, examples = read_dataset(workshop.output)
    assert {key: stored.split for key, stored in examples.items()} == {
        **{f"train.txt:{line}": "train" for line in range(1, 10)},
        **{f"dev.txt:{line}": "dev" for line in range(1, 5)},
    }
    assert list(info.splits) == ["train", "dev"]
    assert info.labels["category"].names == ("科技", "股票", "体育")
    for key, stored in examples.items():
        first = 0 if key.startswith("train") else 20
        assert stored.features["label"] == [(first + int(key.split(":")[1]) - 1) % 3]


def test_second_label_from_a_column(workshop: Workshop, tmp_path: Path) -> None:
    rows = [("大", "a/b"), ("小", "c d"), ("大", "e")]
    table = write_lines(tmp_path / "t.tsv", [f"{second}\t山水{i}\t{name}" for i, (second, name) in enumerate(rows)])
    options = ["--second_label", "column", "--columns", "second,text,category"]
    workshop.make(*options, inputs=(table,))
    info, examples = read_dataset(workshop.output)
    assert sorted(texts_of(info, examples).values()) == sorted((name, second) for second, name in rows)
    assert info.labels["second"].names == ("大", "小")


def test_random_second_label_is_reproducible(workshop: Workshop) -> None:
    options = ["--second_label", "random", "--num_random_labels", "4"]
    workshop.make(*options)
    info, first = read_dataset(workshop.output)
    assert info.labels["second"].names == ("0", "1", "2", "3")
    workshop.make(*options, "--overwrite", "--split_weights", "train=1")
    _, second = read_dataset(workshop.output)
    assert {key: s.features["second_label"] for key, s in first.items()} == {
        key: s.features["second_label"] for key, s in second.items()
    }


def test_taxonomy_of_ones_own(workshop: Workshop, tmp_path: Path) -> None:
    taxonomy = write_lines(tmp_path / "taxonomy.tsv", ["体育\t动", "科技\t静", "股票\t静"])
    workshop.make("--taxonomy", taxonomy)
    info, examples = read_dataset(workshop.output)
    assert Counter(texts_of(info, examples).values()) == {("体育", "动"): 4, ("科技", "静"): 4, ("股票", "静"): 4}


@pytest.mark.parametrize("policy", ["keep", "drop"])
def test_duplicates(workshop: Workshop, policy: str) -> None:
    write_tree(workshop.corpus, {"科技/twin.txt": made_up_text(0), "体育/twin.txt": made_up_text(3)})
    workshop.make("--duplicates", policy)
    info, examples = read_dataset(workshop.output)
    documents = info.documents
    assert documents.duplicates == 2
    assert documents.conflicting == [["体育/0.txt", "科技/twin.txt"]]
    assert documents.read == 14
    assert len(examples) == (14 if policy == "keep" else 12)
    assert documents.rejected == ({} if policy == "keep" else {"duplicate": 2})
    for one, other in (("体育/0.txt", "科技/twin.txt"), ("体育/3.txt", "体育/twin.txt")):
        assert (other in examples) == (policy == "keep")
        if policy == "keep":
            assert examples[one].shard == examples[other].shard


def test_more_shards_than_documents(workshop: Workshop) -> None:
    workshop.make("--num_shards", "20", "--split_weights", "train=0.5,held_out=0.5,none=0")
    info, examples = read_dataset(workshop.output)
    assert len(examples) == 12
    assert {name: len(split.shards) for name, split in info.splits.items()} == {"train": 20, "held_out": 20}
    assert len(list(workshop.output.glob("*.tfrecord"))) == 40


def test_a_split_without_documents_is_there_and_empty(workshop: Workshop) -> None:
    write_tree(workshop.root / "one", {"体育/1.txt": "山水", "科技/1.txt": "山水"})
    workshop.make(inputs=(workshop.root / "one",))
    info = read_dataset_info(str(workshop.output))
    assert sorted(split.num_examples for split in info.splits.values()) == [0, 0, 2]


CASED_VOCAB = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "NBA", "Lakers", "Zürich", *"夺冠在"]
CAPITALS_WARNING = "3 entries have capitals (NBA, Lakers, Zürich, …), which texts in lower case never reach; --cased"


@pytest.mark.parametrize(
    ("options", "tokenizer_config", "cased", "warns"),
    [
        ((), None, False, True),
        (("--no-cased",), None, False, False),
        (("--cased",), None, True, False),
        ((), '{"do_lower_case": false}', True, False),
        ((), '{"do_lower_case": true}', False, True),
        (("--no-cased",), '{"do_lower_case": false}', False, False),
    ],
)
def test_letter_case(
    workshop: Workshop, options: tuple[str, ...], tokenizer_config: str | None, cased: bool, warns: bool
) -> None:
    write_lines(workshop.vocab, CASED_VOCAB)
    if tokenizer_config is not None:
        (workshop.root / "tokenizer_config.json").write_text(tokenizer_config)
    write_tree(workshop.root / "cased", {"体育/1.txt": "NBA Lakers在Zürich夺冠", "娱乐/1.txt": "在夺冠"})
    outcome = workshop.run(*options, "--split_weights", "train=1", inputs=(workshop.root / "cased",))
    assert outcome.status == 0
    assert (CAPITALS_WARNING in outcome.stderr) == warns == bool(outcome.stderr)
    info = read_dataset_info(str(workshop.output))
    described = json.loads((workshop.output / "dataset.json").read_bytes())
    assert (info.cased, "cased" in described) == (cased, cased)
    assert info.split("train").num_unknown_tokens == (0 if cased else len("nbalakerszurich"))


def test_a_vocabulary_from_a_tokenizer_json(workshop: Workshop) -> None:
    """The dataset is that of the vocab.txt with the same entries."""
    workshop.make()
    content = workshop.vocab.read_bytes()
    before = digest_files(workshop.output)
    ids = {token: number for number, token in enumerate(content.decode().split("\n")[:-1])}
    (workshop.root / "tokenizer.json").write_text(json.dumps({"model": {"type": "WordPiece", "vocab": ids}}))
    workshop.make("--vocab", workshop.root / "tokenizer.json", "--overwrite")
    assert digest_files(workshop.output) == before


def test_every_option_reaches_the_configuration() -> None:
    """Each flag is changed once; no two flags may change the same thing, and none may change nothing."""
    needed = ["--input", "a", "--vocab", "v", "--output", "o"]
    changes = {
        "inputs": ["--input", "dev=b"],
        "input_format": ["--input_format", "jsonl"],
        "columns": ["--columns", "category,text,-"],
        "delimiter": ["--delimiter", "_!_"],
        "quoting": ["--quoting", "csv"],
        "header": ["--no-header"],
        "encoding": ["--encoding", "gb18030"],
        "levels": ["--levels", "second,category"],
        "glob": ["--glob", "*.txt"],
        "vocab_path": ["--vocab", "w"],
        "output_dir": ["--output", "p"],
        "category_names_path": ["--category_names", "c"],
        "cased": ["--cased"],
        "max_len": ["--max_len", "128"],
        "split_weights": ["--split_weights", "train=0.5,dev=0.5"],
        "seed": ["--seed", "1"],
        "second_label": ["--second_label", "random"],
        "taxonomy_path": ["--taxonomy", "t"],
        "num_random_labels": ["--num_random_labels", "4"],
        "num_shards": ["--num_shards", "3"],
        "compression": ["--compression", "gzip"],
        "duplicates": ["--duplicates", "drop"],
        "max_rejected_fraction": ["--max_rejected_fraction", "0.5"],
        "overwrite": ["--overwrite"],
    }

    def parse(arguments: list[str]) -> dict[str, object]:
        config = run_preprocess.parse_config(arguments)[0]
        found = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
        corpus = found.pop("corpus")
        return found | {field.name: getattr(corpus, field.name) for field in dataclasses.fields(corpus)}

    fields = (*dataclasses.fields(PreprocessConfig), *dataclasses.fields(CorpusOptions))
    assert set(changes) == {field.name for field in fields} - {"corpus"}
    for name, arguments in changes.items():
        base = needed if name != "num_random_labels" else [*needed, "--second_label", "random"]
        default = parse(base)
        changed = parse(base + arguments)
        assert {key for key in default if default[key] != changed[key]} == {name}


class StartedError(Exception):
    """Stands for a job that was started: a function by name, and what it was called with."""


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[Any, ...]]:
    """Return a function that starts the command with some options, and tells which function was given what."""

    def intercept(name: str) -> None:
        def stop(*arguments: object) -> None:
            raise StartedError(name, *arguments)

        monkeypatch.setattr(name, stop)

    for name in ("pipeline.job.preprocess.run", "pipeline.job.preprocess.dry_run"):
        intercept(name)

    def start_with(*options: str) -> tuple[Any, ...]:
        with pytest.raises(StartedError) as caught:
            run_preprocess.main(["--input", "a", "--vocab", "v", "--output", "o", *options])
        return caught.value.args

    return start_with


def test_every_option_reaches_the_engine(started: Callable[..., tuple[Any, ...]]) -> None:
    """As above, for what says where the job runs; Beam's own options go on as they are."""
    changes = {
        "runner": ["--runner", "FlinkRunner"],
        "num_workers": ["--direct_num_workers", "3"],
        "running_mode": ["--direct_running_mode", "multi_threading"],
        "beam_args": ["--job_name", "x", "--direct_runner_bundle_repeat=2"],
    }
    assert set(changes) == {field.name for field in dataclasses.fields(EngineOptions)}
    values: dict[str, Any] = {"runner": "FlinkRunner", "num_workers": 3, "running_mode": "multi_threading"}
    values["beam_args"] = ("--job_name", "x", "--direct_runner_bundle_repeat=2")
    for name, options in changes.items():
        function, config, engine = started(*options)
        assert (function, config.output_dir) == ("pipeline.job.preprocess.run", "o")
        assert engine == dataclasses.replace(EngineOptions(), **{name: values[name]})


def test_a_dry_run_starts_no_job(started: Callable[..., tuple[Any, ...]]) -> None:
    for options in ([], ["--direct_num_workers", "3"], ["--runner", "DataflowRunner", "--project", "p"]):
        function, *arguments = started(*options)
        assert function == "pipeline.job.preprocess.run"
        assert started("--dry_run", *options) == ("pipeline.job.preprocess.dry_run", *arguments)


# Everything wrong


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--split_weights", "train=0.8,dev=0.1"], "--split_weights: expected shares that sum to 1, got 0.9"),
        (["--split_weights", "train"], "--split_weights: expected NAME=NUMBER,…, got 'train'"),
        (
            ["--taxonomy", "t", "--second_label", "random"],
            "--taxonomy: only used with --second_label taxonomy, not random",
        ),
        (["--num_random_labels", "4"], "--num_random_labels: only used with --second_label random, not taxonomy"),
        (["--max_len", "2"], "--max_len: expected 3 to 65535"),
        (["--max_len", "many"], "--max_len: invalid int value: 'many'"),
        (["--num_shards", "few"], "--num_shards: expected auto or a number, got 'few'"),
        (["--num_shards", "0"], "--num_shards: expected auto or 1"),
        (["--compression", "zip"], "--compression: invalid choice"),
        (["--direct_num_worker=2"], "unknown option --direct_num_worker=2; did you mean"),
        (["--overwrit"], "unknown option --overwrit"),
        (["--tsv_columns", "text,category"], "--tsv_columns: this option is called --columns now"),
        (["--tsv_header"], "--tsv_header: this option is called --header now"),
        (["--tsv_encoding=gbk"], "--tsv_encoding: this option is called --encoding now"),
        (["--dry_run=False"], "--dry_run: ignored explicit argument 'False'"),
        (["another"], "unknown option another"),
        (["--direct_running_mode", "fast"], "--direct_running_mode: expected one of"),
        (["--direct_runner_bundle_repeat", "x"], "invalid int value: 'x'"),
        (["--vocab", "{root}/none.txt"], "none.txt: no such file"),
        (["--vocab", "{root}"], "expected a file, found a directory"),
        (["--vocab", "{root}/vocab.txt/deeper"], "cannot open this file: Not a directory"),
        (["--vocab", "{root}/corpus/体育/0.txt"], r"vocabulary .*: none of its .* lines is \[PAD\]"),
        (["--vocab", "{root}/binary"], "vocabulary .*, line 1: byte 0xFF is not UTF-8"),
        (["--taxonomy", "{root}/none.tsv"], "none.tsv: no such file"),
        (["--taxonomy", "{root}/vocab.txt"], "line 1: expected category<TAB>parent"),
        (["--taxonomy", "{root}/partial.tsv"], "category '(科技|股票)' has no parent in .*partial.tsv"),
        (["--category_names", "{root}/none.txt"], "none.txt: no such file"),
        (["--category_names", "{root}/one_name.txt"], "8 of 12 documents rejected .*unknown_category"),
        (["--second_label", "column"], "--second_label column: --columns, or --levels of a tree, must name"),
        (["--input_format", "zip"], "expected a zip file, found a directory"),
        (["--input", "{root}/none"], "none: no such file or directory"),
        (["--input", "{root}/corpus"], "is given twice"),
        (["--input", "{root}/empty"], "the directory is empty"),
        (["--input", "{root}/corpus/体育"], "expected 2 tab-separated .*all files lie in one directory"),
        (["--input", "{root}/nothing.tsv"], "the file is empty"),
        (["--input", "{root}/vocab.txt"], r"expected 2 tab-separated columns \(text,category\), got 1"),
        (["--input", "{root}/cut.zip"], "cut.zip: not a complete zip archive"),
        (["--input", "{root}/cut.gz"], "cut.gz: damaged gzip stream"),
        (["--input", "{root}/*.nothing"], "no file matches this pattern"),
        (["--input", "ftp://host/corpus"], "unknown file system 'ftp'"),
        (["--input", "train="], "expected PATH or SPLIT=PATH, got no path"),
        (["--input", "{root}/two\nlines"], r"two\\nlines: no such file or directory"),
        (["--output", "{root}/vocab.txt"], "expected a directory, found a file"),
        (["--output", "{root}/vocab.txt/below"], "expected a directory, found a file"),
        (["--output", "{root}/corpus"], "lies inside the input"),
        (["--output", "{root}"], r"holds \d+ other files"),
        (["--output", ""], "--output: expected a directory"),
        (["--header"], "--header: only used for TSV and CSV, and no --input is one"),
        (["--input", "{root}/bad"], r"2 of 14 documents rejected .*not_utf-8.*correct them, or raise"),
        (["--input", "{root}/odd"], "category '天气' has no parent in the built-in"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_wrong_command_lines_and_inputs(workshop: Workshop, options: list[str], message: str) -> None:
    root = workshop.root
    (root / "binary").write_bytes(b"\xff\xfe")
    (root / "empty").mkdir()
    (root / "nothing.tsv").touch()
    write_lines(root / "partial.tsv", ["体育\t动"])
    write_lines(root / "one_name.txt", ["体育"])
    write_tree(root / "bad", {"体育/bad.txt": b"\xff", "体育/empty.txt": " "})
    write_tree(root / "odd", {"天气/1.txt": "山"})
    (root / "cut.zip").write_bytes(write_zip(root / "whole.zip", made_up_documents(3)).read_bytes()[:-30])
    (root / "cut.gz").write_bytes(gzip.compress(os.urandom(100))[:-5])
    before = digest_files(root)
    only_error(workshop.run(*(option.format(root=root) for option in options)), message)
    assert digest_files(root) == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "the following arguments are required: --input, --vocab, --output; see run_preprocess.py --help"),
        (["--vocab", "v", "--output", "o"], "required: --input"),
        (["--in", "x"], "required"),  # no abbreviations
    ],
)
def test_incomplete_command_lines(arguments: list[str], message: str) -> None:
    only_error(run_command_line(*arguments), message)


def test_a_document_that_cannot_be_used_is_listed_and_the_rest_goes_on(workshop: Workshop) -> None:
    write_tree(workshop.corpus, {"体育/bad.txt": b"\xff", "体育/empty.txt": " \n"})
    outcome = workshop.run("--max_rejected_fraction", "0.2")
    assert outcome.status == 0
    assert "documents: 14 read = 12 written + 2 rejected (empty 1, not_utf-8 1)" in outcome.stdout
    lines = (workshop.output / "rejected-00000-of-00001.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["key"] for line in lines] == ["体育/bad.txt", "体育/empty.txt"]


def test_an_existing_dataset_stays_as_it_is(workshop: Workshop) -> None:
    workshop.make()
    before = digest_files(workshop.root)
    only_error(workshop.run("--seed", "1"), "holds a dataset already; give another directory, or add --overwrite")
    assert digest_files(workshop.root) == before
    # A job that fails after it has begun does not touch it either, not even with leave to overwrite.
    taxonomy = write_lines(workshop.root / "t.tsv", ["体育\t动"])
    before = digest_files(workshop.root)
    only_error(workshop.run("--overwrite", "--taxonomy", taxonomy), "has no parent")
    assert digest_files(workshop.root) == before
    workshop.make("--seed", "1", "--overwrite")
    assert read_dataset_info(str(workshop.output)).seed == 1


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 192 KiB."""
    mounted = tmp_path / "disk"
    mounted.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=192k", "tmpfs", str(mounted)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        pytest.skip(f"a full disk needs the right to mount one: {done.stderr.strip()}")
    yield mounted
    subprocess.run(["umount", str(mounted)], check=True)


@pytest.mark.parametrize("workers", ["1", "2"])
def test_full_disk(workshop: Workshop, small_disk: Path, workers: str) -> None:
    output = small_disk / "dataset"
    workshop.make("--output", output)
    before = digest_files(small_disk)
    write_tree(workshop.corpus, {f"体育/long{i}.txt": made_up_text(100 + i, 500) for i in range(200)})
    options = ["--output", str(output), "--overwrite"]
    failed = workshop.run(*options, "--direct_num_workers", workers)
    only_error(failed, "cannot write: No space left on device; free some space", status=1)
    assert digest_files(small_disk) == before
    for path in sorted(workshop.corpus.rglob("long*"))[5:]:
        path.unlink()
    workshop.make(*options)
    assert read_dataset_info(str(output)).documents.written == 17


def test_read_only_output(workshop: Workshop, tmp_path: Path) -> None:
    mounted = tmp_path / "disk"
    mounted.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "ro,size=64k", "tmpfs", str(mounted)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("a read-only file system needs the right to mount one")
    try:
        only_error(workshop.run("--output", mounted / "dataset"), "cannot make this directory: Read-only", status=1)
    finally:
        subprocess.run(["umount", str(mounted)], check=True)


# As a process


def test_as_a_process_it_says_one_line_and_no_more(workshop: Workshop) -> None:
    process = start(workshop, "--taxonomy", workshop.vocab)
    stdout, stderr = process.communicate(timeout=60)
    only_error(Outcome.of(process.returncode, stdout, stderr), "line 1: expected category<TAB>parent")


def test_output_in_a_poor_encoding_is_no_failure(workshop: Workshop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONIOENCODING", "ascii")
    process = start(workshop, *QUICK)
    outcome = Outcome.of(process.wait(60), *process.communicate())
    assert (outcome.status, outcome.stderr) == (0, "")
    assert "\\u4f53\\u80b2" in outcome.stdout


def make_big_workshop(root: Path, monkeypatch: pytest.MonkeyPatch) -> Workshop:
    """Return a workshop whose job takes a second or more with two workers, over a former dataset of other content."""
    made = Workshop(root)
    write_vocab(made.vocab)
    write_tree(root / "small", made_up_documents(12))
    made.make(inputs=(root / "small",))
    (made.root / "tmp").mkdir()
    monkeypatch.setenv("TMPDIR", str(made.root / "tmp"))
    monkeypatch.setattr(tempfile, "tempdir", None)
    lines = [
        f"{made_up_text(index, 200).strip().replace(chr(10), '')}\t{'体育科技'[index % 2 * 2 :][:2]}"
        for index in range(200)
    ]
    table = [line.replace("山", f"{number}") for number in range(60) for line in lines]
    write_lines(made.corpus, table)
    return made


@pytest.fixture
def big_workshop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workshop:
    return make_big_workshop(tmp_path, monkeypatch)


def check_after_kill(made: Workshop, former: dict[str, str], *, num_left: int) -> None:
    """One dataset is whole, and a rerun succeeds at once, even next to workers that are still dying."""
    found = digest_files(made.output)
    if found.get("dataset.json") == former["dataset.json"]:
        assert former.items() <= found.items()
    elif "dataset.json" in found:
        assert len(read_dataset(made.output)[1]) == 12_000
    else:
        assert list(made.output.glob(".partial-*/dataset.json")), "killed while publishing, but not to be finished"
    made.make("--overwrite")
    assert read_dataset_info(str(made.output)).documents.read == 12_000
    assert [name for name in os.listdir(made.output) if name.startswith(".") or name.endswith(".tmp")] == []
    # Beam leaves an empty directory where temporary files go; only a job that SIGKILL ends leaves its counts.
    left = [name for name in os.listdir(made.root / "tmp") if not name.startswith("beam-")]
    assert all(name.startswith("two-headed-bert-job-") for name in left)
    assert len(left) == num_left


@pytest.fixture(scope="module")
def num_seconds(tmp_path_factory: pytest.TempPathFactory) -> float:
    """Return how long such a job works when nothing happens to it."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        made = make_big_workshop(tmp_path_factory.mktemp("undisturbed"), monkeypatch)
        process = start(made, "--overwrite", "--direct_num_workers", "2")
        wait_for_workers(process)
        started = time.monotonic()
        process.communicate(timeout=120)
        return time.monotonic() - started


def stop_at(made: Workshop, moment: str | float, request: pytest.FixtureRequest) -> StoppedJob:
    """Stop a job while it is `starting` its workers, while it is `writing` shards, or after a share of its work."""

    def is_moment() -> bool:
        if moment == "starting":
            return True
        is_complete = any(made.output.glob(".partial-*/dataset.json"))
        return any(made.output.glob(".partial-*/*.tfrecord" if moment == "writing" else ".partial-*")) and (
            moment != "writing" or not is_complete
        )

    def wait(process: subprocess.Popen[str], num_missed: int) -> None:
        wait_for_workers(process)
        if moment == "writing":
            wait_for_files(process, made.output, ".partial-*/*.tfrecord")
        elif isinstance(moment, float):
            wait_for_files(process, made.output, ".partial-*")
            time.sleep(moment * request.getfixturevalue("num_seconds") * 0.8**num_missed)

    return stop_job(lambda: start(made, "--overwrite", "--direct_num_workers", "2"), wait, is_moment)


SHARES = [pytest.param(share, marks=pytest.mark.slow) for share in (0.05, 0.15, 0.3, 0.45, 0.6, 0.75, 0.85, 0.9, 0.95)]
MOMENTS = ["starting", "writing", *SHARES]


@pytest.mark.parametrize("moment", MOMENTS)
def test_kill_of_the_job(big_workshop: Workshop, moment: str | float, request: pytest.FixtureRequest) -> None:
    former = digest_files(big_workshop.output)
    stopped = stop_at(big_workshop, moment, request)
    stopped.kill(stopped.process.pid)
    assert stopped.outcome() == Outcome(-signal.SIGKILL, "", "")
    check_after_kill(big_workshop, former, num_left=1)
    wait_for(lambda: not any(map(is_alive, stopped.workers)), "the end of the workers")
    assert [name for name in os.listdir(big_workshop.output) if name.startswith(".")] == []


@pytest.mark.parametrize("moment", MOMENTS)
def test_kill_of_a_worker(big_workshop: Workshop, moment: str | float, request: pytest.FixtureRequest) -> None:
    former = digest_files(big_workshop.output)
    stopped = stop_at(big_workshop, moment, request)
    stopped.kill(stopped.workers[0])
    stopped.resume()
    only_error(stopped.outcome(), "a worker process died, killed from outside", status=1)
    check_after_kill(big_workshop, former, num_left=0)


@pytest.mark.parametrize("to_all", [False, True])
@pytest.mark.parametrize("moment", ["starting", "writing"])
def test_interrupt(big_workshop: Workshop, moment: str, to_all: bool, request: pytest.FixtureRequest) -> None:
    former = digest_files(big_workshop.output)
    stopped = stop_at(big_workshop, moment, request)
    stopped.resume()
    if to_all:
        stopped.signal_all(signal.SIGINT)  # as a terminal does
        stopped.signal_all(signal.SIGCONT)
    else:
        stopped.process.send_signal(signal.SIGINT)
    assert stopped.outcome() == Outcome(130, "", "interrupted\n")
    assert digest_files(big_workshop.output) == former
