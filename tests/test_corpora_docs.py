"""Every command of docs/corpora.md, run on a small file of the shape that it is for."""

import csv
import io
import json
import re
import shlex
import tarfile
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from tests.support.corpora import (
    QUICK,
    made_up_text,
    read_dataset,
    run_command_line,
    texts_of,
    write_lines,
    write_tree,
    write_vocab,
    write_zip,
)

REPOSITORY = Path(__file__).resolve().parents[1]
DOCS = (REPOSITORY / "docs" / "corpora.md").read_text("utf-8")
COMMANDS = re.findall(r"^    python run_preprocess\.py (.*)$", DOCS, re.MULTILINE)
CATEGORIES = ("体育", "科技", "股票")
NUM_DOCUMENTS = 12
TITLES = [made_up_text(number, 12).split()[0] for number in range(NUM_DOCUMENTS)]
BODIES = [f'他说："{title}"，完\n第二段' for title in TITLES]
LABELS = [CATEGORIES[number % 3] for number in range(NUM_DOCUMENTS)]
TREE = {f"{label}/{number}.txt": title for number, (title, label) in enumerate(zip(TITLES, LABELS, strict=True))}


def tabbed(*columns: list[str]) -> list[str]:
    return ["\t".join(row) for row in zip(*columns, strict=True)]


def quoted(delimiter: str, *rows: tuple[str, ...]) -> bytes:
    stream = io.StringIO()
    csv.writer(stream, delimiter=delimiter).writerows(rows)
    return stream.getvalue().encode()


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with every file that the commands name."""
    root = tmp_path_factory.mktemp("files")
    write_vocab(root / "vocab.txt")
    write_tree(root / "THUCNews", TREE)
    write_zip(root / "THUCNews.zip", {f"THUCNews/{key}": text for key, text in TREE.items()})
    with tarfile.open(root / "THUCNews.tar.gz", "w:gz") as archive:
        archive.add(root / "THUCNews", "THUCNews")
    write_tree(root / "fudan", {key: text.encode("gbk") for key, text in TREE.items()} | {"体育/list.dat": b"\x00"})
    write_tree(root / "news", {f"{'动静静'[CATEGORIES.index(key.split('/')[0])]}/{key}": t for key, t in TREE.items()})
    write_lines(root / "titles.tsv", tabbed(TITLES, LABELS))
    cnews = {"cnews.train.txt": tabbed(LABELS[:8], TITLES[:8]), "cnews.val.txt": tabbed(LABELS[8:], TITLES[8:])}
    for name, lines in cnews.items():
        write_lines(root / name, lines)
    write_zip(root / "cnews.zip", {f"cnews/{name}": "\n".join(lines) for name, lines in cnews.items()})
    write_lines(root / "class.txt", CATEGORIES)
    write_lines(root / "train.txt", tabbed(TITLES, [f"{CATEGORIES.index(label)}.0" for label in LABELS]))
    toutiao = [f"655{i}_!_10{i % 3}_!_{LABELS[i]}_!_{TITLES[i]}_!_词,词" for i in range(NUM_DOCUMENTS)]
    write_lines(root / "toutiao_cat_data.txt", toutiao)
    tnews = [{"label": "1", "label_desc": label, "sentence": t} for t, label in zip(TITLES, LABELS, strict=True)]
    for name, part in (("train", tnews[:8]), ("dev", tnews[8:])):
        write_lines(root / "tnews" / f"{name}.json", [json.dumps(row, ensure_ascii=False) for row in part])
    rows = list(zip(LABELS, TITLES, BODIES, strict=True))
    (root / "reviews.csv").write_bytes(b"\xef\xbb\xbf" + quoted(",", ("label", "title", "review"), *rows))
    (root / "excel.txt").write_bytes("\r\n".join([*tabbed(TITLES, LABELS), ""]).encode("utf-16"))
    (root / "pandas.tsv").write_bytes(quoted("\t", *((label, body) for label, _, body in rows)))
    features = {"label": {"names": list(CATEGORIES), "_type": "ClassLabel"}, "sentence": {"dtype": "string"}}
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    for name, rows_of in (("train-00000-of-00001", slice(0, 8)), ("validation-00000-of-00001", slice(8, None))):
        columns = {"sentence": TITLES[rows_of], "label": [CATEGORIES.index(label) for label in LABELS[rows_of]]}
        (root / "data").mkdir(exist_ok=True)
        table = pyarrow.table(columns).replace_schema_metadata(metadata)
        pyarrow.parquet.write_table(table, root / "data" / f"{name}.parquet", row_group_size=3)
    lines = [f"__label__{label} {' '.join(t)}" for t, label in zip(TITLES, LABELS, strict=True)]
    write_lines(root / "fasttext.txt", lines)
    return root


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_reads_its_file(
    files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    monkeypatch.chdir(files)
    outcome = run_command_line(*shlex.split(command), "--vocab", "vocab.txt", "--output", tmp_path / "out", *QUICK)
    assert outcome.status == 0, outcome.stderr
    info, examples = read_dataset(tmp_path / "out")
    assert info.documents.read == info.documents.written == NUM_DOCUMENTS
    assert info.labels["category"].names == CATEGORIES
    labels = texts_of(info, examples)
    if "levels" in command:
        assert {(category, second) for category, second in labels.values()} == {
            ("体育", "动"),
            ("科技", "静"),
            ("股票", "静"),
        }
    assert sum(split.label_counts["category"][0] for split in info.splits.values()) == NUM_DOCUMENTS / 3
    is_published = "train=" in command or "cnews.zip" in command or "--input data" in command
    assert not is_published or list(info.splits) == ["train", "dev"]


def test_there_are_commands() -> None:
    assert len(COMMANDS) > 12
