"""Label maps (name ↔ id), and where a document's second label comes from.

Labels are compared after Unicode normalization (NFC), without invisible characters and surrounding white space, so that
two spellings of one name which look the same are the same label. A label may hold any character but a tab or a line
break; it is never used as a path.
"""

import dataclasses
import unicodedata
from collections.abc import Iterable, Mapping
from importlib import resources

from pipeline import filesystem
from pipeline.errors import InputFormatError, OptionError, shorten

_JOINERS = "\u200c\u200d"
THUCNEWS_TAXONOMY = "thucnews_taxonomy.tsv"


def normalize_label(name: str) -> str:
    """Return a label's canonical form: NFC, without invisible characters and surrounding white space.

    Invisible are byte-order marks, zero-width spaces, soft hyphens, marks of direction and the like. The two that join
    or part their neighbours (U+200C, U+200D) mean something inside a name, and are removed at its ends alone.
    """
    if not name.isascii():
        name = unicodedata.normalize("NFC", name)
        name = "".join(c for c in name if c in _JOINERS or unicodedata.category(c) != "Cf")
        name = name.strip().strip(_JOINERS)
    return name.strip()


@dataclasses.dataclass(frozen=True)
class LabelMap:
    """An ordered set of label names; a label's id is its position.

    Attributes:
        names: the labels in id order.
    """

    names: tuple[str, ...]

    @classmethod
    def from_names(cls, names: Iterable[str]) -> "LabelMap":
        """Build a map with ids in code-point order of the names, which no listing order can change."""
        return cls(tuple(sorted(set(names))))

    def __len__(self) -> int:
        return len(self.names)

    def ids(self) -> dict[str, int]:
        """Return name → id."""
        return {name: index for index, name in enumerate(self.names)}


@dataclasses.dataclass(frozen=True)
class Taxonomy:
    """From category to parent.

    Attributes:
        parents: category → parent, both canonical.
        source: where it was read from, for messages.
    """

    parents: Mapping[str, str]
    source: str

    def parent(self, category: str) -> str:
        """Return a category's parent.

        Raises:
            OptionError: the taxonomy does not know the category.
        """
        try:
            return self.parents[category]
        except KeyError:
            raise OptionError(
                f"category {shorten(category)} has no parent in {self.source} (which has {len(self.parents)}: "
                f"{', '.join(sorted(self.parents)[:5])}, …); add a line '{category[:40]}<TAB>parent' to a --taxonomy "
                "file, use --second_label random or column, or check --columns if it is a text"
            ) from None


def read_taxonomy(path: str | None) -> Taxonomy:
    """Read a two-column TSV from category to parent; `None` reads the one shipped for THUCNews's 14 categories.

    Raises:
        MissingInputError: there is no such file.
        InputFormatError: a line is not `category<TAB>parent`, or a category has two parents.
    """
    if path is None:
        source = f"the built-in {THUCNEWS_TAXONOMY}"
        lines = decode_lines(resources.files("pipeline.dataset").joinpath(THUCNEWS_TAXONOMY).read_bytes(), source)
    else:
        source = path
        lines = decode_lines(filesystem.read_bytes(path), source)
    parents: dict[str, str] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.startswith("#"):
            continue
        fields = [normalize_label(field) for field in line.split("\t")]
        if len(fields) != 2 or not all(fields):
            raise InputFormatError(f"{source}, line {number}: expected category<TAB>parent, got {line[:80]!r}")
        category, parent = fields
        if parents.setdefault(category, parent) != parent:
            raise InputFormatError(
                f"{source}, line {number}: {category!r} already has the parent {parents[category]!r}, now {parent!r}"
            )
    if not parents:
        raise InputFormatError(f"{source}: no line of the form category<TAB>parent")
    return Taxonomy(parents, source)


def read_category_names(path: str) -> LabelMap:
    """Read the categories in id order, one a line.

    Raises:
        MissingInputError: there is no such file.
        InputFormatError: a line is empty, or a name is repeated.
    """
    names: dict[str, int] = {}
    for number, line in enumerate(decode_lines(filesystem.read_bytes(path), path), 1):
        name = normalize_label(line)
        if not name:
            raise InputFormatError(
                f"{path}, line {number}: expected the name of category {number - 1}, got an empty line"
            )
        if name in names:
            raise InputFormatError(f"{path}, line {number}: category {name!r} is already on line {names[name]}")
        names[name] = number
    if not names:
        raise InputFormatError(f"{path}: expected one category name a line, got an empty file")
    return LabelMap(tuple(names))


def decode_lines(data: bytes, source: str) -> list[str]:
    """Split a small UTF-8 text file into lines at newlines alone, without a byte-order mark or carriage returns."""
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputFormatError(
            f"{source}: expected UTF-8 text, found byte 0x{data[error.start]:02x} at {error.start}"
        ) from None
    lines = [line.removesuffix("\r") for line in text.split("\n")]
    return lines[:-1] if lines and not lines[-1] else lines
