"""Files, local or remote: local paths go through `os`, `gs://`, `s3://` and the like through Beam's file systems.

A reader never sees half a file, and a failed writer never damages what was there: local files are written under a
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
def _remote_errors(path: str, action: str, kind: type[PipelineError]) -> Iterator[None]:
    """Turn what a client library makes of a refusal, a missing bucket or a lost connection into an error of ours.

    Every library has exceptions of its own, and Beam lets most of them through.
    """
    try:
        yield
    except PipelineError:
        raise
    except Exception as error:
        reason = str(error).split("\n")[0] or type(error).__name__
        raise kind(f"{path}: cannot {action}: {reason}; check name, rights and connection, then run again") from error


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
    """Tell whether a file or directory exists (remote: whether an object of exactly this name does)."""
    if not is_remote(path):
        return os.path.exists(path)
    with _remote_errors(path, "look for this", MissingInputError):
        return bool(_file_systems(path).exists(path))


def size(path: str) -> int | None:
    """Return a file's size in bytes, `None` where there is no such file; where there is, that costs one request."""
    if not is_remote(path):
        try:
            return os.path.getsize(path)
        except FileNotFoundError:
            return None
    try:
        with _remote_errors(path, "look for this", MissingInputError):
            return int(_file_systems(path).get_filesystem(path).size(path))
    except MissingInputError:
        if exists(path):
            raise
        return None


def open_for_reading(path: str) -> IO[bytes]:
    """Open a file for reading bytes, as it is stored (no decompression).

    Raises:
        MissingInputError: there is no such file, or it cannot be opened.
    """
    if is_remote(path):
        from apache_beam.io.filesystem import CompressionTypes

        with _remote_errors(path, "open this file", MissingInputError):
            stream: IO[bytes] = _file_systems(path).open(path, compression_type=CompressionTypes.UNCOMPRESSED)
        return stream
    try:
        return open(path, "rb")
    except FileNotFoundError as error:
        raise MissingInputError(f"{path}: no such file") from error
    except IsADirectoryError as error:
        raise MissingInputError(f"{path}: expected a file, found a directory") from error
    except OSError as error:
        raise MissingInputError(f"{path}: cannot open this file: {error.strerror}") from error


@contextmanager
def reading(path: str) -> Iterator[IO[bytes]]:
    """Open a file for reading bytes piece by piece; what goes wrong meanwhile is an error of ours, too.

    Raises:
        MissingInputError: there is no such file, or it cannot be read.
    """
    with open_for_reading(path) as stream:
        if is_remote(path):
            with _remote_errors(path, "read this file", MissingInputError):
                yield stream
            return
        try:
            yield stream
        except OSError as error:
            raise MissingInputError(f"{path}: cannot read this file: {error.strerror or error}") from error


def read_bytes(path: str, max_bytes: int = -1) -> bytes:
    """Return the content of a file, or its beginning: at most so many bytes.

    Raises:
        MissingInputError: there is no such file, or it cannot be read.
    """
    with reading(path) as stream:
        return stream.read(max_bytes)


def match(pattern: str) -> list[str]:
    """Return the files that a glob pattern names, sorted by name."""
    if is_remote(pattern):
        with _remote_errors(pattern, "list this", MissingInputError):
            found = _file_systems(pattern).match([pattern])[0].metadata_list
        # Some tools put empty objects where a file system has directories.
        return sorted(metadata.path for metadata in found if not metadata.path.endswith("/"))
    return sorted(local_glob.glob(pattern, recursive=True))


def list_names(directory: str) -> list[str]:
    """Return the names of what lies directly in a directory, hidden files left out, sorted."""
    if is_remote(directory):
        return [path.rsplit("/", 1)[-1] for path in match(join(directory, "*"))]
    return sorted(name for name in os.listdir(directory) if not name.startswith("."))


def list_below(directory: str) -> list[str]:
    """Return all files below a directory, at any depth, sorted; symbolic links to directories are not followed."""
    if is_remote(directory):
        return match(directory.rstrip("/") + "/**")
    found = [os.path.join(parent, name) for parent, _, names in os.walk(directory, followlinks=False) for name in names]
    return sorted(found)


def make_directory(path: str) -> None:
    """Make a directory and its parents; remote file systems have none to make."""
    if is_remote(path):
        return
    try:
        os.makedirs(path, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        if isinstance(error, FileExistsError) and not os.path.lexists(path):
            make_directory(path)  # somebody removed it just then
            return
        raise OptionError(f"{path}: expected a directory, found a file; give another one") from error
    except OSError as error:
        raise OutputWriteError(f"{path}: cannot make this directory: {error.strerror}") from error


def temporary_sibling(path: str) -> str:
    """Return a new hidden name beside a local file or directory, for what is incomplete or about to be removed."""
    directory, name = os.path.split(path)
    return os.path.join(directory, f".{name}.{secrets.token_hex(4)}{TEMPORARY_SUFFIX}")


def write_atomically(path: str, data: bytes | memoryview) -> None:
    """Write a whole file so that either all of it is there under its name, or nothing is.

    Raises:
        OutputWriteError: the disk is full, read-only or not ours to write.
    """
    if path.startswith("s3://") and not len(data):
        with _remote_errors(path, "write", OutputWriteError):
            _write_empty_s3_object(path)
        return
    if is_remote(path):
        # An object appears when its stream is closed. Closing after an error would publish a part, so nothing that can
        # fail happens between opening and closing except the write itself.
        with _remote_errors(path, "write", OutputWriteError):
            stream = _file_systems(path).create(path)
            stream.write(data)
            stream.close()
        return
    temporary = temporary_sibling(path)
    try:
        with open(temporary, "wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, path)
    except OSError as error:
        if os.path.exists(temporary):
            os.unlink(temporary)
        raise OutputWriteError(
            f"{path}: cannot write: {error.strerror}; free some space or fix it, then run again"
        ) from error


def _write_empty_s3_object(path: str) -> None:
    """Write an object without content, which Beam's S3 writer cannot: it uploads parts, and there is none."""
    from apache_beam.io.aws import s3io

    s3 = s3io.S3IO(options=_file_systems(path).get_filesystem(path)._options)
    bucket, key = s3io.parse_s3_path(path)
    s3.client.client.put_object(Bucket=bucket, Key=key, Body=b"")


def rename(source: str, destination: str) -> None:
    """Move one file over another name, replacing what is there.

    Raises:
        OutputWriteError: the file system refused.
    """
    if is_remote(source):
        with _remote_errors(destination, "replace", OutputWriteError):
            _file_systems(source).rename([source], [destination])
        return
    try:
        os.replace(source, destination)
    except OSError as error:
        raise OutputWriteError(f"{destination}: cannot replace: {error.strerror}; fix it, then run again") from error


def delete(paths: list[str]) -> None:
    """Delete files; those that are gone already are no error.

    Raises:
        OutputWriteError: the file system refused.
    """
    for path in paths:
        if is_remote(path):
            with _remote_errors(path, "delete", OutputWriteError):
                if exists(path):
                    _file_systems(path).delete([path])
        else:
            try:
                os.unlink(path)
            except FileNotFoundError:
                continue
            except OSError as error:
                raise OutputWriteError(f"{path}: cannot delete: {error.strerror}; fix it, then run again") from error


def try_lock(directory: str) -> int | None:
    """Take the lock that a job holds on its own local directory while it lives, however it ends.

    Returns:
        A file descriptor, whose closing gives the lock back; `None` if somebody else holds it, or removed it all.
    """
    try:
        descriptor = os.open(directory, os.O_RDONLY)
    except FileNotFoundError:
        return None
    try:
        flock(descriptor, directory, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    return descriptor


def lock(directory: str) -> int:
    """Wait for the lock of a local directory; return a file descriptor, whose closing gives it back."""
    descriptor = os.open(directory, os.O_RDONLY)
    flock(descriptor, directory, fcntl.LOCK_EX)
    return descriptor


def make_and_lock(directory: str) -> int:
    """Make a local directory where there is none, and wait for its lock; see `lock`."""
    while True:
        make_directory(directory)
        descriptor = None
        # Until it is locked, its maker may remove it, and another process may make another one.
        with contextlib.suppress(FileNotFoundError):
            descriptor = lock(directory)
            if os.path.samestat(os.fstat(descriptor), os.stat(directory)):
                return descriptor
        if descriptor is not None:
            os.close(descriptor)


def flock(descriptor: int, directory: str, operation: int) -> None:
    """Lock an open directory or a file in it, or warn that its file system has no locks, as some of networks do.

    Args:
        descriptor: what is locked.
        directory: for the message.
        operation: see `fcntl.flock`.

    Raises:
        BlockingIOError: somebody else has the lock, and the operation does not wait.
    """
    try:
        fcntl.flock(descriptor, operation)
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        logger.warning("%s: no locks on this file system (%s); let nothing else write there", directory, error.strerror)


def delete_directory(path: str) -> None:
    """Delete a directory with all it holds; one that is gone already is no error."""
    if is_remote(path):
        delete(list_below(path))
    else:
        shutil.rmtree(path, ignore_errors=True)
