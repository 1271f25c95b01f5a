"""Input that vanishes, changes, lies or is enormous: one clear line or a listed rejection; then a rerun succeeds."""

import gzip
import json
import os
import random
import re
import resource
import shutil
import subprocess
import sys
import time
import unicodedata
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline import inspect as inspect_command
from pipeline.command_line import run_command
from pipeline.corpus import reading
from pipeline.dataset.files import REJECTED_NAME
from pipeline.dataset.info import read_dataset_info
from pipeline.errors import one_line
from pipeline.verify import verify
from tests.faults.conftest import Note
from tests.support.corpora import (
    QUICK,
    Outcome,
    made_up_documents,
    made_up_text,
    make_config,
    own_logging,
    read_dataset,
    run_by_hand,
    write_lines,
    write_tree,
    write_zip,
)
from tests.support.workshop import REPOSITORY, Workshop, only_error, start, stop_job, wait_for_files

ANY_REJECTED = ("--max_rejected_fraction", "1")


def check_clean(output: Path) -> None:
    assert [str(fault) for fault in verify(str(output)).faults] == []


def rejections_of(output: Path) -> dict[str, str]:
    """Return key → reason and detail of what was not used."""
    lines = (output / REJECTED_NAME).read_text(encoding="utf-8").removesuffix("\n").split("\n")
    return {line["key"]: f"{line['reason']}: {line['detail']}" for line in map(json.loads, filter(None, lines))}


def check_rerun(workshop: Workshop, *options: str | Path, inputs: tuple[str | Path, ...] | None = None) -> None:
    """The same command succeeds once the fault is mended."""
    workshop.make("--overwrite", *options, inputs=inputs)
    check_clean(workshop.output)


def check_refused(
    workshop: Workshop, note: Note, kind: str, message: str, *options: str | Path, inputs: tuple[str | Path, ...]
) -> None:
    """The command says one line with status 2, and leaves no dataset."""
    outcome = workshop.run(*options, inputs=inputs)
    only_error(outcome, message)
    assert not workshop.output.exists()
    note(kind, outcome.stderr.strip().replace(str(workshop.root), "…"))


# What changes while it is read


def rewritten(path: Path) -> None:
    path.write_text("another text", encoding="utf-8")


def grown(path: Path) -> None:
    path.write_bytes(path.read_bytes() + "更多".encode())


def replaced_by_a_directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


def replaced_by_a_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


@pytest.mark.parametrize(
    ("change_fn", "reason"),
    [
        (Path.unlink, "unreadable: it was there at first, then: "),
        (rewritten, "changed: its text changed while the job was running"),
        (grown, "changed: its text changed while the job was running"),
        (lambda path: path.write_bytes(b""), "empty: nothing is left of 0 bytes"),
        (lambda path: path.write_bytes(b"\xff"), "not_utf-8: byte 0xff at position 0"),
        (replaced_by_a_directory, "unreadable: it was there at first, then: "),
        (replaced_by_a_pipe, "unreadable: it was there at first, then: "),
    ],
    ids=["vanished", "rewritten", "grown", "emptied", "garbled", "now a directory", "now a pipe"],
)
def test_files_that_change_between_the_passes(
    workshop: Workshop, note: Note, change_fn: Callable[[Path], object], reason: str
) -> None:
    path = workshop.corpus / "体育" / "3.txt"
    config = make_config(workshop.root, workshop.corpus, max_rejected_fraction=1.0)
    info = run_by_hand(config, lambda: change_fn(path))
    assert info.documents.read == 12 == info.documents.written + 1
    check_clean(workshop.output)
    (detail,) = rejections_of(workshop.output).values()
    assert detail.startswith(reason)
    note("file changes while it is read", detail.replace(str(workshop.root), "…"))
    if path.is_dir():
        path.rmdir()
    path.unlink(missing_ok=True)
    write_tree(workshop.corpus, made_up_documents(12))
    check_rerun(workshop)
    assert read_dataset_info(str(workshop.output)).documents.written == 12


@pytest.mark.parametrize("kind", ["tsv", "zip"])
@pytest.mark.parametrize("change", ["vanishes", "is cut", "is overwritten"])
def test_one_file_of_all_documents_that_changes_between_the_passes(
    workshop: Workshop, note: Note, kind: str, change: str
) -> None:
    lines = [f"{made_up_text(number, 10).split()[0]}\t{'体育科技'[number % 2 * 2 :][:2]}" for number in range(12)]
    path = workshop.root / f"corpus.{kind}"
    made = write_lines(path, lines) if kind == "tsv" else write_zip(path, made_up_documents(12))
    content = made.read_bytes()
    changes: dict[str, Callable[[], object]] = {
        "vanishes": path.unlink,
        "is cut": lambda: path.write_bytes(content[: len(content) // 2]),
    }
    config = make_config(workshop.root, path, max_rejected_fraction=1.0)
    info = run_by_hand(config, changes.get(change, lambda: path.write_bytes(bytes(len(content)))))
    assert info.documents.read == 12 > info.documents.written
    check_clean(workshop.output)
    note(f"{kind} {change} while it is read", next(iter(rejections_of(workshop.output).values())))
    path.write_bytes(content)
    check_rerun(workshop, inputs=(path,))


@pytest.mark.parametrize("seed", range(4))
def test_files_that_vanish_and_change_all_the_time(workshop: Workshop, note: Note, seed: int) -> None:
    """Beside a running job, until it ends: each document is written or listed."""
    documents = made_up_documents(1500)
    write_tree(workshop.corpus, documents)
    draw = random.Random(seed)
    process = start(workshop, *ANY_REJECTED, "--direct_num_workers", str(1 + seed % 2))
    num_changes = 0
    while process.poll() is None:
        path = workshop.corpus / draw.choice(list(documents))
        if draw.random() < 0.5:
            path.unlink(missing_ok=True)
        else:
            path.write_bytes(made_up_text(draw.randrange(10**6)).encode()[: draw.randrange(60)])
        num_changes += 1
        time.sleep(0.001)
    outcome = Outcome.of(process.wait(), *process.communicate())
    assert (outcome.status, outcome.stderr) == (0, "")
    info = read_dataset_info(str(workshop.output))
    assert info.documents.read == info.documents.written + sum(info.documents.rejected.values())
    check_clean(workshop.output)
    assert "Traceback" not in outcome.stdout
    note(
        "files vanish and change beside a running job",
        f"{num_changes} changes: rejected {dict(info.documents.rejected)}",
    )
    write_tree(workshop.corpus, documents)
    check_rerun(workshop)


def test_a_corpus_that_vanishes_as_a_whole(workshop: Workshop, note: Note) -> None:
    write_tree(workshop.corpus, made_up_documents(3000))

    def begin() -> subprocess.Popen[str]:
        shutil.rmtree(workshop.output, ignore_errors=True)
        return start(workshop, "--direct_num_workers", "1")

    stopped = stop_job(
        begin,
        lambda process, _: wait_for_files(process, workshop.output, ".partial-*"),
        lambda: any(workshop.output.glob(".partial-*")) and not any(workshop.output.glob(".partial-*/*")),
    )
    shutil.rmtree(workshop.corpus)
    stopped.resume()
    outcome = stopped.outcome()
    only_error(outcome, "rejected|no usable document|cannot list|no such")
    assert not workshop.output.exists()
    note("corpus vanishes", outcome.stderr.strip().replace(str(workshop.root), "…"))
    write_tree(workshop.corpus, made_up_documents(12))
    check_rerun(workshop)


# Archives that are cut, lie or bite


def test_truncated_archives(workshop: Workshop, note: Note) -> None:
    archive = write_zip(workshop.root / "a.zip", made_up_documents(3))
    content = archive.read_bytes()
    for size in sorted(random.Random(0).sample(range(1, len(content)), 12)):
        archive.write_bytes(content[:size])
        check_refused(
            workshop, note, "truncated zip", "not a complete zip archive|expected 2 tab-sep", inputs=(archive,)
        )
    archive.write_bytes(content)
    check_rerun(workshop, inputs=(archive,))


def write_bomb(path: Path, num_bytes: int, *, claimed: int | None = None) -> Path:
    """Write an archive of which one member inflates to far more than it is stored in, or than it claims."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        with archive.open("体育/bomb.txt", "w") as member:
            for _ in range(num_bytes >> 20):
                member.write(bytes(1 << 20))
        for key, text in made_up_documents(3).items():
            archive.writestr(key, text)
    if claimed is not None:
        data = bytearray(path.read_bytes())
        place = data.index(b"PK\x01\x02") + 24
        data[place : place + 4] = claimed.to_bytes(4, "little")
        path.write_bytes(data)
    return path


@pytest.mark.parametrize("claimed", [None, 10, 2**32 - 2], ids=["honest", "claims little", "claims much"])
def test_zip_bombs(workshop: Workshop, note: Note, claimed: int | None) -> None:
    archive = write_bomb(workshop.root / "bomb.zip", 300 << 20, claimed=claimed)
    assert archive.stat().st_size < 1 << 20
    outcome = workshop.run(*ANY_REJECTED, inputs=(archive,))
    assert (outcome.status, outcome.stderr) == (0, "")
    check_clean(workshop.output)
    detail = rejections_of(workshop.output)["体育/bomb.txt"]
    assert detail.startswith("too_large: more than ")
    note("zip bomb", detail)


def test_a_bomb_of_one_line(workshop: Workshop, note: Note, monkeypatch: pytest.MonkeyPatch) -> None:
    """A gzip file of which a line never ends."""
    monkeypatch.setattr("pipeline.corpus.streams.MAX_DOCUMENT_BYTES", 5 << 20)
    table = workshop.root / "t.tsv.gz"
    table.write_bytes(gzip.compress(b"a" * (8 << 20)))
    check_refused(workshop, note, "gzip bomb", "a line of more than 5,242,880 bytes", inputs=(table,))


@pytest.mark.parametrize(
    "name",
    ["/etc/passwd/x", "../../outside/1.txt", "体育/../../1.txt", "体育/..", "C:\\windows\\1.txt", "//host/x/1.txt"],
)
def test_names_in_archives_that_lead_elsewhere(workshop: Workshop, note: Note, name: str) -> None:
    """A name is a key and nothing else: no member is ever written anywhere under it."""
    before = sorted(workshop.root.rglob("*"))
    archive = write_zip(workshop.root / "a.zip", made_up_documents(3) | {name: "山水"})
    outcome = workshop.run(*ANY_REJECTED, "--second_label", "random", inputs=(archive,))
    assert (outcome.status, outcome.stderr) == (0, "")
    created = set(workshop.root.rglob("*")) - {*before, archive}
    assert all(workshop.output in (path, *path.parents) for path in created)
    check_clean(workshop.output)
    said = rejections_of(workshop.output) or {
        "": f"kept as the key of a document: {sorted(read_dataset(workshop.output)[1])}"
    }
    note("absolute and .. names in archives", f"{name}: {next(iter(said.values()))}")


def test_links_in_archives_are_not_followed(workshop: Workshop, note: Note) -> None:
    archive = workshop.root / "a.zip"
    secret = workshop.root / "secret.txt"
    secret.write_text("秘密", encoding="utf-8")
    with zipfile.ZipFile(archive, "w") as made:
        member = zipfile.ZipInfo("体育/link.txt")
        member.external_attr = 0o120777 << 16
        made.writestr(member, str(secret))
        made.writestr("科技/1.txt", "山水")
    workshop.make(inputs=(archive,))
    _, examples = read_dataset(workshop.output)
    assert set(examples) == {"体育/link.txt", "科技/1.txt"}
    assert len(examples["体育/link.txt"].features["indices"]) > 4, "its text is the link's target as text, not 秘密"
    note("symbolic link in an archive", "read as a text, not followed")


# Trees with odd inhabitants


def test_links_that_run_in_circles(workshop: Workshop, note: Note) -> None:
    (workshop.corpus / "circle").symlink_to(workshop.corpus)
    (workshop.corpus / "体育" / "up").symlink_to("..")
    (workshop.corpus / "体育" / "self.txt").symlink_to("self.txt")
    outcome = workshop.run(*ANY_REJECTED, "--second_label", "random")
    assert (outcome.status, outcome.stderr) == (0, "")
    check_clean(workshop.output)
    said = rejections_of(workshop.output)
    assert said["体育/self.txt"] == "unreadable: Too many levels of symbolic links"
    note("symlink loop", f"体育/self.txt: {said['体育/self.txt']}")
    note("symlink loop", f"体育/up: {said['体育/up']}")


def inspect(output: Path, key: str, capsys: pytest.CaptureFixture[str]) -> str:
    with own_logging():
        assert run_command(inspect_command.main, [str(output), "--key", key]) == 0
    return capsys.readouterr().out


NAMES = [
    b"two\nlines.txt",
    b"'quoted' \"twice\".txt",
    b"\xff\xfe.txt",
    "体育".encode("gb18030") + b".txt",
    b"\x1b[31mred.txt",
    b"back\\slash.txt",
    b"\\xff\\xfe.txt",
    b"tab\there.txt",
    "\u2028.txt".encode(),
    b" .txt",
    b"-n.txt",
    b"*?[a].txt",
    b"a" * 250 + b".txt",
]


def test_odd_file_names(workshop: Workshop, note: Note, capsys: pytest.CaptureFixture[str]) -> None:
    """Each has a key of its own, under which it is found again."""
    directory = os.path.join(os.fsencode(workshop.corpus), "科技".encode())
    for number, name in enumerate(NAMES):
        with open(os.path.join(directory, name), "wb") as stream:
            stream.write(made_up_text(100 + number).encode())
        with open(os.path.join(directory, b"bad" + name[-240:]), "wb") as stream:
            stream.write(b"\xff")
    outcome = workshop.run(*ANY_REJECTED)
    assert (outcome.status, outcome.stderr) == (0, "")
    check_clean(workshop.output)
    _, examples = read_dataset(workshop.output)
    rejected = rejections_of(workshop.output)
    assert len(examples) == 12 + len(NAMES)
    assert len(rejected) == len(NAMES)
    for key in examples:
        said = inspect(workshop.output, key, capsys)
        assert re.match(r"(train|dev|test), \w+-00000-of-00001\.tfrecord, record \d+, byte \d+\n", said)
        assert "\x1b" not in said
        if key not in made_up_documents(12):
            note("odd file name", f"{key!r}: {said.splitlines()[0]}")
    for key, detail in rejected.items():
        assert one_line(detail) in inspect(workshop.output, key, capsys)


def test_labels_that_differ_only_in_unicode_form(workshop: Workshop, note: Note) -> None:
    names = [unicodedata.normalize(form, "Catégorie été") for form in ("NFC", "NFD")]
    assert names[0] != names[1]
    write_tree(
        workshop.corpus, {f"{name}/{number}.txt": made_up_text(50 + number) for number, name in enumerate(names)}
    )
    lines = [f"{made_up_text(70 + number, 9).split()[0]}\t{name} " for number, name in enumerate(names)]
    table = write_lines(workshop.root / "t.tsv", lines)
    workshop.make("--second_label", "random", inputs=(workshop.corpus, table))
    check_clean(workshop.output)
    info, _ = read_dataset(workshop.output)
    assert info.labels["category"].names == (names[0], "体育", "科技", "股票")
    assert (
        info.splits["train"].label_counts["category"][0]
        + info.splits["dev"].label_counts["category"][0]
        + (info.splits["test"].label_counts["category"][0])
        == 4
    )
    note("labels in two Unicode forms", f"one label: {info.labels['category'].names[0]}")


# What is enormous


def test_a_document_larger_than_any_document(workshop: Workshop, note: Note, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "MAX_DOCUMENT_BYTES", 5 << 20)
    write_tree(workshop.corpus, {"体育/large.txt": b"x" * ((5 << 20) + 1)})
    outcome = workshop.run(*ANY_REJECTED)
    assert (outcome.status, outcome.stderr) == (0, "")
    detail = rejections_of(workshop.output)["体育/large.txt"]
    assert detail == "unreadable: more than 5,242,880 bytes"
    note("document beyond the limit", detail)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["tree", "zip", "tsv", "one word"])
def test_a_document_of_200_megabytes(workshop: Workshop, note: Note, kind: str) -> None:
    """Cut to max_len like any other, in bounded time and memory."""
    text = "a" * (200 << 20) if kind == "one word" else "山" * ((200 << 20) // 3)
    if kind in ("tree", "one word"):
        write_tree(workshop.corpus, {"体育/large.txt": text})
        path = workshop.corpus
    elif kind == "zip":
        path = write_zip(workshop.root / "a.zip", made_up_documents(3) | {"体育/large.txt": text})
    else:
        path = write_lines(workshop.root / "t.tsv", ["山水\t科技", f"{text}\t体育"])
    del text
    command: list[str | Path] = [
        sys.executable,
        "run_preprocess.py",
        "--input",
        path,
        "--vocab",
        workshop.vocab,
        "--output",
        workshop.output,
    ]
    started = time.monotonic()
    done = subprocess.run(
        [*command, *QUICK],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (6 << 30, 6 << 30)),
    )
    seconds = time.monotonic() - started
    assert (done.returncode, Outcome.of(done.returncode, done.stdout, done.stderr).stderr) == (0, "")
    check_clean(workshop.output)
    info = read_dataset_info(str(workshop.output))
    assert (
        sum(split.num_truncated for split in info.splits.values())
        + sum(split.num_unknown_tokens for split in info.splits.values())
        >= 1
    )
    note("document of 200 MB", f"{kind}: cut to max_len in {seconds:.0f} s")


# As many as the environment says; a million takes minutes of making and removing files.
NUM_EMPTY = int(os.environ.get("TWO_HEADED_BERT_EMPTY_DOCUMENTS", "20000"))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["zip", "tsv"])
def test_very_many_empty_documents(workshop: Workshop, note: Note, kind: str) -> None:
    if kind == "zip":
        path = workshop.root / "a.zip"
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("体育/full.txt", "山水")
            archive.writestr("科技/full.txt", "水")
            for number in range(NUM_EMPTY):
                archive.writestr(f"体育/{number}.txt", b"")
    else:
        path = workshop.root / "t.tsv"
        path.write_bytes("山水\t体育\n水\t科技\n".encode() + "\t体育\n".encode() * NUM_EMPTY)
    refused = workshop.run(inputs=(path,))
    only_error(refused, rf"{NUM_EMPTY:,} of {NUM_EMPTY + 2:,} documents rejected \(100\.0%\)")
    note("very many empty documents", refused.stderr.strip())
    started = time.monotonic()
    workshop.make(*ANY_REJECTED, inputs=(path,))
    seconds = time.monotonic() - started
    info = read_dataset_info(str(workshop.output))
    assert info.documents.rejected == {"empty": NUM_EMPTY}
    assert info.documents.written == 2
    check_clean(workshop.output)
    note("very many empty documents", f"{kind}: all listed in {seconds:.0f} s")


def test_compressed_tables_that_are_damaged(workshop: Workshop, note: Note) -> None:
    lines = [f"{made_up_text(number, 40).split()[0]}\t{'体育科技'[number % 2 * 2 :][:2]}" for number in range(300)]
    content = gzip.compress("\n".join(lines).encode())
    path = workshop.root / "t.tsv.gz"
    for at in (3, len(content) // 2, len(content) - 6):
        path.write_bytes(content[:at] + bytes([content[at] ^ 0xFF]) + content[at + 1 :])
        check_refused(workshop, note, "damaged gzip table", "damaged gzip stream", inputs=(path,))
    path.write_bytes(content[:-9])
    check_refused(workshop, note, "damaged gzip table", "damaged gzip stream", inputs=(path,))
    assert zlib.crc32(content)
    path.write_bytes(content)
    check_rerun(workshop, inputs=(path,))
