"""Documents: what one is, where its text lies, and the rule that normalizes it.

The corpus is read twice. The first pass reads every document, hashes its normalized text and keeps a `Reference` of
some hundred bytes; the second reads the text again at the place the reference names, in the order in which it is
written. That is what keeps memory flat: text is never shuffled, only references are.
"""

import re
from typing import NamedTuple

_REPEATED_STOPS = re.compile("。。+")
_ESCAPED_BYTE = re.compile(rb"\\x[0-9a-f]{2}")
_NEWLINES = re.compile("\r\n?")


def normalize_text(text: str) -> str:
    """Apply the write-up's normalization: strip, newlines to `。`, no tabs, no U+3000, runs of `。` to one.

    All three kinds of line end count as newlines, and a byte-order mark at the start is dropped.
    """
    if "\r" in text:
        text = _NEWLINES.sub("\n", text)
    # Three passes of `replace` take a tenth of the time of one `translate`.
    text = text.removeprefix("\ufeff").strip().replace("\n", "。").replace("\t", "").replace("\u3000", "")
    return _REPEATED_STOPS.sub("。", text) if "。。" in text else text


class Locator(NamedTuple):
    """Where a document's text lies.

    Attributes:
        kind: `file` (all of it), `range` (bytes of a file), `record` (bytes of a file from which the source cuts the
            text out), `member` (of a zip archive: its local header and data) or `inline` (the text travels with the
            reference, because its source cannot be read at random).
        path: the file, as the operating system spells it; empty for `inline`.
        offset: first byte.
        length: number of stored bytes.
        content: the text's bytes for `inline`.
        encoding: of the text's bytes.
        source: index of the source among all sources, for `record`.
    """

    kind: str
    path: bytes
    offset: int = 0
    length: int = 0
    content: bytes = b""
    encoding: str = "utf-8"
    source: int = 0


class RawDocument(NamedTuple):
    """A document as its source gives it.

    Attributes:
        key: unique in the corpus and the same wherever the corpus lies: `体育/123.txt`, `train.txt:45`.
        category: as written in the source.
        second: as written in the source; empty where it has none.
        content: the text's bytes.
        locator: where to read them again.
    """

    key: str
    category: str
    second: str
    content: bytes
    locator: Locator


class Rejection(NamedTuple):
    """A document that is not used, and why.

    Attributes:
        key: as in `RawDocument`.
        reason: one word, under which rejections are counted.
        detail: for people.
    """

    key: str
    reason: str
    detail: str


class Note(NamedTuple):
    """Something that reading decided or left out, which is no document; counted, and said at the end.

    Attributes:
        what: in a few words, such as `blank lines`.
        num_times: how often.
    """

    what: str
    num_times: int


class DocumentRejectedError(Exception):
    """Raised where a document turns out to be unusable; carried on as a `Rejection`."""

    def __init__(self, reason: str, detail: str):
        super().__init__(reason, detail)
        self.reason = reason
        self.detail = detail


def decode_text(content: bytes, encoding: str) -> str:
    """Decode and normalize one document's bytes.

    Raises:
        DocumentRejectedError: `not_utf-8` (or the encoding's name) or `empty`.
    """
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        found = f"byte 0x{content[error.start]:02x} at position {error.start}"
        raise DocumentRejectedError(f"not_{encoding}", f"{found}: {error.reason}") from None
    text = normalize_text(text)
    if not text:
        raise DocumentRejectedError("empty", f"nothing is left of {len(content):,} bytes after normalization")
    return text


def key_from_path(path: bytes) -> str:
    r"""Return a path as keys spell it: UTF-8, with bytes that are not UTF-8 written as `\xNN`.

    Where a name holds such a spelling itself, its backslashes are doubled, so that different paths have different keys.
    """
    key = path.decode("utf-8", "backslashreplace")
    is_escaped = key.encode() != path
    if b"\\" in path and (is_escaped or _ESCAPED_BYTE.search(path)):
        return path.replace(b"\\", b"\\\\").decode("utf-8", "backslashreplace")
    return key
