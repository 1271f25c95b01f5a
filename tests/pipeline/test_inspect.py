"""What became of one document: where it stands, or why it does not."""

import re
from pathlib import Path

import pytest

from pipeline import inspect as inspect_command
from pipeline.command_line import run_command
from tests.pipeline.corpora import (
    Outcome,
    made_up_documents,
    make_config,
    own_logging,
    read_dataset,
    run_quickly,
    write_tree,
)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("inspected")
    documents = made_up_documents(9) | {
        "体育/bad.txt": b"\xff",
        "科技/two\nlines.txt": b" ",
        "股票/short.txt": "山水 bert".encode(),
    }
    config = make_config(root, write_tree(root / "corpus", documents), num_shards=2, max_rejected_fraction=1.0)
    run_quickly(config)
    return Path(config.output_dir)


def trace(dataset: Path, key: str, capsys: pytest.CaptureFixture[str]) -> Outcome:
    with own_logging():
        status = run_command(inspect_command.main, [str(dataset), "--key", key])
    out, err = capsys.readouterr()
    return Outcome(status, out, err)


def test_split_shard_record_labels_and_tokens_of_every_document(
    dataset: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    info, examples = read_dataset(dataset)
    for key, stored in examples.items():
        outcome = trace(dataset, key, capsys)
        assert (outcome.status, outcome.stderr) == (0, "")
        place, labels, tokens = outcome.stdout.splitlines()
        found = re.fullmatch(rf"{stored.split}, {re.escape(stored.shard)}, record (\d+), byte (\d+)", place)
        assert found
        in_shard = [other for other, at in examples.items() if at.shard == stored.shard]
        assert in_shard[int(found[1])] == key
        assert labels.startswith(f"{key}  (category {stored.features['label'][0]} {key.split('/')[0]}, second ")
        assert len(tokens.split()) == len(stored.features["indices"])
    assert trace(dataset, "股票/short.txt", capsys).stdout.splitlines()[2].split() == [
        "[CLS]",
        "山",
        "水",
        "bert",
        "[SEP]",
    ]
    assert info.documents.written == len(examples) == 10


@pytest.mark.parametrize(
    ("key", "said"),
    [
        ("体育/bad.txt", "体育/bad.txt: rejected: not_utf-8: byte 0xff at position 0: invalid start byte\n"),
        (
            "科技/two\nlines.txt",
            "科技/two\\nlines.txt: rejected: empty: nothing is left of 1 bytes after normalization\n",
        ),
    ],
)
def test_why_a_document_was_rejected(dataset: Path, capsys: pytest.CaptureFixture[str], key: str, said: str) -> None:
    assert trace(dataset, key, capsys) == Outcome(0, said, "")


@pytest.mark.parametrize("key", ["体育/none.txt", "体育", "", "\udcff"])
def test_a_document_that_was_not_there(dataset: Path, capsys: pytest.CaptureFixture[str], key: str) -> None:
    outcome = trace(dataset, key, capsys)
    assert (outcome.status, outcome.stdout) == (2, "")
    assert re.fullmatch(r"error: .*: no document .* among 12; keys look like 体育/123\.txt\n", outcome.stderr)
