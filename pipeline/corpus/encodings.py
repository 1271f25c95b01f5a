"""Which encoding bytes have: said, or with `auto` found out from all of them."""

import codecs
from collections.abc import Iterable

from pipeline.corpus.options import AUTO

UTF_16_MARKS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
_ASCII_ALONE = bytes(range(128, 256))


def resolve_encoding(content: bytes, encoding: str) -> str:
    """Return the encoding of one document, where it is to be found out: UTF-8 if it decodes, UTF-16 if it says so."""
    return find_encoding([content]) if encoding == AUTO else encoding


def find_encoding(blocks: Iterable[bytes]) -> str:
    """Return `utf-8`, `gb18030` or `utf-16` for all bytes of a file, which come in blocks that end with a line.

    UTF-8 of which a few bytes are damaged would decode as GB18030, to other characters: what is mostly UTF-8 is UTF-8,
    and its damaged documents are rejected.
    """
    num_valid = num_invalid = 0
    for number, block in enumerate(blocks):
        if number == 0 and block[:2] in UTF_16_MARKS:
            return "utf-16"
        try:
            block.decode("utf-8")
        except UnicodeDecodeError:
            lost = len(block) - len(block.decode("utf-8", "ignore").encode())
            num_invalid += lost
            num_valid -= lost
        num_valid += len(block) - len(block.translate(None, _ASCII_ALONE))
    return "utf-8" if num_valid >= num_invalid else "gb18030"
