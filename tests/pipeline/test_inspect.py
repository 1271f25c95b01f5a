"""What a dataset holds, in words, as JSON and as one digest; and what became of one document."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from pipeline import inspect as inspect_command
from pipeline.command_line import run_command
from pipeline.corpus.options import InputSpec
from pipeline.dataset.info import read_dataset_info
from pipeline.dataset.summary import describe_dataset
from tests.support.corpora import (
    Outcome,
    made_up_documents,
    made_up_text,
    make_config,
    own_logging,
    read_dataset,
    run_quickly,
    write_tree,
)
from tests.support.tiny_dataset import write_tiny_dataset


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


@pytest.fixture(scope="module")
def large_dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a dataset of which two splits have more examples than are shown unasked, some of them long."""
    root = tmp_path_factory.mktemp("large")
    documents = {
        f"{('体育', '科技')[number % 2]}/{number}.txt": made_up_text(number, 40 + 2 * number) for number in range(40)
    }
    weights = (("train", 0.5), ("dev", 0.5))
    config = make_config(root, write_tree(root / "corpus", documents), num_shards=2, split_weights=weights)
    run_quickly(config)
    return Path(config.output_dir)


def inspect(dataset: Path, capsys: pytest.CaptureFixture[str], *options: str) -> Outcome:
    with own_logging():
        status = run_command(inspect_command.main, [str(dataset), *options])
    out, err = capsys.readouterr()
    return Outcome(status, out, err)


def trace(dataset: Path, key: str, capsys: pytest.CaptureFixture[str]) -> Outcome:
    return inspect(dataset, capsys, "--key", key)


# The whole dataset


def shown_examples(dataset: Path, split: str) -> list[str]:
    """Return what a dataset's examples should look like, in stored order."""
    info, examples = read_dataset(dataset)
    tokens = (dataset / "vocab.txt").read_text(encoding="utf-8").split("\n")
    shown = []
    for key, stored in examples.items():
        ids, (category,), (second,) = (stored.features[name] for name in ("indices", "label", "second_label"))
        names = [info.labels[head].names[index] for head, index in (("category", category), ("second", second))]
        labels = f"category {category} {names[0]}, second {second} {names[1]}"
        if stored.split == split:
            shown.append(
                f"  {key}  ({labels}; {len(ids)} tokens)\n    {' '.join(tokens[index] for index in ids[:64])}"
                + (f" … {len(ids) - 64} more" if len(ids) > 64 else "")
            )
    return shown


@pytest.mark.parametrize(
    ("options", "split", "num_examples"),
    [
        ([], "train", 3),
        (["--examples", "1"], "train", 1),
        (["--split", "dev"], "dev", 3),
        (["--split", "dev", "--examples", "100"], "dev", 100),
        (["--examples", "0"], "train", 0),
    ],
)
def test_summary_and_first_examples(
    large_dataset: Path, capsys: pytest.CaptureFixture[str], options: list[str], split: str, num_examples: int
) -> None:
    shown = shown_examples(large_dataset, split)
    assert 3 < len(shown) < 100
    assert any(" more" in example for example in shown[:3])
    expected = describe_dataset(read_dataset_info(str(large_dataset)), str(large_dataset)) + "\n"
    if num_examples:
        expected += "\n".join(["", f"first examples of {split}:", *shown[:num_examples], ""])
    assert inspect(large_dataset, capsys, *options) == Outcome(0, expected, "")


def test_the_description_itself(dataset: Path, capsys: pytest.CaptureFixture[str]) -> None:
    expected = (dataset / "dataset.json").read_text(encoding="utf-8")
    assert inspect(dataset, capsys, "--json") == Outcome(0, expected, "")


def test_the_description_cannot_steer_the_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tree = write_tree(tmp_path / "corpus", {"\x1b[31m\x9b红\u2028/1.txt": made_up_text(1), "绿/2.txt": "山"})
    config = make_config(tmp_path, tree, second_label="random")
    run_quickly(config)
    outcome = inspect(Path(config.output_dir), capsys, "--json")
    assert not {character for character in outcome.stdout if not character.isprintable()} - {"\n"}
    stored = (Path(config.output_dir) / "dataset.json").read_text(encoding="utf-8")
    assert "\x9b" in stored
    assert json.loads(outcome.stdout) == json.loads(stored)


def test_one_digest_of_it_all(dataset: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = "export LC_ALL=C; sha256sum * | sha256sum"
    said = subprocess.run(["sh", "-c", command], cwd=dataset, check=True, capture_output=True, text=True).stdout
    assert inspect(dataset, capsys, "--digest") == Outcome(0, said.split()[0] + "\n", "")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--examples", "-1"], "--examples: expected 0 or more, got -1"),
        (["--split", "none"], r"split 'none' has no examples \(there are: train"),
        (["--example", "1"], "unrecognized arguments: --example"),
    ],
)
def test_what_cannot_be_shown(
    dataset: Path, capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    outcome = inspect(dataset, capsys, *options)
    assert outcome.status == 2
    assert re.match(f"error: .*{message}", outcome.stderr)
    assert outcome.stderr.count("\n") == 1


def test_examples_are_of_the_first_split_that_has_any(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spec = InputSpec(str(write_tree(tmp_path / "corpus", {"体育/1.txt": "山水", "科技/2.txt": "水"})), "held_out")
    config = make_config(tmp_path, spec)
    run_quickly(config)
    outcome = inspect(Path(config.output_dir), capsys)
    assert (outcome.status, outcome.stderr) == (0, "")
    assert "\nfirst examples of held_out:\n" in outcome.stdout
    assert "\n  体育/1.txt  (category 0 体育, " in outcome.stdout
    everything_empty = write_tiny_dataset(tmp_path / "empty", {"train": []}, max_len=8)
    assert inspect(tmp_path / "empty", capsys) == Outcome(
        0, describe_dataset(everything_empty, str(tmp_path / "empty")) + "\n", ""
    )


@pytest.mark.parametrize("options", [[], ["--key", "体育/0.txt"]])
def test_another_vocabulary_is_refused(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str]
) -> None:
    """Its tokens would be shown for ids that mean others; a shorter one lacks some."""
    copy = Path(shutil.copytree(dataset, tmp_path / "dataset"))
    lines = (copy / "vocab.txt").read_text(encoding="utf-8").split("\n")
    for other in (lines[:12], [*lines[:10], *reversed(lines[10:-1]), ""]):
        (copy / "vocab.txt").write_text("\n".join(other), encoding="utf-8")
        outcome = inspect(copy, capsys, *options)
        assert outcome.status == 2
        assert re.fullmatch(r"error: .*: vocab\.txt: its checksum differs from dataset\.json; copy.*\n", outcome.stderr)
        assert inspect(copy, capsys, "--examples", "0").status == 0


# One document


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


def test_a_damaged_list_of_rejected_documents(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = Path(shutil.copytree(dataset, tmp_path / "dataset"))
    path = copy / "rejected-00000-of-00001.jsonl"
    path.write_bytes(path.read_bytes().replace(b'{"key": "\xe4\xbd\x93', b'{"key: "\xe4\xbd\x93'))
    for key in ("科技/two\nlines.txt", "体育/0.txt"):
        assert trace(copy, key, capsys) == trace(dataset, key, capsys)
    outcome = trace(copy, "体育/bad.txt", capsys)
    assert (outcome.status, outcome.stdout) == (2, "")
    message = (
        r"rejected-00000-of-00001\.jsonl: no document '体育/bad\.txt' can be found, but this list is damaged: .*\n"
    )
    assert re.fullmatch(f"error: .*/{message}", outcome.stderr)
