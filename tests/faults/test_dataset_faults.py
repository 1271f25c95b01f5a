"""Damaged datasets, read by `verify` and by a training, and trainings with a damaged checkpoint or state."""

import gzip
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.dataset.info import DATASET_INFO_NAME
from pipeline.errors import CorruptShardError
from pipeline.input_pipeline.stored_split import open_split
from pipeline.verify import verify
from tests.faults.conftest import Note
from tests.support.corpora import made_up_text, write_tree
from tests.support.damaged import describe_again, rewrite_info
from tests.support.workshop import REPOSITORY, Workshop

PLACES = {
    "length": 0,
    "length's checksum": 9,
    "payload": 40,
    "payload's checksum": -2,
}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("compression", ["none", "gzip"])
def test_a_flipped_bit_in_a_shard(workshop: Workshop, note: Note, place: str, compression: str) -> None:
    """`verify` names the record, and the reader of a training does, too."""
    from pipeline.input_pipeline.reader import eval_dataset, explain_read_errors

    workshop.make("--compression", compression, "--split_weights", "train=1")
    path = next(workshop.output.glob("train-*.tfrecord*"))
    content = gzip.decompress(path.read_bytes()) if compression == "gzip" else path.read_bytes()
    damaged = bytearray(content)
    damaged[PLACES[place]] ^= 0x20
    # As large as before: what differs in size is refused before anything is read.
    path.write_bytes(gzip.compress(bytes(damaged), 6, mtime=0) if compression == "gzip" else bytes(damaged))
    (line,) = (str(fault) for fault in verify(str(workshop.output)).faults if fault.record is not None)
    assert f"{path.name}: record {0 if PLACES[place] >= 0 else 11} at byte " in line
    note(f"bit flip in the {place}", line)
    with pytest.raises(CorruptShardError) as caught, explain_read_errors(str(workshop.output), "train"):
        for _ in eval_dataset(str(workshop.output), split="train", global_batch_size=4):
            pass
    # Compressed again, it may have another size, which is noticed before its content is.
    assert line in str(caught.value) or (path.name in str(caught.value) and "bytes, got" in str(caught.value))
    workshop.make("--overwrite", "--compression", compression, "--split_weights", "train=1")
    assert verify(str(workshop.output)).faults == []


def places(value: object, inside: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Return the path to every field of a JSON value, and to the first two items of every list."""
    items = value.items() if isinstance(value, dict) else enumerate(value[:2]) if isinstance(value, list) else ()
    return [place for key, item in items for place in ((*inside, key), *places(item, (*inside, key)))]


def may_be_missing(place: tuple[Any, ...]) -> bool:
    """Tell what has no check of its own: information for people, and what earlier versions did not write."""
    for_people = place[0] in ("configuration", "versions") and len(place) > 1
    written_later = place[-1] in ("rejected_file", "in_several_splits")
    return (
        for_people or written_later or place == ("fingerprint",) or "features" in place or "conflicting" in place[:-1]
    )


@pytest.mark.parametrize("checksum", ["stale", "right"])
def test_each_field_of_the_description_removed(workshop: Workshop, note: Note, checksum: str) -> None:
    """A stale checksum reveals each; with a right one, the field's own check does, if it has one."""
    write_tree(workshop.corpus, {"体育/bad.txt": b"\xff", "科技/twin.txt": made_up_text(0)})
    workshop.make("--split_weights", "train=1", "--max_rejected_fraction", "1", "--max_len", "24")
    path = workshop.output / DATASET_INFO_NAME
    original = path.read_text(encoding="utf-8")
    found = places(json.loads(original))
    assert len(found) > 90
    for place in found:

        def remove(content: dict[str, Any], place: tuple[Any, ...] = place) -> None:
            holder: Any = content
            for key in place[:-1]:
                holder = holder[key]
            del holder[place[-1]]

        rewrite_info(workshop.output, remove, with_checksum=checksum == "right")
        faults = verify(str(workshop.output)).faults
        path.write_text(original, encoding="utf-8")
        name = ".".join(map(str, place))
        if checksum == "right" and (may_be_missing(place) or place == ("checksum",)):
            assert not faults, f"{name}: now it has a check of its own: {faults}"
            continue
        assert faults, name
        note(f"field of dataset.json removed, checksum {checksum}", f"{name}: {faults[0]}")
    assert verify(str(workshop.output)).faults == []


class Hostile:
    """Unpickling this calls a function."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self._path,)


def test_nothing_in_a_dataset_is_executed(workshop: Workshop, note: Note) -> None:
    """A lengths file with a right description, whose objects create a file when they are unpickled."""
    workshop.make("--split_weights", "train=1")
    trace = workshop.root / "executed"
    with pytest.raises(ValueError, match="Object arrays cannot be saved"):
        np.save(workshop.root / "refused.npy", np.array([Hostile(trace)]), allow_pickle=False)
    hostile = workshop.output / "train-lengths.npy"
    np.save(hostile, np.array([Hostile(trace)] * 12, dtype=object), allow_pickle=True)
    describe_again(workshop.output, hostile.name)
    (fault,) = verify(str(workshop.output)).faults
    assert fault.file == hostile.name
    with pytest.raises(CorruptShardError, match="not a NumPy file"):
        open_split(str(workshop.output), "train")
    assert not trace.exists()
    np.load(hostile, allow_pickle=True)
    assert trace.exists(), "unpickling does call it"
    note("hostile pickle in a lengths file", str(fault))


# Trainings: all in one process, because what TensorFlow costs to start is paid once.

RUN_ALL = """
import json, sys
from pipeline.command_line import run_command
import run_train
for arguments in json.loads(sys.argv[1]):
    print("status", run_command(run_train.main, arguments), file=sys.stderr, flush=True)
"""


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def garble(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0x40
    path.write_bytes(content)


def empty(path: Path) -> None:
    path.write_bytes(b"")


@pytest.mark.slow
def test_damaged_checkpoints_and_states(tmp_path: Path, note: Note) -> None:
    from tests.support.runs import TINY_BERT, make_bert_dir, make_inputs

    inputs = make_inputs(tmp_path)
    options = ["--batch_size", "8", "--learning_rate", "5e-3", "--save_every", "4", "--epochs", "1"]

    def command(output: str, bert: Path, *more: str) -> list[str]:
        paths = ["--data", inputs["data_dir"], "--bert", str(bert), "--output", str(tmp_path / output)]
        return [*paths, *options, *more]

    whole = Path(inputs["bert_dir"])
    # First an undisturbed run, to be damaged afterwards.
    run_all([command("first", whole)])
    commands, wanted = [], []
    for name in ("bert_model.ckpt.data-00000-of-00001", "bert_model.ckpt.index", "bert_config.json", "vocab.txt"):
        for damage in (cut, garble, empty):
            if (name, damage) == ("vocab.txt", garble):
                continue  # another vocabulary, which is refused by another test
            bert = shutil.copytree(whole, tmp_path / f"bert-{name}-{damage.__name__}")
            damage(bert / name)
            commands.append(command(f"run-{name}-{damage.__name__}", bert))
            wanted.append((f"{name} {damage.__name__}", 2))
    for damage in (cut, garble, empty):
        for name in ("arrays.npz", "state.json"):
            run = shutil.copytree(tmp_path / "first", tmp_path / f"state-{name}-{damage.__name__}")
            (run / "report.json").unlink()
            for state in (run / "state").iterdir():
                damage(state / name)
            commands.append(command(run.name, whole))
            wanted.append((f"every state's {name} {damage.__name__}", 2))
    # A state directory from another run: another model's, and one of the same shape under other options.
    larger = make_bert_dir(tmp_path / "larger", TINY_BERT.__class__(**(TINY_BERT.__dict__ | {"hidden_size": 32})))
    run_all([command("model", larger), command("seed", whole, "--seed", "7")])
    for other in ("model", "seed"):
        mixed = shutil.copytree(tmp_path / "first", tmp_path / f"mixed-{other}")
        (mixed / "report.json").unlink()
        shutil.rmtree(mixed / "state")
        shutil.copytree(tmp_path / other / "state", mixed / "state")
        commands.append(command(mixed.name, whole))
        wanted.append((f"state directory of a run with another {other}", 2))
    statuses, lines, stderr = run_all(commands)
    assert "Traceback" not in stderr
    assert len(statuses) == len(lines) == len(wanted), stderr
    for (kind, status), found, line in zip(wanted, statuses, lines, strict=True):
        assert found == status, (kind, line)
        assert "another" not in kind or "the state of another run (expected run" in line, line
        what = "state damaged, or of another run" if "state" in kind else "checkpoint damaged"
        note(what, f"{kind}: {line}".replace(str(tmp_path), "…"))
    # The same runs succeed once the files are whole again, or with leave to start over.
    statuses, _, stderr = run_all([command("run-vocab.txt-cut", whole), command("mixed-seed", whole, "--restart")])
    assert statuses == [0, 0], stderr


def run_all(commands: list[list[str]]) -> tuple[list[int], list[str], str]:
    """Run trainings one after the other in one process; return their statuses, their error lines, and all they said."""
    process = subprocess.run(
        [sys.executable, "-c", RUN_ALL, json.dumps(commands)],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
        timeout=500,
    )
    lines = process.stderr.splitlines()
    statuses = [int(line.split()[1]) for line in lines if line.startswith("status ")]
    return statuses, [line for line in lines if line.startswith("error: ")], process.stderr
