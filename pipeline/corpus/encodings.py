"""Which encoding bytes have: said, or with `auto` found out from all of them."""

import codecs
from collections.abc import Iterable

from pipeline.corpus.options import AUTO

UTF_16_MARKS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
_NOT_ASCII = bytes(range(128, 256))


def resolve_encoding(content: bytes, encoding: str) -> str:
    """Return the encoding of one document, where it is to be found out: UTF-8 if it decodes, UTF-16 if it says so."""
    return find_encoding([content]) if encoding == AUTO else encoding


def find_encoding(blocks: Iterable[bytes]) -> str:
    """Return `utf-8`, `gb18030` or `utf-16` for all bytes of a file, which come in blocks that end with a line.

    UTF-8 of which a few bytes are damaged would decode as GB18030, to other characters. Characters of three bytes
    decide: they are nearly all of Chinese in UTF-8, and bytes of GB18030 hardly ever form them. Then it is UTF-8, and
    its damaged documents are rejected.
    """
    is_valid = True
    num_not_ascii = num_wide = 0
    for number, block in enumerate(blocks):
        if number == 0 and block[:2] in UTF_16_MARKS:
            return "utf-16"
        not_ascii = len(block) - len(block.translate(None, _NOT_ASCII))
        num_not_ascii += not_ascii
        try:
            block.decode("utf-8")
        except UnicodeDecodeError:
            is_valid = False
            num_wide += 3 * sum(character > "\u07ff" for character in block.decode("utf-8", "ignore"))
        else:
            num_wide += not_ascii
    return "utf-8" if is_valid or 2 * num_wide >= num_not_ascii else "gb18030"
