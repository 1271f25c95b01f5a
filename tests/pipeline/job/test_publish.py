"""All or nothing: what a job finds in its output, leaves there, and what an interruption at any point costs."""

import dataclasses
import fcntl
import functools
import json
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline import filesystem
from pipeline.dataset.info import DATASET_INFO_NAME, FileInfo, read_dataset_info
from pipeline.errors import OptionError, OutputExistsError, OutputWriteError, SchemaMismatchError, TooManyRejectedError
from pipeline.job import publish
from pipeline.job.config import PreprocessConfig
from pipeline.job.output_dir import STAGING_PREFIX, move_into_place, staging_directory
from pipeline.job.publish import publish_dataset
from pipeline.job.shard_writer import ShardReport
from pipeline.job.transforms import DIGESTS, divide_report, join_parts
from tests.support.corpora import (
    digest_files,
    first_pass,
    made_up_documents,
    make_config,
    make_plan,
    prepare,
    read_dataset,
    run_by_hand,
    second_pass,
    write_tree,
)

NUM_CLAIMERS = 8


@pytest.fixture
def config(tmp_path: Path) -> PreprocessConfig:
    return make_config(tmp_path, write_tree(tmp_path / "tree", made_up_documents(12)), num_shards=2)


def output_of(config: PreprocessConfig) -> Path:
    return Path(config.output_dir)


def with_other_content(config: PreprocessConfig) -> PreprocessConfig:
    """Return a job over the same output whose dataset differs in every file but the vocabulary, and has fewer."""
    return dataclasses.replace(config, seed=1, num_shards=1, overwrite=True)


def run_job(config: PreprocessConfig, meanwhile_fn: Callable[[], object] = lambda: None) -> None:
    """Run a job as `preprocess.run` does, without Beam; something may happen while it runs."""
    job = prepare(config)
    with staging_directory(config) as staging_dir:
        batches = first_pass(job)
        plan = make_plan(batches, job)
        meanwhile_fn()
        reports = second_pass(batches, plan=plan, job=job, staging_dir=staging_dir)
        publish_dataset(reports, plan=plan, job=job, staging_dir=staging_dir)


def stage(config: PreprocessConfig, name: str) -> tuple[str, Callable[[], str]]:
    """Write all shards of a job into a staging directory; return that and what publishes it."""
    staging_dir = output_of(config) / f"{STAGING_PREFIX}{name}"
    staging_dir.mkdir(parents=True)
    job = prepare(config)
    batches = first_pass(job)
    where: dict[str, Any] = {"plan": make_plan(batches, job), "job": job, "staging_dir": str(staging_dir)}
    return str(staging_dir), functools.partial(publish_dataset, second_pass(batches, **where), **where)


@contextmanager
def failing_at(monkeypatch: pytest.MonkeyPatch, call: int, error: BaseException) -> Iterator[list[str]]:
    """Make the given one of all renames and deletions fail, once; yield the calls that were made."""
    calls: list[str] = []

    def wrap(function: Callable[..., None], paths_of: Callable[..., str]) -> Callable[..., None]:
        def wrapped(*arguments: Any) -> None:
            calls.append(paths_of(*arguments))
            if len(calls) == call:
                raise error
            function(*arguments)

        return wrapped

    with monkeypatch.context() as patch:
        patch.setattr(filesystem, "rename", wrap(filesystem.rename, lambda source, _: f"rename {source}"))
        patch.setattr(filesystem, "delete", wrap(filesystem.delete, lambda paths: f"delete {paths}"))
        yield calls


def test_a_dataset_has_these_files_and_no_others(config: PreprocessConfig) -> None:
    run_job(config)
    assert sorted(os.listdir(output_of(config))) == [
        "dataset.json",
        "dev-00000-of-00002.tfrecord",
        "dev-00001-of-00002.tfrecord",
        "dev-lengths.npy",
        "rejected-00000-of-00001.jsonl",
        "test-00000-of-00002.tfrecord",
        "test-00001-of-00002.tfrecord",
        "test-lengths.npy",
        "train-00000-of-00002.tfrecord",
        "train-00001-of-00002.tfrecord",
        "train-lengths.npy",
        "vocab.txt",
    ]
    assert (output_of(config) / "vocab.txt").read_bytes() == Path(config.vocab_path).read_bytes()
    info, examples = read_dataset(output_of(config))
    assert info.documents.read == info.documents.written == len(examples) == 12
    found = digest_files(output_of(config))
    for split in info.splits.values():
        for file in split.files:
            assert found[file.name] == file.sha256
            assert (output_of(config) / file.name).stat().st_size == file.num_bytes
    assert found["vocab.txt"] == info.vocab_sha256


def test_rejected_documents_are_listed_as_json_lines(config: PreprocessConfig, tmp_path: Path) -> None:
    write_tree(tmp_path / "tree", {"体育/a\nb.txt": b"\xff", '体育/"q".txt': ""})
    info = run_by_hand(dataclasses.replace(config, max_rejected_fraction=0.5))
    lines = (output_of(config) / "rejected-00000-of-00001.jsonl").read_text(encoding="utf-8").split("\n")
    assert lines.pop() == ""
    found = [json.loads(line) for line in lines]
    assert [(line["key"], line["reason"]) for line in found] == [
        ('体育/"q".txt', "empty"),
        ("体育/a\nb.txt", "not_utf-8"),
    ]
    assert info.documents.rejected == {"empty": 1, "not_utf-8": 1}
    assert "体育" in lines[0], "readable, not escaped"


def test_an_existing_dataset_is_refused_and_nothing_changes(config: PreprocessConfig) -> None:
    run_job(config)
    before = digest_files(output_of(config))
    with pytest.raises(OutputExistsError, match="holds a dataset already; give another directory, or add --overwrite"):
        run_job(dataclasses.replace(config, seed=1))
    assert digest_files(output_of(config)) == before


def test_overwrite_replaces_and_leaves_no_stale_shard(config: PreprocessConfig, tmp_path: Path) -> None:
    run_job(config)
    (output_of(config) / "notes.md").write_text("mine")
    (output_of(config) / "plots").mkdir()
    other = with_other_content(config)
    run_job(other)
    fresh = dataclasses.replace(other, output_dir=str(tmp_path / "fresh"))
    run_job(fresh)
    found = digest_files(output_of(config))
    # What is not ours stays.
    assert found.pop("notes.md")
    assert found.pop("plots/") == ""
    assert found == digest_files(output_of(fresh))


def test_overwriting_with_the_same_gives_the_same(config: PreprocessConfig) -> None:
    run_job(config)
    before = digest_files(output_of(config))
    run_job(dataclasses.replace(config, overwrite=True))
    after = digest_files(output_of(config))
    assert {name for name in before if before[name] != after.get(name)} == set()


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_directory_with_other_things_is_refused(config: PreprocessConfig, overwrite: bool) -> None:
    output_of(config).mkdir()
    (output_of(config) / "thesis.tex").write_text("mine")
    before = digest_files(output_of(config))
    with pytest.raises(OutputExistsError, match=r"holds 1 other files \(thesis\.tex\); give a new directory"):
        run_job(dataclasses.replace(config, overwrite=overwrite))
    assert digest_files(output_of(config)) == before


def test_an_empty_directory_is_used(config: PreprocessConfig) -> None:
    output_of(config).mkdir()
    run_job(config)
    read_dataset(output_of(config))


def test_files_that_are_called_like_ours_are_replaced_with_overwrite_alone(config: PreprocessConfig) -> None:
    """Without a `dataset.json`, nothing says whose they are."""
    output_of(config).mkdir()
    (output_of(config) / "vocab.txt").write_text("mine")
    (output_of(config) / "my-lengths.npy").write_bytes(b"mine too")
    before = digest_files(output_of(config))
    with pytest.raises(OutputExistsError, match=r"holds 2 other files \(my-lengths.npy, vocab.txt\); give a new"):
        run_job(config)
    assert digest_files(output_of(config)) == before
    run_job(dataclasses.replace(config, overwrite=True))
    read_dataset(output_of(config))
    assert "my-lengths.npy" not in os.listdir(output_of(config))


def test_output_that_is_no_directory(config: PreprocessConfig, tmp_path: Path) -> None:
    output_of(config).write_text("a file")
    with pytest.raises(OptionError, match="expected a directory, found a file"):
        run_job(config)
    below = dataclasses.replace(config, output_dir=str(output_of(config) / "below"))
    with pytest.raises(OptionError, match="expected a directory, found a file"):
        run_job(below)
    assert output_of(config).read_text() == "a file"


def test_output_that_cannot_be_made(config: PreprocessConfig) -> None:
    with pytest.raises(OutputWriteError, match="cannot make this directory"):
        run_job(dataclasses.replace(config, output_dir="/proc/dataset"))


def test_a_failed_job_leaves_no_trace(config: PreprocessConfig, tmp_path: Path) -> None:
    failing = dataclasses.replace(config, vocab_path=config.vocab_path)
    write_tree(tmp_path / "tree", {"体育/bad.txt": b"\xff"})
    with pytest.raises(TooManyRejectedError):
        run_job(failing)
    assert not output_of(config).exists(), "a directory that the job made goes with it"
    output_of(config).mkdir()
    with pytest.raises(TooManyRejectedError):
        run_job(failing)
    assert digest_files(output_of(config)) == {}, "a directory that was there stays"
    os.unlink(tmp_path / "tree" / "体育" / "bad.txt")
    run_job(config)
    before = digest_files(output_of(config))
    write_tree(tmp_path / "tree", {"体育/bad.txt": b"\xff"})
    with pytest.raises(TooManyRejectedError):
        run_job(with_other_content(config))
    assert digest_files(output_of(config)) == before


def test_two_jobs_cannot_write_into_one_directory(config: PreprocessConfig) -> None:
    with staging_directory(config) as staging_dir:
        (Path(staging_dir) / "train-00000-of-00001.tfrecord").write_bytes(b"being written")
        with pytest.raises(OptionError, match="another job is writing there"):
            run_job(dataclasses.replace(config, overwrite=True))
        assert os.listdir(staging_dir) == ["train-00000-of-00001.tfrecord"]
    run_job(config)


def test_jobs_that_start_at_the_same_moment_claim_one_after_the_other(config: PreprocessConfig) -> None:
    """Whoever made the directory removes it when it has failed, perhaps just before the next one has its lock."""
    outcomes: list[str] = []
    inside: list[str] = []

    def claim() -> None:
        for _ in range(40):
            try:
                with staging_directory(config) as staging_dir:
                    inside.append(staging_dir)
                    (Path(staging_dir) / "train-00000-of-00001.tfrecord").touch()
                    outcomes.append("alone" if inside == [staging_dir] else f"not alone: {inside}")
                    inside.remove(staging_dir)
            except OptionError as error:
                outcomes.append("refused" if "another job is writing there" in str(error) else repr(error))
            except Exception as error:  # noqa: BLE001
                outcomes.append(repr(error))

    claimers = [threading.Thread(target=claim) for _ in range(NUM_CLAIMERS)]
    for claimer in claimers:
        claimer.start()
    for claimer in claimers:
        claimer.join()
    assert set(outcomes) <= {"alone", "refused"}
    assert outcomes.count("alone") > 1
    # One that found the directory, but not in time, takes it for the user's.
    assert not output_of(config).exists() or os.listdir(output_of(config)) == []


def test_a_dataset_that_was_published_meanwhile_is_not_replaced(config: PreprocessConfig, tmp_path: Path) -> None:
    other = dataclasses.replace(with_other_content(config), output_dir=str(tmp_path / "other"))
    run_job(other)
    with pytest.raises(
        OutputExistsError, match="published a dataset there while this one was running; give another directory"
    ):
        run_job(config, lambda: shutil.copytree(output_of(other), output_of(config), dirs_exist_ok=True))
    assert digest_files(output_of(config)) == digest_files(output_of(other))
    run_job(
        dataclasses.replace(config, overwrite=True),
        lambda: shutil.copytree(output_of(other), output_of(config), dirs_exist_ok=True),
    )
    assert read_dataset_info(config.output_dir).seed == config.seed


def test_what_a_killed_job_left_is_removed(config: PreprocessConfig) -> None:
    run_job(config)
    before = digest_files(output_of(config))
    remains = output_of(config) / f"{STAGING_PREFIX}deadbeef"
    remains.mkdir()
    (remains / "train-00000-of-00001.tfrecord.ab12cd34.tmp").write_bytes(b"half")
    with pytest.raises(OutputExistsError):
        run_job(config)
    assert digest_files(output_of(config)) == before


def count_moves(config: PreprocessConfig, tmp_path: Path) -> int:
    copy = tmp_path / "copy"
    shutil.copytree(output_of(config), copy)
    with pytest.MonkeyPatch.context() as monkeypatch, failing_at(monkeypatch, 0, OSError()) as calls:
        run_job(dataclasses.replace(with_other_content(config), output_dir=str(copy)))
    return len(calls)


@pytest.mark.parametrize("error", [OutputWriteError("the disk broke"), KeyboardInterrupt()], ids=["error", "Ctrl-C"])
def test_publishing_interrupted_anywhere_is_finished_by_the_next_job(
    config: PreprocessConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    """At no point may both datasets be lost: the former one is whole, or the new one is in the staging directory."""
    run_job(config)
    former = digest_files(output_of(config))
    saved = tmp_path / "saved"
    shutil.copytree(output_of(config), saved)
    other = with_other_content(config)
    fresh = dataclasses.replace(other, output_dir=str(tmp_path / "fresh"))
    run_job(fresh)
    wanted = digest_files(output_of(fresh))
    num_moves = count_moves(config, tmp_path)
    assert num_moves >= 10
    for call in range(1, num_moves + 1):
        shutil.rmtree(output_of(config))
        shutil.copytree(saved, output_of(config))
        with failing_at(monkeypatch, call, error), pytest.raises(type(error)):
            run_job(other)
        if (output_of(config) / DATASET_INFO_NAME).exists():
            found = digest_files(output_of(config))
            assert former.items() <= found.items(), f"move {call}: the former dataset is described but damaged"
        # The next job publishes the complete dataset, even if it is then refused without --overwrite.
        with pytest.raises(OutputExistsError):
            run_job(config)
        assert digest_files(output_of(config)) == wanted, f"move {call}"


def test_a_job_killed_while_publishing_is_finished_by_the_next_one(
    config: PreprocessConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As above for SIGKILL, which runs no `finally`."""
    run_job(config)
    _, publish_fn = stage(with_other_content(config), "0badcafe")
    with failing_at(monkeypatch, 4, KeyboardInterrupt()), pytest.raises(KeyboardInterrupt):
        publish_fn()
    assert not (output_of(config) / DATASET_INFO_NAME).exists()
    run_job(dataclasses.replace(config, overwrite=True))
    fresh = dataclasses.replace(config, output_dir=str(tmp_path / "fresh"))
    run_job(fresh)
    assert digest_files(output_of(config)) == digest_files(output_of(fresh))


def test_publishing_twice_is_publishing_once(config: PreprocessConfig) -> None:
    staging_dir, publish_fn = stage(config, "1")
    text = publish_fn()
    before = digest_files(output_of(config))
    assert publish_fn() == text
    assert digest_files(output_of(config)) == before
    assert not Path(staging_dir).exists()


def test_a_dataset_of_which_a_file_is_missing_is_not_published(config: PreprocessConfig) -> None:
    """Neither is anything of it deleted: what is there may be all there is."""
    run_job(config)
    other = with_other_content(config)
    staging_dir, publish_fn = stage(other, "0badcafe")
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(publish, "move_into_place", lambda *_, **__: None)
        publish_fn()
    (Path(staging_dir) / "train-00000-of-00001.tfrecord").unlink()
    before = digest_files(output_of(config))
    message = "1 of the files it lists are not there, such as train-00000-of-00001.tfrecord"
    with pytest.raises(SchemaMismatchError, match=message):
        move_into_place(config.output_dir, staging_dir, overwrite=True)
    with pytest.raises(
        OutputExistsError, match=rf"cannot publish \(.*{message}\); .* or add --overwrite to discard it"
    ):
        run_job(config)
    assert digest_files(output_of(config)) == before
    run_job(other)
    assert not Path(staging_dir).exists()
    assert read_dataset_info(config.output_dir).seed == other.seed


def test_moving_waits_for_a_mover_that_is_still_alive(config: PreprocessConfig) -> None:
    staging_dir, publish_fn = stage(config, "1")
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(publish, "move_into_place", lambda *_, **__: None)
        publish_fn()
    descriptor = os.open(output_of(config), os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    mover = threading.Thread(target=move_into_place, args=(config.output_dir, staging_dir), kwargs={"overwrite": False})
    mover.start()
    mover.join(0.1)
    assert mover.is_alive()
    assert not (output_of(config) / DATASET_INFO_NAME).exists()
    os.close(descriptor)
    mover.join()
    read_dataset(output_of(config))


def test_an_incomplete_staging_directory_is_never_published(config: PreprocessConfig) -> None:
    staging_dir, _ = stage(config, "1")
    move_into_place(config.output_dir, staging_dir, overwrite=False)
    assert os.listdir(output_of(config)) == [f"{STAGING_PREFIX}1"]
    run_job(config)
    assert read_dataset_info(config.output_dir).documents.written == 12


def test_a_worker_that_outlives_its_job_cannot_bring_half_a_dataset_back(config: PreprocessConfig) -> None:
    """It may still write after its job has given up and removed the staging directory."""
    with staging_directory(config) as staging_dir:
        (Path(staging_dir) / "train-00000-of-00002.tfrecord").write_bytes(b"x")
    with pytest.raises(OutputWriteError, match="cannot write: No such file or directory"):
        filesystem.write_atomically(os.path.join(staging_dir, DATASET_INFO_NAME), b"{}")
    assert not output_of(config).exists()


@pytest.mark.parametrize("step", ["write", "rename"])
def test_full_disk(config: PreprocessConfig, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    run_job(config)
    before = digest_files(output_of(config))
    full = OSError(28, "No space left on device")

    def fail(*_: Any) -> None:
        raise full

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync" if step == "write" else "replace", fail)
        with pytest.raises(OutputWriteError, match="cannot write: No space left on device; free some space"):
            run_job(with_other_content(config))
    assert digest_files(output_of(config)) == before


def test_what_splits_share_is_counted_in_parts() -> None:
    """No element of the job holds the digests of all examples, however many there are."""
    draw = np.random.default_rng(0)
    digests = {(split, index): draw.integers(0, 3_000, 400, np.uint64) for split in "abc" for index in range(2)}
    groups: dict[tuple[str, int], list[Any]] = {}
    for (split, index), values in digests.items():
        file = FileInfo.of(f"{split}{index}", len(values), b"")
        for key, part in divide_report(ShardReport(split=split, index=index, file=file, ids_digests=values.tobytes())):
            groups.setdefault(key, []).append(part)
    reports = [report for group in groups.items() for report in join_parts(group)]
    assert [report.file.name for report in reports if report.file] == [f"{s}{i}" for s, i in digests]
    assert not any(report.ids_digests for report in reports)
    sizes = [sum(len(part) for _, part in group) for (split, _), group in groups.items() if split == DIGESTS]
    assert sum(sizes) == 8 * 6 * 400
    assert max(sizes) < sum(sizes) / 10
    sets = [set(np.concatenate([digests[split, 0], digests[split, 1]]).tolist()) for split in "abc"]
    shared = (sets[0] & sets[1]) | (sets[0] & sets[2]) | (sets[1] & sets[2])
    assert sum(report.num_in_several_splits for report in reports) == len(shared) > 100


def test_read_is_written_plus_rejected_always(config: PreprocessConfig, tmp_path: Path) -> None:
    write_tree(tmp_path / "tree", {"stray.txt": "x", "体育/e.txt": "", "体育/b.txt": b"\xff", "体育/again.txt": "山"})
    write_tree(tmp_path / "tree", {"科技/again.txt": "山", "科技/nothing.txt": "\u200b"})
    changed = dataclasses.replace(config, max_rejected_fraction=1.0, duplicates="drop")
    documents = run_by_hand(changed).documents
    assert documents.rejected == {"duplicate": 1, "empty": 2, "no_category": 1, "not_utf-8": 1}
    assert documents.read == documents.written + 5 == 18
