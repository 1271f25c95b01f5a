"""The output directory of a job: claimed by one job at a time, and given its dataset when that is complete.

Everything is written into a staging directory inside the output directory first. Publishing is a series of renames
that can be interrupted anywhere and taken up again: as long as the staging directory holds a `dataset.json`, the
dataset is complete there, and whoever comes next finishes moving it. In an object store, which has no locks to tell
dead jobs from living ones, that takes `--overwrite`.
"""

import contextlib
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager

from pipeline import filesystem
from pipeline.dataset.files import REJECTED_NAME, is_ours
from pipeline.dataset.info import DATASET_INFO_NAME, VOCAB_NAME, DatasetInfo
from pipeline.errors import OptionError, OutputExistsError, OutputWriteError, SchemaMismatchError
from pipeline.job.config import PreprocessConfig

STAGING_PREFIX = ".partial-"


@contextmanager
def staging_directory(config: PreprocessConfig) -> Iterator[str]:
    """Claim the output directory for one job, and clean up after jobs that died there.

    Yields:
        The path of a new, empty staging directory. It is removed when the job ends, unless moving a complete dataset
        into place was interrupted: then the next job finishes that.

    Raises:
        OutputExistsError: the output holds a dataset (without `--overwrite`), or something else.
        OptionError: it is no directory, or another job is writing there.
        OutputWriteError: it cannot be written.
    """
    output_dir, overwrite = config.output_dir, config.overwrite
    is_remote = filesystem.is_remote(output_dir)
    existed = is_remote or os.path.exists(output_dir)
    staging_dir = filesystem.join(output_dir, STAGING_PREFIX + secrets.token_hex(4))
    with contextlib.ExitStack() as stack:
        # In one go, or two jobs could both find nothing in the way.
        with _locked(output_dir, make=True):
            stack.callback(_clean_up, output_dir, staging_dir, existed=existed)
            _finish_or_remove_leftovers(output_dir, overwrite=overwrite)
            _check_output(output_dir, overwrite=overwrite)
            filesystem.make_directory(staging_dir)
            if not is_remote:
                stack.callback(os.close, _lock_staging(staging_dir, output_dir))
        yield staging_dir


def check_output(config: PreprocessConfig) -> None:
    """Raise what `staging_directory` would, but change nothing."""
    output_dir, overwrite = config.output_dir, config.overwrite
    if not filesystem.is_remote(output_dir):
        place = os.path.abspath(output_dir)
        while not os.path.lexists(place):
            place = os.path.dirname(place)
        if not os.path.isdir(place):
            raise OptionError(f"{output_dir}: expected a directory, found a file; give another one")
        if not os.access(place, os.W_OK):
            raise OutputWriteError(f"{output_dir}: cannot make this directory: {place} cannot be written")
        if not os.path.exists(output_dir):
            return
    with _locked(output_dir):
        for staging_dir in _leftovers(output_dir, overwrite=overwrite):
            if not overwrite and filesystem.exists(filesystem.join(staging_dir, DATASET_INFO_NAME)):
                raise OutputExistsError(
                    f"--output {output_dir}: holds a dataset whose job died while publishing it; "
                    "give another directory, or add --overwrite"
                )
        _check_output(output_dir, overwrite=overwrite)


def _check_output(output_dir: str, *, overwrite: bool) -> None:
    if filesystem.exists(filesystem.join(output_dir, DATASET_INFO_NAME)):
        if not overwrite:
            raise OutputExistsError(
                f"--output {output_dir}: holds a dataset already; give another directory, or add --overwrite"
            )
        return
    # Without a description, nothing says that files which are called like ours are not somebody's own.
    others = [name for name in filesystem.list_names(output_dir) if not (overwrite and is_ours(name))]
    if others:
        raise OutputExistsError(
            f"--output {output_dir}: holds {len(others)} other files ({', '.join(others[:3])}); give a new directory"
        )


def _leftovers(output_dir: str, *, overwrite: bool) -> Iterator[str]:
    """Yield the staging directories of dead jobs, each locked until the next one is asked for.

    In an object store nobody can tell a dead job from one that is alive: what is not complete stays, and what is
    complete is for the user to judge, by the leave to replace.

    Raises:
        OptionError: a job is alive.
        OutputExistsError: it may be.
    """
    if filesystem.is_remote(output_dir):
        for path in filesystem.match(filesystem.join(output_dir, f"{STAGING_PREFIX}*", DATASET_INFO_NAME)):
            if not overwrite:
                raise OutputExistsError(
                    f"--output {output_dir}: a job is publishing a dataset there, or died at it ({path}); "
                    "wait for it, give another directory, or add --overwrite if no job is running"
                )
            yield path.rpartition("/")[0]
        return
    for name in sorted(os.listdir(output_dir)):
        if not name.startswith(STAGING_PREFIX):
            continue
        path = os.path.join(output_dir, name)
        lock = _lock_staging(path, output_dir)
        try:
            yield path
        finally:
            os.close(lock)


def _finish_or_remove_leftovers(output_dir: str, *, overwrite: bool) -> None:
    """Publish what a job had completed when it died, and remove what it had not."""
    for staging_dir in _leftovers(output_dir, overwrite=overwrite):
        try:
            # That job had leave to replace what is there, if there is anything.
            _move(output_dir, staging_dir, overwrite=True)
            _discard_incomplete(staging_dir)
        except SchemaMismatchError as error:
            if not overwrite:
                raise OutputExistsError(
                    f"--output {output_dir}: holds a dataset whose job died while publishing it, and which this "
                    f"version cannot publish ({error}); use the version that wrote it, give another directory, or add "
                    "--overwrite to discard it"
                ) from None
            filesystem.delete_directory(staging_dir)


def _lock_staging(staging_dir: str, output_dir: str) -> int:
    """Take the lock that tells a living job's staging directory from a dead one's."""
    lock = filesystem.try_lock(staging_dir)
    if lock is None:
        raise OptionError(
            f"--output {output_dir}: another job is writing there; wait for it, or give another directory"
        )
    return lock


def move_into_place(output_dir: str, staging_dir: str, *, overwrite: bool) -> None:
    """Publish a complete staging directory; safe to call again after an interruption at any point.

    Args:
        output_dir: where the dataset is to be.
        staging_dir: where it lies.
        overwrite: whether another dataset, which came to be there meanwhile, may be replaced.

    Raises:
        OutputExistsError: it may not.
        SchemaMismatchError: a file that the description lists is neither here nor there; nothing was moved.
    """
    # A worker outlives its killed job by seconds, and may be at it.
    with _locked(output_dir):
        _move(output_dir, staging_dir, overwrite=overwrite)


def _move(output_dir: str, staging_dir: str, *, overwrite: bool) -> None:
    complete = filesystem.join(staging_dir, DATASET_INFO_NAME)
    published = filesystem.join(output_dir, DATASET_INFO_NAME)
    if not filesystem.exists(complete):
        return
    text = filesystem.read_bytes(complete)
    described = DatasetInfo.from_json(text, complete)
    # Where a rename is a copy, an interruption may have left the same one in both places.
    if not overwrite and filesystem.exists(published) and filesystem.read_bytes(published) != text:
        filesystem.delete([complete])  # or whoever comes next would finish this
        raise OutputExistsError(
            f"{output_dir}: a dataset came to be there while the job was running; give another directory"
        )
    described_names = {
        REJECTED_NAME,
        VOCAB_NAME,
        *(file.name for split in described.splits.values() for file in split.files),
    }
    staged = {path.rsplit("/", 1)[-1]: path for path in filesystem.list_below(staging_dir)}
    names = filesystem.list_names(output_dir)
    if missing := described_names - staged.keys() - set(names):
        raise SchemaMismatchError(
            f"{complete}: {len(missing)} of the files it lists are not there, such as {min(missing)}"
        )
    # From here until the last rename the output has no dataset.json, and the staging holds what is missing.
    filesystem.delete([published])
    for name in sorted(described_names & staged.keys()):
        filesystem.rename(staged[name], filesystem.join(output_dir, name))
    former = [name for name in names if is_ours(name) and name not in described_names]
    filesystem.delete([filesystem.join(output_dir, name) for name in former])
    filesystem.rename(complete, published)
    filesystem.delete_directory(staging_dir)


def _discard_incomplete(staging_dir: str) -> None:
    """Remove a staging directory, unless a complete dataset waits in it for whoever comes next to publish it."""
    if filesystem.is_remote(staging_dir):
        if not filesystem.exists(filesystem.join(staging_dir, DATASET_INFO_NAME)):
            filesystem.delete_directory(staging_dir)
        return
    if not os.path.isdir(staging_dir):
        return
    # Under another name nothing can be added by a worker that is still alive, so that what is seen now is final.
    doomed = f"{staging_dir}-{secrets.token_hex(4)}"
    os.rename(staging_dir, doomed)
    if os.path.exists(os.path.join(doomed, DATASET_INFO_NAME)):
        os.rename(doomed, staging_dir)
    else:
        filesystem.delete_directory(doomed)


def _clean_up(output_dir: str, staging_dir: str, *, existed: bool) -> None:
    """Leave nothing of a job but what it published; `existed` tells whether the output was there before it."""
    if filesystem.is_remote(output_dir):
        _discard_incomplete(staging_dir)
        return
    # Somebody may have removed all of it meanwhile.
    with contextlib.suppress(FileNotFoundError), _locked(output_dir):
        _discard_incomplete(staging_dir)
        if not existed and not os.listdir(output_dir):
            os.rmdir(output_dir)


@contextmanager
def _locked(output_dir: str, *, make: bool = False) -> Iterator[None]:
    """Keep others from claiming, publishing and cleaning up here meanwhile; object stores have no locks.

    Args:
        output_dir: the directory.
        make: whether to make it if it is not there.
    """
    if filesystem.is_remote(output_dir):
        yield
        return
    descriptor = filesystem.make_and_lock(output_dir) if make else filesystem.lock(output_dir)
    try:
        yield
    finally:
        os.close(descriptor)
