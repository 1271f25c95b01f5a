"""The second pass: bytes that depend on the set of documents alone, duplicates, and what changed meanwhile."""

import gzip
import itertools
import os
import random
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.corpus.documents import normalize_text
from pipeline.corpus.options import InputSpec
from pipeline.dataset.files import read_lengths
from pipeline.dataset.info import FileInfo
from pipeline.errors import TooManyRejectedError
from pipeline.job import shard_writer
from pipeline.job.config import PreprocessConfig
from pipeline.job.preprocess import prepare
from pipeline.job.references import Reference
from pipeline.job.shard_writer import write_records, write_shard
from pipeline.tokenization.tokenizer import Tokenizer
from pipeline.tokenization.vocabulary import load_vocab
from tests.support.corpora import (
    digest_files,
    first_pass,
    made_up_documents,
    make_config,
    make_plan,
    make_staging,
    read_dataset,
    run_by_hand,
    texts_of,
    write_lines,
    write_tree,
    write_zip,
)

ALL_IN_TRAIN = (("train", 1.0),)


def read_train(config: PreprocessConfig) -> tuple[list[Reference], dict[str, Any]]:
    """Return the references of the split train, and the other arguments of `write_shard` for its first shard."""
    job = prepare(config)
    batches = first_pass(job)
    references = [reference for batch in batches for reference in batch.by_split.get("train", [])]
    tokenizer = Tokenizer.from_vocab(config.vocab_path, max_len=config.max_len)
    where = {"plan": make_plan(batches, job), "job": job, "staging_dir": make_staging(config)}
    return references, {"split": "train", "index": 0, "tokenizer": tokenizer} | where


def tree_config(tmp_path: Path, documents: dict[str, str], **changes: Any) -> PreprocessConfig:
    tree = write_tree(tmp_path / "tree", documents)
    return make_config(tmp_path, tree, **{"split_weights": ALL_IN_TRAIN} | changes)


def test_bytes_and_report_do_not_depend_on_the_order_of_references(tmp_path: Path) -> None:
    documents = made_up_documents(50) | {f"体育/again{i}.txt": "山水。" for i in range(4)}
    references, others = read_train(tree_config(tmp_path, documents))
    reports, files = [], []
    for seed in range(4):
        shuffled = random.Random(seed).sample(references, len(references))
        done: list[int] = []
        reports.append(write_shard(iter(shuffled), on_progress=done.append, **others))
        assert sum(done) == len(documents)
        files.append(digest_files(Path(others["staging_dir"])))
    assert all(report == reports[0] for report in reports)
    assert all(found == files[0] for found in files)
    assert list(files[0]) == ["train-00000-of-00001.tfrecord"]


@pytest.mark.parametrize("batch", [1, 3, 1_000])
def test_bytes_do_not_depend_on_the_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, batch: int) -> None:
    documents = made_up_documents(10) | {"体育/empty.txt": "\u200b"}
    config = tree_config(tmp_path, documents, max_rejected_fraction=0.5)
    references, others = read_train(config)
    expected = write_shard(references, **others)
    monkeypatch.setattr(shard_writer, "DOCUMENTS_PER_BATCH", batch)
    assert write_shard(references, **others) == expected


def test_order_is_by_hash_not_by_name(tmp_path: Path) -> None:
    config = tree_config(tmp_path, made_up_documents(60))
    run_by_hand(config)
    keys = list(read_dataset(Path(config.output_dir))[1])
    assert keys != sorted(keys)
    labels = [key.split("/")[0] for key in keys]
    # Neighbours of one label as often as chance has it (a third of 59), not in runs as they were listed.
    assert 8 < sum(one == other for one, other in itertools.pairwise(labels)) < 32


def test_stored_examples_are_the_tokenizers(tmp_path: Path) -> None:
    documents = made_up_documents(40) | {"体育/long.txt": "山水" * 40, "体育/unknown.txt": "山龘水"}
    config = tree_config(tmp_path, documents, max_len=20)
    info = run_by_hand(config)
    _, examples = read_dataset(Path(config.output_dir))
    tokenizer = Tokenizer.from_vocab(config.vocab_path, max_len=20)
    assert set(examples) == set(documents)
    for key, stored in examples.items():
        indices, segments = tokenizer.encode(normalize_text(documents[key]))
        assert (stored.features["indices"], stored.features["segments"]) == (indices, segments)
    lengths = [len(stored.features["indices"]) for stored in examples.values()]
    split = info.splits["train"]
    assert read_lengths(config.output_dir, info.splits["train"]).tolist() == lengths
    assert split.length_histogram == np.bincount(lengths, minlength=21).tolist()
    assert split.num_tokens == sum(lengths)
    full = Tokenizer.from_vocab(config.vocab_path, max_len=500)
    whole = {key: full.encode(normalize_text(text))[0] for key, text in documents.items()}
    assert split.num_truncated == sum(len(indices) > 20 for indices in whole.values())
    unknown = load_vocab(config.vocab_path)["[UNK]"]
    assert split.num_unknown_tokens == sum(s.features["indices"].count(unknown) for s in examples.values()) == 1
    counts = [sum(key.startswith(name) for key in documents) for name in info.labels["category"].names]
    assert split.label_counts["category"] == counts
    assert np.array(split.joint_label_counts).sum(axis=1).tolist() == counts


def test_a_document_that_just_fits_is_not_truncated(tmp_path: Path) -> None:
    config = tree_config(tmp_path, {"体育/1.txt": "山" * 8, "科技/2.txt": "水" * 9}, max_len=10)
    split = run_by_hand(config).splits["train"]
    assert (split.length_histogram[10], split.num_truncated) == (2, 1)


def test_duplicates_are_kept_and_counted(tmp_path: Path) -> None:
    documents = {"体育/1.txt": "山水", "体育/2.txt": "山水\n", "科技/3.txt": "\u3000山水", "科技/4.txt": "风云"}
    config = tree_config(tmp_path, documents)
    info = run_by_hand(config)
    _, examples = read_dataset(Path(config.output_dir))
    assert set(examples) == set(documents)
    assert (info.documents.duplicates, info.documents.written) == (2, 4)
    assert info.documents.conflicting == [["体育/1.txt", "体育/2.txt", "科技/3.txt"]]
    keys = [key for key in examples if key != "科技/4.txt"]
    assert keys == sorted(keys), "equal texts are neighbours, in the order of their keys"


def test_duplicates_are_dropped_and_listed(tmp_path: Path) -> None:
    documents = {"体育/1.txt": "山水", "体育/2.txt": "山水\n", "科技/3.txt": "\u3000山水", "科技/4.txt": "风云"}
    # Rejections that were asked for do not count against the allowed fraction.
    config = tree_config(tmp_path, documents, duplicates="drop", max_rejected_fraction=0.0)
    info = run_by_hand(config)
    _, examples = read_dataset(Path(config.output_dir))
    assert set(examples) == {"体育/1.txt", "科技/4.txt"}
    assert info.documents.rejected == {"duplicate": 2}
    assert (info.documents.read, info.documents.written, info.documents.duplicates) == (4, 2, 2)
    assert info.documents.conflicting == [["体育/1.txt", "体育/2.txt", "科技/3.txt"]]
    lines = (Path(config.output_dir) / "rejected-00000-of-00001.jsonl").read_text(encoding="utf-8").splitlines()
    assert lines[0] == '{"key": "体育/2.txt", "reason": "duplicate", "detail": "same text as 体育/1.txt"}'
    assert len(lines) == 2


def test_equal_texts_with_equal_labels_are_no_conflict(tmp_path: Path) -> None:
    info = run_by_hand(tree_config(tmp_path, {"体育/1.txt": "山水", "体育/2.txt": "山水", "科技/3.txt": "风"}))
    assert (info.documents.duplicates, info.documents.conflicting) == (1, [])


def test_a_document_of_which_the_tokenizer_leaves_nothing(tmp_path: Path) -> None:
    config = tree_config(tmp_path, {"体育/1.txt": "山水", "科技/2.txt": "\u200b\x01"}, max_rejected_fraction=0.5)
    info = run_by_hand(config)
    assert info.documents.rejected == {"empty": 1}
    assert (info.documents.read, info.documents.written) == (2, 1)


def test_empty_shards(tmp_path: Path) -> None:
    for compression, name in (("none", "a.tfrecord"), ("gzip", "a.tfrecord.gz")):
        file = write_records([], name, compression=compression, staging_dir=str(tmp_path))
        content = (tmp_path / name).read_bytes()
        assert file == FileInfo.of(name, 0, content)
        assert (gzip.decompress(content) if compression == "gzip" else content) == b""


def change(path: Path, text: str) -> Callable[[], object]:
    return lambda: path.write_text(text, encoding="utf-8")


def test_files_that_vanish_or_change_between_the_passes(tmp_path: Path) -> None:
    documents = made_up_documents(9)
    config = tree_config(tmp_path, documents, max_rejected_fraction=0.7)
    root = tmp_path / "tree"
    names = list(documents)

    def disturb() -> None:
        (root / names[0]).unlink()
        (root / names[1]).write_text("another text altogether", encoding="utf-8")
        (root / names[2]).write_bytes(b"\xff\xfe")
        (root / names[3]).write_text("\n \n", encoding="utf-8")
        (root / names[4]).unlink()
        os.mkfifo(root / names[4])
        # A change that normalization takes back is no change.
        (root / names[5]).write_text("\n" + documents[names[5]] + "\u3000", encoding="utf-8")

    info = run_by_hand(config, disturb)
    assert info.documents.rejected == {"changed": 1, "empty": 1, "not_utf-8": 1, "unreadable": 2}
    assert (info.documents.read, info.documents.written) == (9, 4)
    _, examples = read_dataset(Path(config.output_dir))
    assert set(examples) == set(names[5:])
    rejected = (Path(config.output_dir) / "rejected-00000-of-00001.jsonl").read_text(encoding="utf-8")
    assert "it was there at first, then: No such file" in rejected


def test_too_many_changes_between_the_passes_stop_the_job(tmp_path: Path) -> None:
    config = tree_config(tmp_path, made_up_documents(9))
    with pytest.raises(TooManyRejectedError, match="1 of 9 documents rejected"):
        run_by_hand(config, change(tmp_path / "tree" / "体育" / "0.txt", "changed"))
    assert not list(Path(config.output_dir).iterdir())


@pytest.mark.parametrize("disturbance", ["vanish", "truncate", "rewrite"])
def test_an_archive_that_vanishes_or_changes_between_the_passes(tmp_path: Path, disturbance: str) -> None:
    documents = made_up_documents(6)
    path = write_zip(tmp_path / "a.zip", documents, compression=zipfile.ZIP_STORED)
    config = make_config(tmp_path, path, max_rejected_fraction=1.0, split_weights=ALL_IN_TRAIN)
    last = list(documents)[-1]

    def disturb() -> None:
        if disturbance == "vanish":
            path.unlink()
        elif disturbance == "truncate":
            path.write_bytes(path.read_bytes()[:100])
        else:
            write_zip(path, documents | {last: "山" * 300}, compression=zipfile.ZIP_STORED)

    info = run_by_hand(config, disturb)
    assert info.documents.read == info.documents.written + sum(info.documents.rejected.values()) == 6
    if disturbance == "vanish":
        assert info.documents.rejected == {"unreadable": 6}
    elif disturbance == "truncate":
        assert info.documents.written == 0
    else:
        assert info.documents.written >= 3
        assert info.documents.rejected["changed"] >= 1


def test_a_table_that_changes_between_the_passes(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "t.tsv", ["山水\t体育", "风云\t科技", "日月\t股票"])
    config = make_config(tmp_path, path, max_rejected_fraction=1.0, split_weights=ALL_IN_TRAIN)
    info = run_by_hand(config, lambda: write_lines(path, ["山水\t体育", "云风\t科技"]))
    assert info.documents.rejected == {"changed": 1, "empty": 1}  # rewritten, and cut off
    assert info.documents.written == 1


def test_all_kinds_of_input_in_one_job(tmp_path: Path) -> None:
    inputs: list[Path | InputSpec] = [
        write_tree(tmp_path / "tree", {"体育/1.txt": "一山"}),
        InputSpec(str(write_zip(tmp_path / "a.zip", {"科技/1.txt": "二山"})), "dev"),
        write_lines(tmp_path / "t.tsv", ["三山\t股票"]),
    ]
    packed = tmp_path / "t.gz"
    packed.write_bytes(gzip.compress("四山\t体育\n".encode()))
    config = make_config(tmp_path, *inputs, packed, split_weights=ALL_IN_TRAIN)
    info = run_by_hand(config)
    _, examples = read_dataset(Path(config.output_dir))
    assert texts_of(info, examples) == {
        "tree/体育/1.txt": ("体育", "生活娱乐"),
        "a.zip/科技/1.txt": ("科技", "公共事务"),
        "t.tsv:1": ("股票", "经济金融"),
        "t.gz:1": ("体育", "生活娱乐"),
    }
    assert {key: stored.split for key, stored in examples.items()}["a.zip/科技/1.txt"] == "dev"
