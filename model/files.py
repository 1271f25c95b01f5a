"""Local files and directories that appear under their names whole, or not at all."""

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from pipeline import filesystem
from pipeline.errors import OutputWriteError
from pipeline.filesystem import TEMPORARY_SUFFIX

_COPIED_AT_ONCE = 1 << 20


def write_text(path: Path, text: str) -> None:
    """Write a small text file, whole or not at all.

    Raises:
        OutputWriteError: the disk is full, read-only or not ours; a file of that name is untouched.
    """
    with _write_errors(path):
        filesystem.write_atomically(str(path), text.encode("utf-8"))
        sync_path(path.parent)


def copy_file(source: Path, path: Path) -> None:
    """Copy a file, whole or not at all.

    Raises:
        MissingInputError: there is no such file.
        OutputWriteError: as `write_text`.
    """
    with filesystem.open_for_reading(str(source)) as original, written_whole(path) as stream:
        shutil.copyfileobj(original, stream, _COPIED_AT_ONCE)


def replace_directory(new: Path, path: Path) -> None:
    """Give a directory a name that another one may have; that one is removed last, and put back if this fails.

    Args:
        new: on the same file system.
        path: the name.

    Raises:
        OSError: it cannot be renamed.
    """
    aside = temporary_sibling(path)
    if path.exists():
        path.rename(aside)
    try:
        new.rename(path)
    except OSError:
        if aside.exists():
            aside.rename(path)
        raise
    sync_path(path.parent)
    remove(aside)


def remove(path: Path) -> None:
    """Remove a file, a link, or a directory with all it holds, as far as that is possible."""
    with contextlib.suppress(OSError):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def temporary_sibling(path: Path) -> Path:
    """Return a new hidden name beside a file or directory; see `pipeline.filesystem.temporary_sibling`."""
    return Path(filesystem.temporary_sibling(str(path)))


def remove_temporary(directory: Path) -> None:
    """Remove what a killed process left half-written in a directory."""
    for path in directory.glob(f"*{TEMPORARY_SUFFIX}"):
        remove(path)


def sync_path(path: Path) -> None:
    """Ask the operating system to put a file or a directory on disk, so that no rename can outrun its content."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def written_whole(path: Path) -> Iterator[IO[bytes]]:
    """Open a file for writing that gets its name, in a directory made for it, once all of it is on disk."""
    temporary = temporary_sibling(path)
    with _write_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(temporary, "wb") as stream:
                yield stream
                stream.flush()
                os.fsync(stream.fileno())
            os.replace(temporary, path)
            sync_path(path.parent)
        finally:
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def directory_written_whole(path: Path) -> Iterator[Path]:
    """Yield a directory to fill that gets its name, in a directory made for it, once all of it is on disk.

    Args:
        path: does not exist, or is an empty directory.

    Raises:
        OutputWriteError: the disk is full, read-only or not ours.
    """
    temporary = temporary_sibling(path)
    with _write_errors(path):
        try:
            temporary.mkdir(parents=True)
            yield temporary
            for written in (*temporary.rglob("*"), temporary):
                sync_path(written)
            temporary.rename(path)
            sync_path(path.parent)
        finally:
            remove(temporary)


@contextlib.contextmanager
def _write_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise OutputWriteError(
            f"{path}: cannot write: {error.strerror or error}; free some space or fix it, then run again"
        ) from error
