"""The command: which run, which split, which dataset, where the report goes, and only the table on its output."""

import dataclasses
import hashlib
import json
import logging
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from model.evaluate import main
from model.run.directory import RunDir
from model.run.finished import load_finished_run
from model.serving.predictor import Predictor
from pipeline.command_line import run_command
from pipeline.dataset.info import read_dataset_info
from pipeline.errors import EmptySplitError, InputFormatError, OptionError, SchemaMismatchError
from tests.model.report.test_page import check_self_contained
from tests.support.finished_runs import LABELS, TEXTS, VOCAB, make_finished_run, make_text_data_dir
from tests.support.tiny_dataset import tiny_examples, write_tiny_dataset

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return make_finished_run(tmp_path_factory.mktemp("evaluate"))


def read_report(directory: Path) -> Any:
    check_self_contained((directory / "report.html").read_text("utf-8"))
    return RunDir(directory).read_report().evaluation


def test_measures_what_prediction_says(run: Any, capsys: pytest.CaptureFixture[str]) -> None:
    before = (run / "report.json").read_bytes()
    assert main(["--run", str(run)]) == 0
    assert (run / "report.json").read_bytes() == before  # the run's own result stays
    report = read_report(run / "evaluation" / "test")
    right = {"category": np.arange(len(TEXTS)) % 3, "second": np.arange(len(TEXTS)) % 2}
    predicted = {
        head: values.argmax(axis=1)
        for head, values in Predictor(load_finished_run(str(run))).predict(TEXTS).probabilities.items()
    }
    for head, labels in right.items():
        hits = predicted[head] == labels
        assert report.heads[head].accuracy == pytest.approx(hits.mean())
        assert {m.key for m in report.heads[head].mistakes} == {f"texts:{n}" for n in np.flatnonzero(~hits)}
    both = np.all([predicted[head] == labels for head, labels in right.items()], axis=0)
    assert report.exact_match == pytest.approx(both.mean())
    table = capsys.readouterr().out.splitlines()
    assert table[0] == "test (11 examples)"
    assert [line.split()[0] for line in table[1:]] == ["head", "category", "second", "both", "independent", "joint"]
    assert f"{report.exact_match:.2%}" in table[5]


def test_a_run_is_complete_without_its_bert_directory(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = make_finished_run(tmp_path)
    (run / "bert").rename(tmp_path / "moved")
    assert main(["--run", str(run)]) == 0
    assert capsys.readouterr().out.startswith("test (11 examples)\n")


def test_split_decoding_and_output(run: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "deep" / "er"
    options = ["--split", "dev", "--decode", "joint", "--batch_size", "2", "--output", str(output)]
    assert main(["--run", str(run), *options]) == 0
    report = read_report(output)
    assert (report.split, report.num_examples, report.decode) == ("dev", 5, "joint")
    assert report.exact_match == report.decoding["joint"].exact_match
    assert capsys.readouterr().out.startswith("dev (5 examples, joint decoding)\n")


def test_another_dataset_with_the_same_labels(run: Any, tmp_path: Path) -> None:
    data_dir = make_text_data_dir(tmp_path / "other", TEXTS[:4])
    assert main(["--run", str(run), "--data", str(data_dir), "--output", str(tmp_path / "report")]) == 0
    assert read_report(tmp_path / "report").num_examples == 4
    page = (tmp_path / "report" / "report.html").read_text("utf-8")
    assert "The run was trained on another one." in page


def test_labels_are_matched_by_name(run: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Newer data without one of the run's categories, with a new one, and the second labels in another order."""
    names = ("医学", "娱乐", "体育"), ("静", "动")
    data_dir = make_text_data_dir(tmp_path / "newer", labels=names)
    output = tmp_path / "report"
    assert main(["--run", str(run), "--data", str(data_dir), "--output", str(output)]) == 0
    report = read_report(output)
    probabilities = Predictor(load_finished_run(str(run))).predict(TEXTS).probabilities
    predicted = {
        head: np.array(LABELS[column])[values.argmax(axis=1)]
        for column, (head, values) in enumerate(probabilities.items())
    }
    numbers = np.arange(len(TEXTS))
    right = {"category": np.array(names[0])[numbers % 3], "second": np.array(names[1])[numbers % 2]}
    known = right["category"] != "医学"
    assert report.unknown_labels == {"category": {"医学": 4}}
    assert report.num_examples == len(TEXTS)
    category, second = report.heads["category"], report.heads["second"]
    assert category.accuracy == pytest.approx((predicted["category"] == right["category"])[known].mean())
    assert second.accuracy == pytest.approx((predicted["second"] == right["second"]).mean())
    assert [(own.label, own.support) for own in category.classes] == [("体育", 3), ("财经/交易", 0), ("娱乐", 4)]
    assert [(own.label, own.support) for own in second.classes] == [("动", 5), ("静", 6)]
    both = (predicted["category"] == right["category"]) & (predicted["second"] == right["second"])
    assert report.exact_match == pytest.approx(both[known].mean())
    sentence = "category: 4 examples with labels that the run does not know are left out (医学 4)"
    assert capsys.readouterr().out.splitlines()[-1] == sentence
    assert sentence in (output / "report.html").read_text("utf-8")


def test_the_same_vocabulary_with_other_line_ends(run: Any, tmp_path: Path) -> None:
    data_dir = make_text_data_dir(tmp_path / "windows")
    content = b"\xef\xbb\xbf" + (data_dir / "vocab.txt").read_bytes().replace(b"\n", b"\r\n")
    (data_dir / "vocab.txt").write_bytes(content)
    info = read_dataset_info(str(data_dir))
    info = dataclasses.replace(info, vocab_sha256=hashlib.sha256(content).hexdigest())
    (data_dir / "dataset.json").write_text(info.to_json(), "utf-8")
    assert main(["--run", str(run), "--data", str(data_dir), "--output", str(tmp_path / "report")]) == 0


def test_every_way_to_measure_has_its_own_report(run: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Another dataset, whose texts are cut earlier."""
    caplog.set_level(logging.INFO)
    data_dir = make_text_data_dir(tmp_path / "other", TEXTS[:4], max_len=12)
    assert main(["--run", str(run), "--decode", "joint"]) == 0
    assert main(["--run", str(run), "--data", str(data_dir), "--split", "dev"]) == 0
    assert "its texts are cut at 12 tokens, those of training were at 20" in caplog.messages
    fingerprint = read_dataset_info(str(data_dir)).fingerprint[:12]
    assert read_report(run / "evaluation" / "test-joint").decode == "joint"
    assert read_report(run / "evaluation" / f"dev-{fingerprint}").num_examples == 4
    page = (run / "evaluation" / f"dev-{fingerprint}" / "report.html").read_text("utf-8")
    assert "Texts are cut at 12 tokens" in page


def test_one_head(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = make_finished_run(tmp_path, heads=("second",))
    assert main(["--run", str(run)]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 3
    assert read_report(run / "evaluation" / "test").decoding is None
    with pytest.raises(OptionError, match="--decode joint: needs the heads category and second"):
        main(["--run", str(run), "--decode", "joint"])


def test_refuses_what_does_not_fit(run: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    labels = (LABELS[0], ("高", "低"))
    write_tiny_dataset(tmp_path / "labels", {"test": tiny_examples([5])}, max_len=20, vocab=VOCAB, labels=labels)
    with pytest.raises(SchemaMismatchError, match=r"no example of test has labels that the run knows;.*: 高, 低"):
        main(["--run", str(run), "--data", str(tmp_path / "labels")])
    write_tiny_dataset(tmp_path / "vocab", {"test": tiny_examples([5])}, max_len=20, labels=LABELS)
    with pytest.raises(SchemaMismatchError, match="made with another vocabulary"):
        main(["--run", str(run), "--data", str(tmp_path / "vocab")])
    with pytest.raises(EmptySplitError, match="split 'validation' has no examples"):
        main(["--run", str(run), "--split", "validation"])
    for options, message in (
        (["--batch_size", "0"], "--batch_size: expected at least 1, got 0"),
        (["--output", "gs://bucket/report"], "--output gs://bucket/report: expected a local directory"),
        (["--output", f"{run}/"], "a run's directory, whose own report stays"),
        (["--data", "s3://bucket/data"], "--data s3://bucket/data: this TensorFlow reads local files and "),
    ):
        with pytest.raises(OptionError, match=message):
            main(["--run", str(run), *options])
    (tmp_path / "file").write_text("mine")
    assert run_command(main, ["--run", str(run), "--output", str(tmp_path / "file")]) == 1
    assert (tmp_path / "file").read_text() == "mine"
    assert capsys.readouterr().out == ""


def test_a_run_that_does_not_say_which_labels_go_together(tmp_path: Path) -> None:
    run = make_finished_run(tmp_path)
    config = json.loads((run / "config.json").read_text("utf-8"))
    for pairs, message in (
        (None, "label_pairs does not say which labels occur together"),
        ({"体育": ["跑"]}, "label_pairs names '跑', which is no label"),
        (["体育"], r"Expected `object \| null`, got `array` - at `\$.label_pairs`"),
    ):
        (run / "config.json").write_text(json.dumps(config | {"label_pairs": pairs}), "utf-8")
        with pytest.raises(InputFormatError, match=rf"config\.json: .*{message}"):
            main(["--run", str(run)])


def test_says_where_the_report_is(run: Any, tmp_path: Path) -> None:
    """On stderr, in one line below what TensorFlow prints when it is imported."""
    command = [sys.executable, "-m", "model.evaluate", "--run", str(run), "--output", str(tmp_path)]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert done.stderr.splitlines()[-1] == f"report in {tmp_path / 'report.html'}"
    assert done.stdout.startswith("test (11 examples)\n")
