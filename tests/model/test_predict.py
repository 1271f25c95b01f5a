"""Prediction: what `evaluate` says about the same texts, in the order of the lines, and never a line lost."""

import csv
import gzip
import io
import json
import random
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.csv
import pyarrow.parquet
import pytest

import model.predict
from model.predict import BadLine, PredictConfig, main, parse_line, predict_lines, read_blocks
from model.run.finished import load_finished_run
from model.serving.predictor import Predictor, predict_split
from pipeline.command_line import run_command
from pipeline.corpus.options import Columns
from pipeline.errors import InputFormatError, MissingInputError, OptionError
from tests.support.corpora import write_lines, write_tree
from tests.support.finished_runs import LABELS, TEXTS, make_finished_run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return make_finished_run(tmp_path_factory.mktemp("predict"))


@pytest.fixture(scope="module")
def finished(run: Any) -> Any:
    return load_finished_run(str(run))


@pytest.fixture(scope="module")
def predictor(finished: Any) -> Any:
    return Predictor(finished, batch_size=4)


@pytest.fixture(scope="module")
def expected(run: Any, finished: Any) -> Any:
    """What evaluation computes from the records of the same texts: head -> [N, classes]."""
    split = predict_split(finished.model, str(run.parent / "data"), "test", heads=["category", "second"], batch_size=3)
    return split.probabilities


def predict_file(run: Any, content: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], *options: Any) -> Any:
    path = tmp_path / "input"
    path.write_bytes(content)
    assert main(["--run", str(run), "--input", str(path), *options]) == 0
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_says_what_evaluation_says(predictor: Any, expected: Any) -> None:
    predictions = predictor.predict(TEXTS)
    assert not predictions.errors
    for head, probabilities in expected.items():
        np.testing.assert_allclose(predictions.probabilities[head], probabilities, atol=1e-6)
        assert set(probabilities.argmax(axis=1)) == set(range(probabilities.shape[1]))


def test_no_texts(predictor: Any) -> None:
    predictions = predictor.predict([])
    assert {head: values.shape for head, values in predictions.probabilities.items()} == {
        "category": (0, 3),
        "second": (0, 2),
    }


def test_order_does_not_depend_on_lengths(predictor: Any, expected: Any) -> None:
    order = random.Random(0).choices(range(len(TEXTS)), k=50)
    predictions = predictor.predict([TEXTS[number] for number in order])
    np.testing.assert_allclose(predictions.probabilities["category"], expected["category"][order], atol=1e-6)


def test_lines(run: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], expected: Any) -> None:
    texts = [text.replace("\n", "。") for text in TEXTS]
    answers = predict_file(run, "\r\n".join(texts).encode(), tmp_path, capsys)
    assert [answer["line"] for answer in answers] == list(range(1, len(TEXTS) + 1))
    for number, answer in enumerate(answers):
        assert list(answer) == ["line", "category", "second"]
        for head, names in zip(("category", "second"), LABELS, strict=True):
            best = int(expected[head][number].argmax())
            assert answer[head] == {
                "label": names[best],
                "probability": pytest.approx(float(expected[head][number][best]), abs=1e-6),
            }


def test_top_k(run: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], expected: Any) -> None:
    (answer,) = predict_file(run, TEXTS[0].encode(), tmp_path, capsys, "--top_k", "2")
    top = answer["category"]["top"]
    ranking = np.argsort(-expected["category"][0])[:2]
    assert [entry["label"] for entry in top] == [LABELS[0][label] for label in ranking]
    assert top[0] == {key: answer["category"][key] for key in ("label", "probability")}
    assert [entry["probability"] for entry in top] == pytest.approx(expected["category"][0][ranking].tolist(), abs=1e-6)
    (answer,) = predict_file(run, TEXTS[0].encode(), tmp_path, capsys, "--top_k", "9")
    assert len(answer["category"]["top"]) == 3
    assert sum(entry["probability"] for entry in answer["category"]["top"]) == pytest.approx(1)


def test_joint_decoding_answers_with_pairs_of_the_training_split(
    run: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], expected: Any
) -> None:
    """Of the fixture's 3 × 2 pairs all occur; without 体育+动 and 财经/交易+静 both heads must often give way."""
    content = "\n".join(text.replace("\n", "。") for text in TEXTS).encode()
    free = predict_file(run, content, tmp_path, capsys, "--decode", "joint")
    assert [(answer["category"], answer["second"]) for answer in free] == [
        (answer["category"], answer["second"]) for answer in predict_file(run, content, tmp_path, capsys)
    ]
    config = run / "config.json"
    before = config.read_text("utf-8")
    try:
        pairs = {"体育": ["静"], "财经/交易": ["动"], "娱乐": ["动", "静"]}
        config.write_text(json.dumps(json.loads(before) | {"label_pairs": pairs}), "utf-8")
        answers = predict_file(run, content, tmp_path, capsys, "--decode", "joint", "--top_k", "3")
    finally:
        config.write_text(before, "utf-8")
    allowed = [(category, second) for category, seconds in pairs.items() for second in seconds]
    ids = [{name: number for number, name in enumerate(names)} for names in LABELS]
    assert len(answers) == len(TEXTS)
    for number, answer in enumerate(answers):
        scores = {
            pair: expected["category"][number][ids[0][pair[0]]] * expected["second"][number][ids[1][pair[1]]]
            for pair in allowed
        }
        assert list(answer) == ["line", "category", "second", "top"]
        best = max(scores, key=scores.__getitem__)
        for head, name, known in zip(("category", "second"), best, ids, strict=True):
            probability = pytest.approx(float(expected[head][number][known[name]]), abs=1e-6)
            assert answer[head] == {"label": name, "probability": probability}
        ranked = [(entry["category"], entry["second"]) for entry in answer["top"]]
        assert ranked == sorted(allowed, key=scores.__getitem__, reverse=True)[:3]
        assert [entry["probability"] for entry in answer["top"]] == pytest.approx(
            [float(scores[pair]) for pair in ranked], abs=1e-6
        )
    changed = [a["category"]["label"] != b["category"]["label"] for a, b in zip(answers, free, strict=True)]
    assert any(changed)


def test_joint_decoding_needs_two_heads(tmp_path: Path) -> None:
    run = make_finished_run(tmp_path, heads=("second",))
    with pytest.raises(OptionError, match="--decode joint: needs the heads category and second, this run has second"):
        main(["--run", str(run), "--decode", "joint"])


def test_bad_lines_are_answered_in_their_place(
    run: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], expected: Any
) -> None:
    good = TEXTS[0].encode()
    lines = [b"", good, b"\xff\xfe", " \u3000\t".encode(), good[:-1], "\u200b\x01".encode(), good, b"\r", good]
    answers = predict_file(run, b"\n".join(lines) + b"\n", tmp_path, capsys)
    assert [answer["line"] for answer in answers] == list(range(1, 10))
    errors = {answer["line"]: answer["error"] for answer in answers if "error" in answer}
    assert set(errors) == {1, 3, 4, 5, 6, 8}
    for number in (1, 4, 8):
        assert "nothing is left" in errors[number]
    assert "byte 0xff at position 0" in errors[3]
    assert f"position {len(good) - 3}" in errors[5]
    assert "characters that are dropped" in errors[6]
    best = expected["category"][0].max()
    for number in (2, 7, 9):
        assert answers[number - 1]["category"]["probability"] == pytest.approx(float(best), abs=1e-6)


def test_nothing_but_bad_lines(run: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    answers = predict_file(run, b"\n\xff\n", tmp_path, capsys)
    assert ["error" in answer for answer in answers] == [True, True]
    assert predict_file(run, b"", tmp_path, capsys) == []


def test_columns_of_standard_input(
    run: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], expected: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [b"1\t" + TEXTS[1].encode() + b"\tx", b"1\tone short", "2\t你好BERT\ty\r".encode(), b"\t\t", b"a\tb\tc\td"]
    stream = tmp_path / "stdin"
    stream.write_bytes(b"\n".join(rows))
    with open(stream, encoding="utf-8") as opened:
        monkeypatch.setattr(sys, "stdin", opened)
        assert main(["--run", str(run), "--columns=-,text,category"]) == 0
    answers = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    best = pytest.approx(float(expected["category"][1].max()), abs=1e-6)
    assert answers[0]["category"]["probability"] == best
    assert answers[1] == {"line": 2, "error": "expected 3 columns (-,text,category), got 2"}
    assert answers[2]["category"]["probability"] == best
    assert "nothing is left" in answers[3]["error"]
    assert answers[4]["error"].endswith("got 4")


def write_documents(root: Any, kind: Any) -> list[Any] | list[str]:
    """Write the fixture's texts, with labels, as a file or a tree; return what says what it is."""
    labels = [LABELS[0][number % 3] for number in range(len(TEXTS))]
    if kind == "tree":
        write_tree(root / "input", {f"{number % 3}/{number:02d}.txt": text for number, text in enumerate(TEXTS)})
        return []
    if kind == "documents without labels":
        write_tree(root / "input", {f"{number:02d}.txt": text for number, text in enumerate(TEXTS)})
        return ["--levels", "none"]
    if kind == "csv":
        with open(root / "input", "w", encoding="utf-8", newline="") as stream:
            csv.writer(stream).writerows([("label", "review"), *zip(labels, TEXTS, strict=True)])
        return ["--input_format", "csv", "--columns", "text=review,category=label"]
    if kind == "jsonl":
        write_lines(root / "input", [json.dumps({"text": text}) for text in TEXTS])
        return []
    columns = {"text": list(TEXTS), "label": labels}
    pyarrow.parquet.write_table(pyarrow.table(columns), root / "input")
    return ["--columns", "text,category=label"]


@pytest.mark.parametrize("kind", ["tree", "documents without labels", "csv", "jsonl", "parquet"])
def test_documents_of_every_format(
    run: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], expected: Any, kind: str
) -> None:
    options = write_documents(tmp_path, kind)
    assert main(["--run", str(run), "--input", str(tmp_path / "input"), *options]) == 0
    answers = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert len(answers) == len(TEXTS)
    if kind == "tree":
        answers.sort(key=lambda answer: answer["key"].split("/")[1])
    for number, answer in enumerate(answers):
        best = int(expected["category"][number].argmax())
        assert answer["category"]["label"] == LABELS[0][best]
        probability = float(expected["category"][number][best])
        assert answer["category"]["probability"] == pytest.approx(probability, abs=1e-6)
        if kind in ("csv", "parquet"):
            assert answer["true"] == {"category": LABELS[0][number % 3]}
        assert ("true" in answer) == (kind in ("csv", "parquet", "tree"))
    assert len({answer["key"] for answer in answers}) == len(TEXTS)


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_a_table_of_answers(run: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], suffix: str) -> None:
    rows = [{"text": "你好", "label": "体育"}, {"text": ""}, {"text": ["no text"]}]
    write_lines(tmp_path / "input.jsonl", [json.dumps(row) for row in rows])
    output = tmp_path / f"answers.{suffix}"
    options = ["--columns", "text,category=label", "--output", str(output)]
    assert main(["--run", str(run), "--input", str(tmp_path / "input.jsonl"), *options]) == 0
    assert capsys.readouterr().out == ""
    read = pyarrow.csv.read_csv if suffix == "csv" else pyarrow.parquet.read_table
    first, second, third = read(output).to_pylist()
    assert first["key"] == "input.jsonl:1"
    assert first["category"] in LABELS[0]
    assert 0 < first["category_probability"] < 1
    assert first["true_category"] == "体育"
    assert second["error"].startswith("empty: nothing is left")
    assert third["error"].startswith("bad_line")
    assert third["category_probability"] is None


def test_without_columns_a_tab_is_part_of_the_text() -> None:
    assert parse_line(b"a\tb", None) == "a\tb"


def test_gzip(run: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = "\n".join(["你好", "", *["中国新闻"] * 3000]).encode()
    answers = predict_file(run, gzip.compress(content), tmp_path, capsys)
    assert len(answers) == 3002
    assert ["error" in answer for answer in answers[:3]] == [False, True, False]


def test_damaged_gzip_keeps_what_was_read(run: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "input.gz"
    path.write_bytes(gzip.compress("你好\n中国\n".encode()) + b"rubbish")
    with pytest.raises(InputFormatError, match="damaged gzip stream behind line 2"):
        main(["--run", str(run), "--input", str(path)])
    assert len(capsys.readouterr().out.splitlines()) == 2


def test_probabilities_are_written_as_they_are(predictor: Any) -> None:
    (answer,) = predict_lines(predictor, ["你好".encode()], top_k=3)
    written = [entry["probability"] for entry in answer["category"]["top"]]
    values = predictor.predict(["你好"]).probabilities["category"][0]
    assert np.array_equal(np.array(sorted(written), np.float32), np.sort(values))
    assert max(len(str(probability)) for probability in written) <= 14


class Pieces:
    """A stream that returns what it is given piece by piece, as a pipe does."""

    def __init__(self, *pieces: Any) -> None:
        self._pieces = list(pieces)
        self.asked = 0

    def read1(self, size: Any) -> Any:
        self.asked += 1
        return self._pieces.pop(0) if self._pieces else b""


def test_blocks_are_what_has_arrived() -> None:
    stream = Pieces(b"one\ntw", b"o", b"\n", b"three\nfour\nfi", b"ve")
    blocks = read_blocks(stream)
    assert next(blocks) == [b"one"]
    assert stream.asked == 1  # an answer does not wait for the next line
    assert list(blocks) == [[b"two"], [b"three", b"four"], [b"five"]]


@pytest.mark.parametrize("content", [b"", b"\n", b"a", b"a\n", b"\n\n", b"a\n\nb", b"\x0b\n\x85\r\r\n\xe2\x80\xa8"])
def test_as_many_lines_as_line_feeds(content: bytes) -> None:
    lines = [line for block in read_blocks(io.BytesIO(content)) for line in block]
    assert lines == content.removesuffix(b"\n").split(b"\n") if content else lines == []


def test_a_line_without_end_does_not_fill_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model.predict, "MAX_LINE_BYTES", 10)
    stream = Pieces(b"a\n" + b"x" * 8, *[b"x" * 8] * 1000, b"xx\nb" + b"y" * 9 + b"\n", b"z" * 11)
    lines = [line for block in read_blocks(stream) for line in block]
    assert [(line[:1], len(line)) for line in lines] == [(b"a", 1), (b"x", 16), (b"b", 10), (b"z", 11)]
    assert [isinstance(parse_line(line, None), str) for line in lines] == [True, False, True, False]
    refused = parse_line(lines[1], None)
    assert isinstance(refused, BadLine)
    assert "longer than 10 bytes" in refused.error


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"top_k": 0}, "--top_k: expected at least 1, got 0"),
        ({"batch_size": 0}, "--batch_size: expected at least 1, got 0"),
        ({"columns": Columns.parse("text=title")}, "--columns: lines of standard input have no names"),
        ({"output_path": "answers.txt"}, r"--output: expected a name that ends with \.csv or \.parquet"),
        ({"input_path": "gs://bucket/file"}, "--input gs://bucket/file: expected a local file"),
        ({"decode": "jointly"}, "--decode"),
    ],
)
def test_options(options: Any, message: str) -> None:
    with pytest.raises(OptionError, match=message):
        PredictConfig(run_dir="run", **options)


def test_refuses_what_is_no_finished_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(MissingInputError, match="no run here"):
        main(["--run", str(tmp_path)])
    run = make_finished_run(tmp_path)
    (run / "report.json").unlink()
    with pytest.raises(MissingInputError, match="not finished"):
        main(["--run", str(run)])
    assert run_command(main, ["--run", str(run)]) == 2
    assert capsys.readouterr().out == ""


def test_refuses_another_vocabulary(tmp_path: Path) -> None:
    run = make_finished_run(tmp_path)
    vocab = run / "vocab.txt"
    vocab.write_bytes(vocab.read_bytes().replace("中\n国\n".encode(), "国\n中\n".encode()))
    with pytest.raises(InputFormatError, match=r"vocab\.txt: not the vocabulary this run was trained with"):
        main(["--run", str(run)])


def test_standard_input(run: Any, expected: Any) -> None:
    command = [sys.executable, "-m", "model.predict", "--run", str(run)]
    repository = Path(__file__).resolve().parents[2]
    process = subprocess.Popen(
        command, cwd=repository, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    with process:
        assert process.stdin
        assert process.stdout
        process.stdin.write(TEXTS[0].encode() + b"\n")
        process.stdin.flush()
        # The answer comes while the input is still open.
        answer = json.loads(process.stdout.readline())
        output, log = process.communicate(b"\n" + TEXTS[1].encode())
    assert process.returncode == 0
    assert answer["line"] == 1
    assert answer["category"]["probability"] == pytest.approx(float(expected["category"][0].max()), abs=1e-6)
    rest = [json.loads(line) for line in output.splitlines()]
    assert [list(line)[:2] for line in rest] == [["line", "error"], ["line", "category"]]
    # Before its own logging starts, TensorFlow's C++ side writes to stderr whatever it is told.
    ours = [line for line in log.splitlines() if not re.match(rb"WARNING: All log messages before|[IWE]0000 ", line)]
    assert len(ours) == 2, log
    assert b"3 lines in" in ours[0]
    assert b"1 of them have no labels" in ours[1]
