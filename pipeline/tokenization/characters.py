r"""What keras-bert's tokenizer makes of each Unicode character, as tables over all code points.

`keras_bert.Tokenizer._tokenize` treats a text in two steps, and so does this module:

1. *Folding* (not when `cased`): canonical decomposition (NFD), removal of nonspacing marks (category Mn), lower case.
   `fold_table` answers for one character where the answer does not depend on its neighbours, `fold_blocks` does the
   real thing for a text with one of the rest in it: Hangul, the Greek capital sigma, marks that change places.
2. *Classification* of each folded character: `class_table`.

        "É"  folds to "e", a WORD character: "épée" is one word        U+00AD (soft hyphen) is DROPped: no gap, no token
        "《" and "中" are SINGLE: always a word of their own            U+3000 and "\n" are SPACE: they end a word

Both tables depend on nothing but the `unicodedata` of the running Python, which keras-bert asks too.
"""

import functools
import re
import unicodedata
from collections.abc import Iterator

import numpy as np

from pipeline.errors import InputFormatError

NUM_CODE_POINTS = 0x110000

# What becomes of a character. The order matters: everything below WORD needs more than a table.
SINGLE = 0
SPACE = -1
WORD = -2
DROP = -3
IN_CONTEXT = -4

_CJK_RANGES = (
    (0x4E00, 0x9FFF),
    (0x3400, 0x4DBF),
    (0x20000, 0x2A6DF),
    (0x2A700, 0x2B73F),
    (0x2B740, 0x2B81F),
    (0x2B820, 0x2CEAF),
    (0xF900, 0xFAFF),
    (0x2F800, 0x2FA1F),
)
_ASCII_PUNCTUATION_RANGES = ((33, 47), (58, 64), (91, 96), (123, 126))
_CAPITAL_SIGMA = "Σ"

# Unicode has assigned no character of planes 4 to 13; more than half of the time would go into asking for theirs.
_EMPTY_PLANES = range(0x40000, 0xE0000)

_SCAN_POINTS = 256
_FOLD_BLOCK_CHARS = 8192
_CHECK_BLOCK_CHARS = 1 << 20

# Places where a text can be cut before folding: in front of a character that is no mark, has no letter case and is not
# skipped by the rule for the final sigma, or between two plain letters. Nothing on one side changes what happens on the
# other.
_FOLD_BARRIER = re.compile("[\n\r\t 0-9\u3000\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7a3]|(?<=[A-Za-z])[A-Za-z]")


@functools.cache
def class_table() -> np.ndarray:
    """Return the class of every folded character.

    Returns: int8 [NUM_CODE_POINTS] of SINGLE, SPACE, WORD or DROP, read-only.
    Source:  keras_bert.Tokenizer._tokenize and its `_is_*` functions; the tests are made in the same order.
    """
    category = _categories()
    table = np.full(NUM_CODE_POINTS, WORD, np.int8)
    table[(category == b"Cc") | (category == b"Cf")] = DROP
    table[[0, 0xFFFD]] = DROP
    table[category == b"Zs"] = SPACE
    table[[ord(c) for c in " \n\r\t"]] = SPACE
    # Left in the text by the classification, then removed by its closing str.split(): U+2028 and U+2029.
    left_to_split = np.zeros(NUM_CODE_POINTS, bool)
    left_to_split[[match.start() for match in re.finditer(r"\s", _all_characters())]] = True
    table[left_to_split & (table == WORD)] = SPACE
    table[category.astype("S1") == b"P"] = SINGLE
    for first, last in _CJK_RANGES + _ASCII_PUNCTUATION_RANGES:
        table[first : last + 1] = SINGLE
    table.setflags(write=False)
    return table


@functools.cache
def fold_table() -> np.ndarray:
    """Return what every character folds to on its own.

    Returns: int32 [NUM_CODE_POINTS], read-only: the folded code point; DROP where nothing remains; IN_CONTEXT where the
             result has several characters or depends on the neighbours, so that `fold_blocks` must be asked.
    """
    table = np.arange(NUM_CODE_POINTS, dtype=np.int32)
    characters = _all_characters()
    suspects = np.flatnonzero(_categories().astype("S1") == b"M").tolist()
    for start in range(0, NUM_CODE_POINTS, _SCAN_POINTS):
        block = characters[start : start + _SCAN_POINTS]
        if unicodedata.normalize("NFD", block).lower() != block:
            suspects += range(start, start + _SCAN_POINTS)
    for point in suspects:
        table[point] = _fold_character(characters[point])
    table.setflags(write=False)
    return table


def fold_blocks(text: str) -> Iterator[str]:
    """Fold a text exactly, a block at a time.

    Args:   text: any text without lone surrogates.
    Yields: the folded text in consecutive pieces, so that who needs only the beginning does not pay for the rest.
    Source: keras_bert.Tokenizer._tokenize, its first three statements.
    """
    start = 0
    while start < len(text):
        barrier = _FOLD_BARRIER.search(text, start + _FOLD_BLOCK_CHARS)
        stop = barrier.start() if barrier else len(text)
        block = _mark_runs().sub(_sort_marks, text[start:stop])
        decomposed = unicodedata.normalize("NFD", block)
        points = np.frombuffer(decomposed.encode("utf-32-le"), np.uint32)
        yield points[fold_table()[points] != DROP].tobytes().decode("utf-32-le").lower()
        start = stop


def reject_surrogates(text: str, name: str, start: int = 0) -> None:
    """Refuse a text that is no Unicode text.

    Args:
        text: the text to examine.
        name: what to call it in the message.
        start: number of leading characters that are known to be good.

    Raises:
        InputFormatError: a lone surrogate, the trace of bytes that were decoded with `surrogateescape` or of UTF-16
            taken apart; it has no UTF-8 form and could not be stored.
    """
    for block_start in range(start, len(text), _CHECK_BLOCK_CHARS):
        try:
            text[block_start : block_start + _CHECK_BLOCK_CHARS].encode("utf-16-le")
        except UnicodeEncodeError as error:
            at = block_start + error.start
            raise InputFormatError(
                f"{name}: character {at} is the lone surrogate U+{ord(text[at]):04X}, expected Unicode text;"
                " decode the source with its right encoding, or with errors='replace'"
            ) from error


def _all_characters() -> str:
    points = np.arange(NUM_CODE_POINTS, dtype=np.uint32)
    return points.tobytes().decode("utf-32-le", "surrogatepass")


@functools.cache
def _categories() -> np.ndarray:
    """Return the general category of every code point, S2 [NUM_CODE_POINTS]."""
    characters = _all_characters()
    before, after = (
        "".join(map(unicodedata.category, part))
        for part in (characters[: _EMPTY_PLANES.start], characters[_EMPTY_PLANES.stop :])
    )
    return np.frombuffer((before + "Cn" * len(_EMPTY_PLANES) + after).encode("ascii"), dtype="S2")


@functools.cache
def _mark_runs() -> re.Pattern[str]:
    """Return what matches a run of characters with a combining class; all of those are marks."""
    marks = np.flatnonzero(_categories().astype("S1") == b"M").tolist()
    return re.compile(f"[{''.join(chr(point) for point in marks if unicodedata.combining(chr(point)))}]+")


def _sort_marks(run: re.Match[str]) -> str:
    """Do a part of NFD's work beforehand: its own sorting takes hours for a run of a million marks."""
    marks = [mark for mark in run.group() if unicodedata.category(mark) != "Mn"]
    return "".join(sorted(marks, key=unicodedata.combining))


def _fold_character(character: str) -> int:
    decomposed = unicodedata.normalize("NFD", character)
    folded = "".join([c for c in decomposed if unicodedata.category(c) != "Mn"]).lower()
    if not folded:
        return DROP
    # A mark that stays and has a combining class may trade places with the mark beside it; a capital sigma becomes
    # another letter at the end of a word.
    changes_places = unicodedata.combining(folded[0]) != 0
    if len(folded) > 1 or changes_places or _CAPITAL_SIGMA in decomposed:
        return IN_CONTEXT
    return ord(folded)
