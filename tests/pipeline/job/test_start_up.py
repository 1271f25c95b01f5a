"""The lines that a job logs before it starts to work, and what it measures of its corpus for them."""

import logging
import re
from pathlib import Path
from typing import Any

import pytest

from pipeline.corpus.options import InputSpec
from pipeline.corpus.tree import TreeSource
from pipeline.engines.named import EngineOptions
from pipeline.job.config import PreprocessConfig
from pipeline.job.preprocess import prepare, run
from pipeline.job.start_up import CorpusSize, measure_corpus, start_up_lines
from tests.support.corpora import VOCAB_TOKENS, made_up_documents, make_config, write_lines, write_tree, write_zip

LIMIT = 100 << 20


def lines_of(config: PreprocessConfig, engine: EngineOptions | None = None, **changes: Any) -> list[str]:
    job = prepare(config)
    size = measure_corpus(job.sources, limit_bytes=LIMIT)
    others: dict[str, Any] = {"num_workers": 1, "mode": "in_memory", "size": size} | changes
    return list(start_up_lines(job, engine=engine or EngineOptions(), **others))


def test_a_job_with_defaults(tmp_path: Path) -> None:
    config = make_config(tmp_path, write_tree(tmp_path / "tree", made_up_documents(12)))
    assert lines_of(config) == [
        f"inputs       1 tree: {tmp_path}/tree",
        "documents    12",
        "splits       train 0.8, dev 0.1, test 0.1",
        f"vocabulary   {tmp_path}/vocab.txt, {len(VOCAB_TOKENS)} tokens",
        "engine       this machine, 1 worker in this process",
        f"output       {tmp_path}/dataset",
    ]


def test_inputs_by_kind_pinned_splits_and_changed_options(tmp_path: Path) -> None:
    tables = [write_lines(tmp_path / f"{name}.tsv", [f"{name}\t体育"]) for name in "abcd"]
    archive = InputSpec(str(write_zip(tmp_path / "a.zip", {"科技/1.txt": "二山"})), "dev")
    config = make_config(tmp_path, *tables, archive, seed=3, split_weights=(("train", 1.0), ("test", 0.0)))
    assert lines_of(config, num_workers=2, mode="multi_processing") == [
        "options      seed=3",
        f"inputs       4 tsv: {tmp_path}/a.tsv, {tmp_path}/b.tsv, {tmp_path}/c.tsv, …",
        f"inputs       1 zip: {tmp_path}/a.zip",
        "splits       train 1, dev from 1 inputs of its own",
        f"vocabulary   {tmp_path}/vocab.txt, {len(VOCAB_TOKENS)} tokens",
        "engine       this machine, 2 processes",
        f"output       {tmp_path}/dataset",
    ]


def test_all_splits_pinned_a_large_tree_and_another_engine(tmp_path: Path) -> None:
    tree = InputSpec(str(write_tree(tmp_path / "tree", made_up_documents(3))), "train")
    size = CorpusSize(num_bytes=LIMIT, num_files=39_000, is_whole=False)
    lines = lines_of(make_config(tmp_path, tree), EngineOptions(runner="FlinkRunner"), size=size)
    assert lines[1:3] == ["documents    more than 39,000", "splits       train from 1 inputs of its own"]
    assert lines[4] == "engine       FlinkRunner"


def test_a_name_cannot_break_a_line(tmp_path: Path) -> None:
    tree = write_tree(tmp_path / "tr\nee", made_up_documents(3))
    assert lines_of(make_config(tmp_path, tree))[0] == f"inputs       1 tree: {tmp_path}/tr\\nee"


def test_listing_stops_at_the_limit(tmp_path: Path) -> None:
    tree = write_tree(tmp_path / "tree", made_up_documents(1_100))
    table = write_lines(tmp_path / "t.tsv", ["山\t体育"])
    sources = prepare(make_config(tmp_path, table, tree)).sources
    num_bytes = table.stat().st_size
    whole = CorpusSize(num_bytes=num_bytes + 1_100 * 2_700, num_files=1_100, is_whole=True)
    assert measure_corpus(sources, limit_bytes=LIMIT) == whole
    for limit_bytes, num_files in ((500 * 2_700, 500), (500 * 2_700 + 2 * num_bytes, 1_000), (num_bytes, 0)):
        expected = CorpusSize(num_bytes=limit_bytes, num_files=num_files, is_whole=False)
        assert measure_corpus(sources, limit_bytes=limit_bytes) == expected


def test_a_remote_source_is_not_listed() -> None:
    remote = TreeSource(path="gs://bucket/tree", split=None, key_prefix="")
    assert measure_corpus([remote], limit_bytes=LIMIT) == CorpusSize(num_bytes=LIMIT, num_files=0, is_whole=False)


def test_a_job_logs_them_before_it_starts(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    config = make_config(tmp_path, write_tree(tmp_path / "tree", made_up_documents(12)))
    with caplog.at_level(logging.INFO, logger="pipeline"):
        run(config)
    logged = [record.getMessage() for record in caplog.records if record.name.startswith("pipeline")]
    assert logged == lines_of(config)
    assert re.match("inputs ", logged[0])
