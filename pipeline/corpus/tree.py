"""A directory tree `<category>/…/<file>`, and the rules for names below a corpus that archives share with it."""

import dataclasses
import fnmatch
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import ClassVar

from pipeline import filesystem
from pipeline.corpus.chunks import Chunk, chunked
from pipeline.corpus.documents import DocumentRejectedError, Locator, Note, RawDocument, Rejection, key_from_path
from pipeline.corpus.encodings import resolve_encoding
from pipeline.corpus.options import AUTO
from pipeline.corpus.reading import read_files
from pipeline.errors import MissingInputError

LITTER = "files that Windows and Office leave behind, ignored"
OTHER_NAMES = "files that --glob leaves out"
# Hidden files, and what macOS puts into archives, were never said to be there, and are not counted; the rest is.
_HIDDEN = re.compile(rb"(?:^|/)(?:\.(?!\.(?:/|$))|__MACOSX(?:/|$))")
_LITTER = re.compile(rb"(?:^|/)(?:~\$[^/]*|thumbs\.db|desktop\.ini)$", re.IGNORECASE)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Layout:
    """What names below a corpus mean.

    Attributes:
        levels: roles of the directories around a document, from the top.
        glob: which files are documents; a pattern with a slash is one for the whole name. `None` takes all.
        encoding: of the documents.
    """

    levels: tuple[str, ...] = ("category",)
    glob: str | None = None
    encoding: str = "utf-8"

    def is_chosen(self, name: bytes) -> bool:
        """Tell whether `glob` chooses a file."""
        if self.glob is None:
            return True
        return fnmatch.fnmatchcase(os.fsdecode(name if "/" in self.glob else name.rpartition(b"/")[2]), self.glob)

    def choose(self, names: Iterable[bytes], notes: Counter[str] | None = None) -> Iterator[bytes]:
        """Yield the names of documents, and count the others that are not hidden."""
        notes = Counter() if notes is None else notes
        for name in names:
            if _HIDDEN.search(name):
                continue
            if _LITTER.search(name):
                notes[LITTER] += 1
            elif self.is_chosen(name):
                yield name
            else:
                notes[OTHER_NAMES] += 1

    def num_around(self, names: Sequence[bytes]) -> int:
        """Return how many directories lie around all categories, as `THUCNews/` does in THUCNews.zip."""
        depth = 0
        while len({name.split(b"/", depth + 1)[depth] for name in names}) == 1 and any(
            name.count(b"/") > depth + len(self.levels) for name in names
        ):
            depth += 1
        return depth

    def read(
        self, key_prefix: str, name: bytes, content: bytes | Exception, locator: Locator
    ) -> Iterator[RawDocument | Rejection | Note]:
        """Yield the document of one file, or why it is none."""
        key = key_prefix + key_from_path(name)
        directories = name.split(b"/")[:-1]
        if len(directories) < len(self.levels):
            expected = "/".join(f"<{level}>" for level in self.levels)
            detail = f"expected {expected}/<file>, found a file outside any category"
            yield Rejection(key, "no_category", detail)
        elif b".." in directories or name.endswith(b"/.."):
            yield Rejection(key, "bad_name", "its name leads out of the archive")
        elif isinstance(content, DocumentRejectedError):
            yield Rejection(key, content.reason, content.detail)
        elif isinstance(content, Exception):
            yield Rejection(key, "unreadable", f"{getattr(content, 'strerror', None) or content}")
        else:
            encoding = resolve_encoding(content, self.encoding)
            if self.encoding == AUTO and encoding != "utf-8":
                yield Note(f"documents read as {encoding}", 1)
            labels: Mapping[str, str] = {
                level: key_from_path(directory) for level, directory in zip(self.levels, directories, strict=False)
            }
            locator = locator._replace(encoding=encoding)
            yield RawDocument(key, labels.get("category", ""), labels.get("second", ""), content, locator)


def is_hidden(name: bytes) -> bool:
    """Tell whether a file or directory is hidden."""
    return _HIDDEN.match(name) is not None


@dataclasses.dataclass(frozen=True, kw_only=True)
class TreeSource:
    """`PATH/<category>/…/<file>`: every file below a category is a document, unless it is hidden or left out.

    Attributes:
        path: the directory that holds the categories.
        split: the split all documents go to, or `None`.
        key_prefix: put before each key, so that keys stay unique among several inputs.
        layout: what names mean.
    """

    kind: ClassVar[str] = "tree"

    path: str
    split: str | None
    key_prefix: str
    layout: Layout = dataclasses.field(default_factory=Layout)

    def chunks(self, index: int) -> Iterator[Chunk]:
        """List the files, in an order that the file system cannot change."""
        notes: Counter[str] = Counter()
        if filesystem.is_remote(self.path):
            prefix = self.path.rstrip("/") + "/"
            found: Iterable[bytes] = (path.removeprefix(prefix).encode() for path in filesystem.list_below(self.path))
        else:
            found = self._walk(b"")
        return chunked(self.layout.choose(found, notes), index, notes)

    def _walk(self, inside: bytes) -> Iterator[bytes]:
        directory = os.path.join(os.fsencode(self.path), inside)
        try:
            with os.scandir(directory) as listing:
                entries = sorted(listing, key=lambda entry: entry.name)
        except OSError as error:
            # Of its documents not even the number is known, so that none of them could be counted as rejected.
            raise MissingInputError(f"{os.fsdecode(directory)}: cannot list this directory: {error.strerror}") from None
        for entry in entries:
            name = os.path.join(inside, entry.name)
            # A category may be a symbolic link, a directory below it may not: links can run in circles. One that leads
            # to itself is no directory for `isdir`, and an error for `is_dir`.
            if is_hidden(entry.name):
                continue
            if entry.is_dir(follow_symlinks=False) or (not inside and os.path.isdir(entry.path)):
                yield from self._walk(name)
            else:
                yield name

    def read(self, chunk: Chunk) -> Iterator[RawDocument | Rejection | Note]:
        """Read every file of a chunk."""
        inside = os.path.join(os.fsencode(self.path), b"")
        paths = [inside + name for name in chunk.items]
        for name, path, content in zip(chunk.items, paths, read_files(paths), strict=True):
            yield from self.layout.read(self.key_prefix, name, content, Locator("file", path))
