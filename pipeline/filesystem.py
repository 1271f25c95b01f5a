"""Files, local or remote: local paths go through `os`, `gs://`, `s3://` and the like through Beam's file systems.

A reader never sees half a file, and a failed writer never damages the former one: local files are written under a
temporary name and then renamed, objects of a store appear when they are complete.
"""

import contextlib
import errno
import fcntl
import glob as local_glob
import importlib.util
import logging
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any

from pipeline.errors import MissingInputError, OptionError, OutputWriteError, PipelineError

TEMPORARY_SUFFIX = ".tmp"
GZIP_MAGIC = b"\x1f\x8b"
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL)

logger = logging.getLogger(__name__)

# Scheme → (the client library Beam uses, what to install it with).
_REMOTE = {
    "gs": ("google.cloud.storage", "gcp"),
    "s3": ("boto3", "aws"),
    "azfs": ("azure.storage.blob", "azure"),
    "hdfs": ("hdfs", "hadoop"),
}


def is_remote(path: str) -> bool:
    """Tell whether a path names a remote file system (`scheme://…`)."""
    return "://" in path


def _file_systems(path: str) -> Any:
    scheme = path.split("://", 1)[0]
    if scheme not in _REMOTE:
        raise OptionError(f"{path}: unknown file system {scheme!r}; use a local path, gs://, s3://, azfs:// or hdfs://")
    client, extra = _REMOTE[scheme]
    # Beam itself notices a missing client late, and says so in a different way for each.
    if not is_installed(client):
        raise OptionError(f"{path}: this installation cannot read {scheme}://; pip install 'apache-beam[{extra}]'")
    # Beam takes most of a second to import and is needed for remote paths only.
    from apache_beam.io.filesystems import FileSystems

    return FileSystems


@contextmanager
def _errors_as_ours(path: str, action: str, kind: type[PipelineError]) -> Iterator[None]:
    """Turn an error of a file system into one of ours.

    Every client library has exceptions of its own, and Beam lets most of them through.
    """
    try:
        yield
    except PipelineError:
        raise
    except Exception as error:
        if is_remote(path):
            reason = str(error).split("\n")[0] or type(error).__name__
            hint = "; check name, rights and connection, then run again"
        elif not isinstance(error, OSError):
            raise
        elif kind is MissingInputError and isinstance(error, FileNotFoundError):
            raise kind(f"{path}: no such file") from error
        else:
            reason = error.strerror or str(error)
            hint = "; free some space or fix it, then run again" if kind is OutputWriteError else ""
        raise kind(f"{path}: cannot {action}: {reason}{hint}") from error


def is_installed(module: str) -> bool:
    """Tell whether a module could be imported, without importing it."""
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # of a package around it
        return False


def join(directory: str, *names: str) -> str:
    """Join path components below a local or remote directory."""
    return "/".join([directory.rstrip("/"), *names]) if is_remote(directory) else os.path.join(directory, *names)


def parent(path: str) -> str:
    """Return the directory around a file or directory."""
    return path.rstrip("/").rpartition("/")[0] if is_remote(path) else os.path.dirname(path)


def expand_user(path: str) -> str:
    """Return a path whose leading `~` is a home directory, which a shell does not expand behind `=`."""
    return path if is_remote(path) else os.path.expanduser(path)


def canonical(path: str) -> str:
    """Return a path in the one spelling that can be compared."""
    return path.rstrip("/") if is_remote(path) else os.path.realpath(path)


def exists(path: str) -> bool:
    """Tell whether a file or directory exists; in an object store, whether an object of exactly this name does."""
    if not is_remote(path):
        return os.path.exists(path)
    with _errors_as_ours(path, "look for this", MissingInputError):
        return bool(_file_systems(path).exists(path))


def size(path: str) -> int | None:
    """Return the size of a file in bytes, `None` where there is no such file."""
    try:
        with _errors_as_ours(path, "look for this", MissingInputError):
            return int(
                _file_systems(path).get_filesystem(path).size(path) if is_remote(path) else os.path.getsize(path)
            )
    except MissingInputError:
        if exists(path):
            raise
        return None


def open_for_reading(path: str) -> IO[bytes]:
    """Open a file for reading its bytes as they are stored, without decompression.

    Raises:
        MissingInputError: there is no such file, or it cannot be opened.
    """
    with _errors_as_ours(path, "open this file", MissingInputError):
        if not is_remote(path):
            if os.path.isdir(path):
                raise MissingInputError(f"{path}: expected a file, found a directory")
            return open(path, "rb")
        from apache_beam.io.filesystem import CompressionTypes

        stream: IO[bytes] = _file_systems(path).open(path, compression_type=CompressionTypes.UNCOMPRESSED)
        return stream


@contextmanager
def reading(path: str) -> Iterator[IO[bytes]]:
    """Open a file for reading piece by piece; an error inside the block is one of ours, too.

    Raises:
        MissingInputError: there is no such file, or it cannot be read.
    """
    with open_for_reading(path) as stream, _errors_as_ours(path, "read this file", MissingInputError):
        yield stream


def read_bytes(path: str, max_bytes: int = -1) -> bytes:
    """Return the content of a file, or its first `max_bytes`.

    Raises:
        MissingInputError: there is no such file, or it cannot be read.
    """
    with reading(path) as stream:
        return stream.read(max_bytes)


def match(pattern: str) -> list[str]:
    """Return the sorted paths of the files that match a glob pattern."""
    if not is_remote(pattern):
        return sorted(local_glob.glob(pattern, recursive=True))
    with _errors_as_ours(pattern, "list this", MissingInputError):
        found = _file_systems(pattern).match([pattern])[0].metadata_list
    # Some tools put empty objects where a file system has directories.
    return sorted(metadata.path for metadata in found if not metadata.path.endswith("/"))


def list_names(directory: str) -> list[str]:
    """Return the sorted names of the entries of a directory, without hidden ones."""
    if is_remote(directory):
        return [path.rsplit("/", 1)[-1] for path in match(join(directory, "*"))]
    return sorted(name for name in os.listdir(directory) if not name.startswith("."))


def list_below(directory: str) -> list[str]:
    """Return the sorted paths of all files below a directory; symbolic links to directories are not followed."""
    if is_remote(directory):
        return match(join(directory, "**"))
    return sorted(os.path.join(parent, name) for parent, _, names in os.walk(directory) for name in names)


def make_directory(path: str) -> None:
    """Make a directory and its parents; object stores have none."""
    if is_remote(path):
        return
    with _errors_as_ours(path, "make this directory", OutputWriteError):
        try:
            os.makedirs(path, exist_ok=True)
        except (FileExistsError, NotADirectoryError) as error:
            if isinstance(error, FileExistsError) and not os.path.lexists(path):
                return make_directory(path)  # another process removed it just then
            raise OptionError(f"{path}: expected a directory, found a file; give another one") from error


def temporary_sibling(path: str) -> str:
    """Return a new hidden path beside a local file or directory."""
    directory, name = os.path.split(path)
    return os.path.join(directory, f".{name}.{secrets.token_hex(4)}{TEMPORARY_SUFFIX}")


def write_atomically(path: str, data: bytes | memoryview) -> None:
    """Write a whole file: its path names either the former content or all of the new one.

    Raises:
        OutputWriteError: the disk is full or read-only, or the connection failed.
    """
    with _errors_as_ours(path, "write", OutputWriteError):
        if path.startswith("s3://") and not len(data):
            _write_empty_s3_object(path)
        elif is_remote(path):
            # An object appears when its stream is closed. Closing after an error would publish a part of it.
            stream = _file_systems(path).create(path)
            stream.write(data)
            stream.close()
        else:
            _write_local(path, data)


def _write_local(path: str, data: bytes | memoryview) -> None:
    temporary = temporary_sibling(path)
    try:
        with open(temporary, "wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, path)
    except OSError:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        raise


def _write_empty_s3_object(path: str) -> None:
    """Write an object without content, which Beam's S3 writer cannot: it uploads parts, and there is none."""
    from apache_beam.io.aws import s3io

    s3 = s3io.S3IO(options=_file_systems(path).get_filesystem(path)._options)
    bucket, key = s3io.parse_s3_path(path)
    s3.client.client.put_object(Bucket=bucket, Key=key, Body=b"")


def rename(source: str, destination: str) -> None:
    """Rename a file, replacing the destination.

    Raises:
        OutputWriteError: the file system refused.
    """
    with _errors_as_ours(destination, "replace", OutputWriteError):
        if is_remote(source):
            _file_systems(source).rename([source], [destination])
        else:
            os.replace(source, destination)


def delete(paths: list[str]) -> None:
    """Delete files; a file that does not exist is no error.

    Raises:
        OutputWriteError: the file system refused.
    """
    for path in paths:
        with _errors_as_ours(path, "delete", OutputWriteError):
            if not is_remote(path):
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(path)
            elif exists(path):
                _file_systems(path).delete([path])


def delete_directory(path: str) -> None:
    """Delete a directory and its content; one that does not exist is no error."""
    if is_remote(path):
        delete(list_below(path))
    else:
        shutil.rmtree(path, ignore_errors=True)


def lock(directory: str, *, wait: bool) -> int:
    """Lock a local directory, and return a file descriptor; closing it, or the end of the process, unlocks it.

    Raises:
        BlockingIOError: another process has the lock, and `wait` is false.
        FileNotFoundError: there is no such directory.
    """
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        flock(descriptor, directory, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise
    return descriptor


def flock(descriptor: int, directory: str, operation: int) -> None:
    """Lock an open directory or a file in it; log a warning if its file system has no locks, as some of networks do.

    Args:
        descriptor: of the directory or file.
        directory: for the warning.
        operation: see `fcntl.flock`.

    Raises:
        BlockingIOError: another process has the lock, and the operation does not wait.
    """
    try:
        fcntl.flock(descriptor, operation)
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        logger.warning("%s: no locks on this file system (%s); let nothing else write there", directory, error.strerror)
