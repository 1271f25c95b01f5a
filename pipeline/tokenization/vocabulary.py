"""The vocabulary: which token has which id, and the tokens every BERT has."""

import os

from pipeline import filesystem
from pipeline.errors import InputFormatError

PAD_TOKEN = "[PAD]"
UNK_TOKEN = "[UNK]"
CLS_TOKEN = "[CLS]"
SEP_TOKEN = "[SEP]"
MIN_MAX_LEN = 3  # [CLS], one token, [SEP]
# In each row, [CLS] and [SEP]: one of this length has no token of its own.
NUM_EDGE_TOKENS = 2
CONTINUATION = "##"  # begins tokens that continue a word
SPECIAL_TOKENS = (PAD_TOKEN, UNK_TOKEN, CLS_TOKEN, SEP_TOKEN)

_EXPECTED = "expected the vocab.txt of a BERT directory, one token per line"


def load_vocab(path: str | os.PathLike[str]) -> dict[str, int]:
    """Read a BERT vocabulary file, local or remote; see `parse_vocab`.

    Raises:
        MissingInputError: no file there.
        InputFormatError: it is no vocabulary.
    """
    return parse_vocab(filesystem.read_bytes(os.fspath(path)), os.fspath(path))


def parse_vocab(data: bytes, path: str) -> dict[str, int]:
    """Parse a BERT vocabulary, one token per line; the id of a token is its line number, from 0.

    Lines end at a newline (or carriage return and newline) and nowhere else, and nothing is stripped: entry 343 of the
    Chinese vocabulary *is* a line separator, U+2028, at which `str.splitlines` and text readers cut.

    Args:
        data: UTF-8 text; whether it ends with a newline does not matter.
        path: where it comes from, for messages.

    Returns:
        Token to id, in id order.

    Raises:
        InputFormatError: anything but a vocabulary with [PAD], [UNK], [CLS] and [SEP] in it, [PAD] first.
    """
    try:
        lines = data.decode("utf-8").split("\n")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise InputFormatError(
            f"vocabulary {path}, line {line}: byte 0x{data[error.start]:02X} is not UTF-8; {_EXPECTED}"
        ) from error
    if lines[-1] == "":
        lines.pop()
    lines = [line.removesuffix("\r") for line in lines]
    missing = [token for token in SPECIAL_TOKENS if token not in lines]
    if missing:
        raise InputFormatError(
            f"vocabulary {path}: none of its {len(lines)} lines is {' or '.join(missing)}; {_EXPECTED}"
        )
    vocab: dict[str, int] = {}
    for number, token in enumerate(lines, 1):
        if not token:
            raise InputFormatError(f"vocabulary {path}, line {number}: empty; {_EXPECTED}, without gaps")
        first = vocab.setdefault(token, number - 1)
        if first != number - 1:
            raise InputFormatError(
                f"vocabulary {path}, line {number}: {token!r} is on line {first + 1} already;"
                " expected every token once, because the ids are line numbers"
            )
    if vocab[PAD_TOKEN] != 0:
        raise InputFormatError(
            f"vocabulary {path}, line {vocab[PAD_TOKEN] + 1}: expected {PAD_TOKEN} on line 1, because rows are padded"
            " with id 0"
        )
    return vocab
