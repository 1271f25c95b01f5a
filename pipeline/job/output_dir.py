"""The output directory of a job: one job at a time writes there, and its dataset appears when it is complete.

A job writes into a staging directory inside the output. Publishing is a series of renames that can be interrupted
anywhere: while the staging directory holds a `dataset.json`, the dataset in it is complete, and the next job finishes
the renames. An object store has no locks that show whether a job is alive; there, this needs `--overwrite`.
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
        The path of a new, empty staging directory. It is removed when the job ends, unless publishing was interrupted.

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
        # One lock for all of this, or two jobs could both find the output free.
        with _locked(output_dir, make=True):
            stack.callback(_clean_up, output_dir, staging_dir, existed=existed)
            for leftover in _leftovers(output_dir, overwrite=overwrite):
                _finish_or_remove(output_dir, leftover, overwrite=overwrite)
            _require_free(output_dir, overwrite=overwrite)
            filesystem.make_directory(staging_dir)
            if not is_remote:
                stack.callback(os.close, _lock_staging(staging_dir, output_dir))
        yield staging_dir


def check_output(config: PreprocessConfig) -> None:
    """Raise what `staging_directory` would, but change nothing."""
    output_dir, overwrite = config.output_dir, config.overwrite
    if not filesystem.is_remote(output_dir):
        existing = os.path.abspath(output_dir)
        while not os.path.lexists(existing):
            existing = os.path.dirname(existing)
        if not os.path.isdir(existing):
            raise OptionError(f"{output_dir}: expected a directory, found a file; give another one")
        if not os.access(existing, os.W_OK):
            raise OutputWriteError(f"{output_dir}: cannot make this directory: {existing} cannot be written")
        if not os.path.exists(output_dir):
            return
    with _locked(output_dir):
        for leftover in _leftovers(output_dir, overwrite=overwrite):
            if not overwrite and filesystem.exists(filesystem.join(leftover, DATASET_INFO_NAME)):
                raise OutputExistsError(
                    f"--output {output_dir}: holds a dataset whose job died while publishing it; "
                    "give another directory, or add --overwrite"
                )
        _require_free(output_dir, overwrite=overwrite)


def _require_free(output_dir: str, *, overwrite: bool) -> None:
    if filesystem.exists(filesystem.join(output_dir, DATASET_INFO_NAME)):
        if overwrite:
            return
        raise OutputExistsError(
            f"--output {output_dir}: holds a dataset already; give another directory, or add --overwrite"
        )
    # Without a description, files with names like ours may be the user's own.
    others = [name for name in filesystem.list_names(output_dir) if not (overwrite and is_ours(name))]
    if others:
        raise OutputExistsError(
            f"--output {output_dir}: holds {len(others)} other files ({', '.join(others[:3])}); give a new directory"
        )


def _leftovers(output_dir: str, *, overwrite: bool) -> Iterator[str]:
    """Yield the staging directories of dead jobs, each locked while the caller handles it.

    In an object store only complete ones are yielded, because an incomplete one may be that of a living job.

    Raises:
        OptionError: a job is alive.
        OutputExistsError: it may be alive.
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
        if name.startswith(STAGING_PREFIX):
            path = os.path.join(output_dir, name)
            lock = _lock_staging(path, output_dir)
            try:
                yield path
            finally:
                os.close(lock)


def _lock_staging(staging_dir: str, output_dir: str) -> int:
    """Take the lock that a job holds on its staging directory while it lives."""
    try:
        return filesystem.lock(staging_dir, wait=False)
    except (BlockingIOError, FileNotFoundError):
        raise OptionError(
            f"--output {output_dir}: another job is writing there; wait for it, or give another directory"
        ) from None


def _finish_or_remove(output_dir: str, leftover: str, *, overwrite: bool) -> None:
    """Publish the dataset of a dead job if it is complete, and remove its staging directory."""
    try:
        # When it began to publish, that job had checked that it may replace what is there.
        _move(output_dir, leftover, overwrite=True)
        _discard_incomplete(leftover)
    except SchemaMismatchError as error:
        if not overwrite:
            raise OutputExistsError(
                f"--output {output_dir}: holds a dataset whose job died while publishing it, and which this "
                f"version cannot publish ({error}); use the version that wrote it, give another directory, or add "
                "--overwrite to discard it"
            ) from None
        filesystem.delete_directory(leftover)


def move_into_place(output_dir: str, staging_dir: str, *, overwrite: bool) -> None:
    """Publish a complete staging directory; safe to call again after an interruption at any point.

    Args:
        output_dir: the directory of the dataset.
        staging_dir: the directory with its files.
        overwrite: whether to replace a dataset that another job published meanwhile.

    Raises:
        OutputExistsError: there is such a dataset, and it must not be replaced.
        SchemaMismatchError: a file that the description lists is missing; nothing was moved.
    """
    # A worker can outlive its killed job by seconds, and may be publishing.
    with _locked(output_dir):
        _move(output_dir, staging_dir, overwrite=overwrite)


def _move(output_dir: str, staging_dir: str, *, overwrite: bool) -> None:
    complete = filesystem.join(staging_dir, DATASET_INFO_NAME)
    published = filesystem.join(output_dir, DATASET_INFO_NAME)
    if not filesystem.exists(complete):
        return
    text = filesystem.read_bytes(complete)
    described = DatasetInfo.from_json(text, complete)
    # Where a rename is a copy, an interruption may have left the same description in both directories.
    if not overwrite and filesystem.exists(published) and filesystem.read_bytes(published) != text:
        filesystem.delete([complete])  # or the next job would finish this
        raise OutputExistsError(
            f"{output_dir}: another job published a dataset there while this one was running; give another directory"
        )
    listed = {REJECTED_NAME, VOCAB_NAME, *(file.name for split in described.splits.values() for file in split.files)}
    staged = {path.rsplit("/", 1)[-1]: path for path in filesystem.list_below(staging_dir)}
    names = filesystem.list_names(output_dir)
    if missing := listed - staged.keys() - set(names):
        raise SchemaMismatchError(
            f"{complete}: {len(missing)} of the files it lists are not there, such as {min(missing)}"
        )
    # From here until the last rename the output has no dataset.json, and the staging directory holds what is missing.
    filesystem.delete([published])
    for name in sorted(listed & staged.keys()):
        filesystem.rename(staged[name], filesystem.join(output_dir, name))
    filesystem.delete([filesystem.join(output_dir, name) for name in names if is_ours(name) and name not in listed])
    filesystem.rename(complete, published)
    filesystem.delete_directory(staging_dir)


def _discard_incomplete(staging_dir: str) -> None:
    """Remove a staging directory, unless a complete dataset in it waits for the next job."""
    if filesystem.is_remote(staging_dir):
        if not filesystem.exists(filesystem.join(staging_dir, DATASET_INFO_NAME)):
            filesystem.delete_directory(staging_dir)
    elif os.path.isdir(staging_dir):
        # A worker that is still alive cannot add a dataset.json under another name.
        doomed = f"{staging_dir}-{secrets.token_hex(4)}"
        os.rename(staging_dir, doomed)
        if os.path.exists(os.path.join(doomed, DATASET_INFO_NAME)):
            os.rename(doomed, staging_dir)
        else:
            filesystem.delete_directory(doomed)


def _clean_up(output_dir: str, staging_dir: str, *, existed: bool) -> None:
    """Remove what a job did not publish; also the output directory if the job made it and it is empty."""
    if filesystem.is_remote(output_dir):
        _discard_incomplete(staging_dir)
        return
    # The user may have removed all of it meanwhile.
    with contextlib.suppress(FileNotFoundError), _locked(output_dir):
        _discard_incomplete(staging_dir)
        if not existed and not os.listdir(output_dir):
            os.rmdir(output_dir)


@contextmanager
def _locked(output_dir: str, *, make: bool = False) -> Iterator[None]:
    """Keep other jobs from claiming, publishing and cleaning up here; object stores have no locks.

    Args:
        output_dir: the directory.
        make: whether to make it if it does not exist.
    """
    if filesystem.is_remote(output_dir):
        yield
        return
    lock = _make_and_lock(output_dir) if make else filesystem.lock(output_dir, wait=True)
    try:
        yield
    finally:
        os.close(lock)


def _make_and_lock(output_dir: str) -> int:
    while True:
        filesystem.make_directory(output_dir)
        # Until it is locked, its maker may remove it, and another process may make another one.
        with contextlib.suppress(FileNotFoundError):
            lock = filesystem.lock(output_dir, wait=True)
            if os.path.exists(output_dir) and os.path.samestat(os.fstat(lock), os.stat(output_dir)):
                return lock
            os.close(lock)
