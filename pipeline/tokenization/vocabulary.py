"""The vocabulary: which token has which id, and the tokens every BERT has."""

import dataclasses
import json
import os
from collections.abc import Iterable, Mapping

from pipeline import filesystem
from pipeline.errors import InputFormatError

PAD_TOKEN = "[PAD]"
UNK_TOKEN = "[UNK]"
CLS_TOKEN = "[CLS]"
SEP_TOKEN = "[SEP]"
# In each row, [CLS] and [SEP]: one of this length has no token of its own.
NUM_EDGE_TOKENS = 2
CONTINUATION = "##"  # begins tokens that continue a word
SPECIAL_TOKENS = (PAD_TOKEN, UNK_TOKEN, CLS_TOKEN, SEP_TOKEN)

TOKENIZER_CONFIG_NAME = "tokenizer_config.json"

_EXPECTED = "expected the vocab.txt of a BERT directory, one token per line"
_EXPECTED_JSON = "expected the tokenizer.json of a BERT, whose model is a WordPiece with a vocabulary"
_UNUSED = "[line {}: unused]"  # no text yields it: "[" is a token of its own


@dataclasses.dataclass(frozen=True, kw_only=True)
class VocabFile:
    """A vocabulary as a BERT directory holds it.

    Attributes:
        content: bytes of a `vocab.txt`.
        cased: whether the tokenizer configuration beside it keeps letter case and accents; `None` where none says so.
    """

    content: bytes
    cased: bool | None


def read_vocab_file(path: str | os.PathLike[str]) -> VocabFile:
    """Read a `vocab.txt` or a `tokenizer.json`, local or remote, and the `tokenizer_config.json` beside it.

    Raises:
        MissingInputError: no file there.
        InputFormatError: a JSON file does not hold what it should. A `vocab.txt` is not checked, see `parse_vocab`.
    """
    path = os.fspath(path)
    content, cased = filesystem.read_bytes(path), None
    if path.endswith(".json"):
        try:
            tokenizer = json.loads(content)
            ids: dict[str, int] = tokenizer["model"]["vocab"]
            tokens = sorted(ids, key=ids.__getitem__)
            cased = not (tokenizer.get("normalizer") or {}).get("lowercase", True)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputFormatError(f"{path}: {type(error).__name__}: {error}; {_EXPECTED_JSON}") from None
        if [ids[token] for token in tokens] != list(range(len(ids))) or not set(SPECIAL_TOKENS) <= set(ids):
            raise InputFormatError(f"{path}: no vocabulary with {', '.join(SPECIAL_TOKENS)}; {_EXPECTED_JSON}")
        content = vocab_content(tokens)
    config_path = filesystem.join(os.path.dirname(path), TOKENIZER_CONFIG_NAME)
    if filesystem.exists(config_path):
        try:
            lowers = json.loads(filesystem.read_bytes(config_path)).get("do_lower_case")
        except (ValueError, AttributeError) as error:
            raise InputFormatError(f"{config_path}: not a JSON object ({error})") from None
        cased = cased if lowers is None else not lowers
    return VocabFile(content=content, cased=cased)


def vocab_content(tokens: Iterable[str]) -> bytes:
    """Return the bytes of a `vocab.txt` with these tokens in id order, the same for equal vocabularies."""
    return "".join(f"{token}\n" for token in tokens).encode("utf-8")


def vocab_warnings(vocab: Mapping[str, int], *, cased: bool, is_case_given: bool) -> list[str]:
    """Say which entries of a vocabulary no text can reach although they look as if one could.

    Args:
        vocab: token to id.
        cased: whether texts keep letter case and accents.
        is_case_given: whether the user said so, and needs no warning about it.
    """
    warnings = []
    num_unused = sum(token.startswith(_UNUSED[:6]) for token in vocab)
    if num_unused:
        warnings.append(f"{num_unused:,} lines are empty or repeated further down, and their ids stay unused")
    words = [token for token in vocab if token.removeprefix("##").isalnum()]
    capitals = [token for token in words if token != token.lower()]
    if capitals and not cased and not is_case_given:
        warnings.append(
            f"{len(capitals):,} entries have capitals ({', '.join(capitals[:3])}, …), which texts in lower case never "
            "reach; --cased keeps case, --no-cased says that this is right"
        )
    if words and not capitals and cased and not is_case_given:
        warnings.append("no entry has a capital, and with case kept words that have one become [UNK]; see --no-cased")
    return warnings


def load_vocab(path: str | os.PathLike[str]) -> dict[str, int]:
    """Read a BERT vocabulary file, local or remote; see `read_vocab_file` and `parse_vocab`.

    Raises:
        MissingInputError: no file there.
        InputFormatError: it is no vocabulary.
    """
    return parse_vocab(read_vocab_file(path).content, os.fspath(path))


def parse_vocab(data: bytes, path: str) -> dict[str, int]:
    """Parse a BERT vocabulary, one token per line; the id of a token is its line number, from 0.

    Lines end at a newline (or carriage return and newline) and nowhere else, and nothing is stripped: entry 343 of the
    Chinese vocabulary *is* a line separator, U+2028, at which `str.splitlines` and text readers cut.

    Published vocabularies have empty lines and repeated ones. Ids are line numbers all the same, as the rows of the
    embedding table are, and a repeated token has its last line's, as in Google's and Hugging Face's loaders.
    (keras-bert gives a repeated token and the one behind it the same id.)

    Args:
        data: UTF-8 text; a byte-order mark and newlines at the end do not matter.
        path: where it comes from, for messages.

    Returns:
        Token to id, in id order; an empty or repeated line has a name that no text yields.

    Raises:
        InputFormatError: anything but a vocabulary with [PAD], [UNK], [CLS] and [SEP] in it, [PAD] first.
    """
    try:
        lines = data.decode("utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise InputFormatError(
            f"vocabulary {path}, line {line}: byte 0x{data[error.start]:02X} is not UTF-8; {_EXPECTED}"
        ) from error
    lines = [line.removesuffix("\r") for line in lines]
    while lines and not lines[-1]:
        lines.pop()
    missing = [token for token in SPECIAL_TOKENS if token not in lines]
    if missing:
        raise InputFormatError(
            f"vocabulary {path}: none of its {len(lines)} lines is {' or '.join(missing)}; {_EXPECTED}"
        )
    last = {token: number for number, token in enumerate(lines) if token}
    vocab = {
        token if last.get(token) == number else _UNUSED.format(number + 1): number for number, token in enumerate(lines)
    }
    if vocab[PAD_TOKEN] != 0:
        raise InputFormatError(
            f"vocabulary {path}, line {vocab[PAD_TOKEN] + 1}: expected {PAD_TOKEN} on line 1, because rows are padded"
            " with id 0"
        )
    return vocab
