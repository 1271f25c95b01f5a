"""Options of a corpus: where documents lie, what their files are, and where texts and labels are in them."""

import codecs
import dataclasses
import logging
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

from pipeline import filesystem
from pipeline.command_line import OptionGroup
from pipeline.errors import OptionError, require, require_choice

ROLES = ("text", "category", "second")
CONTAINERS = ("tree", "zip", "tar")
TABLES = ("tsv", "csv", "jsonl", "fasttext", "parquet")
INPUT_FORMATS = ("auto", *CONTAINERS, *TABLES)
QUOTINGS = ("none", "csv")
AUTO = "auto"
DEV = "dev"
OTHER_NAMES_OF_DEV = ("val", "valid", "validation")

_SPLIT_NAME = re.compile(r"[A-Za-z0-9_]+")
_UTF_16 = ("utf-16", "utf-16-le", "utf-16-be")

logger = logging.getLogger(__name__)


def is_utf_16(encoding: str) -> bool:
    """Tell whether an encoding writes ASCII characters as two bytes, so that lines cannot be cut before decoding."""
    return encoding in _UTF_16


def require_split_name(option: str, name: str) -> None:
    """Raise an `OptionError` unless files can be named after a split."""
    require(
        bool(_SPLIT_NAME.fullmatch(name)) and name != "rejected",
        f"--{option}: {name!r} cannot name a split; use letters, digits and '_', and not 'rejected'",
    )


def canonical_split(name: str) -> str:
    """Return a split's name here: `val`, `valid` and `validation` are other names of `dev`."""
    return DEV if name.lower() in OTHER_NAMES_OF_DEV else name


def rename_dev(names: Iterable[str]) -> None:
    """Say once that a split is called `dev` here.

    Raises:
        OptionError: `dev` and another name of it are both used.
    """
    names = set(names)
    others = sorted(name for name in names if canonical_split(name) != name)
    if others:
        require(
            len(others) == 1 and DEV not in names,
            f"{', '.join(sorted(names & {*others, DEV}))}: one split here, which is called dev; give it one name",
        )
        logger.info("the split %s is called dev here", others[0])


def canonical_encoding(encoding: str) -> str:
    """Return the one name of an encoding whose ASCII bytes are themselves everywhere, of UTF-16, or `auto`.

    Raises:
        OptionError: there is no such encoding of text, or lines cannot be cut in it.
    """
    if encoding == AUTO:
        return AUTO
    try:
        name = codecs.lookup(encoding).name
        plain = bytes(range(128))
        # An encoding of escapes decodes the first, and warns about the second.
        keeps_ascii = rb"\u0041".decode(encoding) == r"\u0041" and plain.decode(encoding) == plain.decode("ascii")
    except LookupError:
        raise OptionError(f"--encoding: unknown encoding {encoding!r}; try utf-8, gb18030 or auto") from None
    except UnicodeError:
        keeps_ascii = False
    require(
        keeps_ascii or is_utf_16(name),
        f"--encoding: {encoding!r} does not keep ASCII bytes; convert the file to UTF-8 first",
    )
    return name


@dataclasses.dataclass(frozen=True)
class InputSpec:
    """One `--input`: documents, and the split they are pinned to.

    Attributes:
        path: a tree, an archive, a table or a glob pattern, local or remote.
        split: the split all its documents go to; `None` lets their hash decide.
    """

    path: str
    split: str | None = None

    def __post_init__(self) -> None:
        require(bool(self.path), "--input: expected PATH or SPLIT=PATH, got no path")
        if self.split is not None:
            require_split_name("input", self.split)

    @classmethod
    def parse(cls, text: str) -> "InputSpec":
        """Parse `PATH` or `SPLIT=PATH`; a path that exists is a path, whatever characters it has."""
        split, equals, path = text.partition("=")
        if equals and _SPLIT_NAME.fullmatch(split) and not os.path.exists(text):
            return cls(filesystem.expand_user(path), split)
        return cls(filesystem.expand_user(text))


def parse_inputs(texts: Sequence[str]) -> tuple[InputSpec, ...]:
    """Parse all `--input`s; another name of the split `dev` is said once, and replaced."""
    specs = [InputSpec.parse(text) for text in texts]
    rename_dev([spec.split for spec in specs if spec.split])
    return tuple(dataclasses.replace(spec, split=canonical_split(spec.split)) if spec.split else spec for spec in specs)


@dataclasses.dataclass(frozen=True)
class Columns:
    """Where a table holds texts and labels.

    Attributes:
        fields: role (`text`, `category`, `second`) → the fields that make it up, by name, or by place from 0.
        width: how many columns a row has, where fields are places; `None` where they are names.
    """

    fields: Mapping[str, tuple[str | int, ...]]
    width: int | None = None

    @classmethod
    def parse(cls, text: str) -> "Columns":
        """Parse `text,category,-` (places) or `text=title+content,category=label` (names).

        Raises:
            OptionError: a role is missing, unknown, or named twice.
        """
        parts = text.split(",")
        by_name = any("=" in part for part in parts)
        roles = [part.partition("=")[0] for part in parts]
        known = [role for role in roles if role in ROLES]
        unknown = [role for role in roles if role not in (*ROLES, *(() if by_name else "-"))]
        require(not unknown, f"--columns: expected text, category, second or '-', got {', '.join(unknown)}")
        require(
            sorted(set(known)) == sorted(known) and "text" in known,
            f"--columns: expected text, category (and second) once each, '-' to skip one, got {text!r}",
        )
        if not by_name:
            return cls({role: (roles.index(role),) for role in known}, len(parts))
        fields: dict[str, tuple[str | int, ...]] = {}
        for part in parts:
            role, _, names = part.partition("=")
            fields[role] = tuple((names or role).split("+"))
            require(all(fields[role]), f"--columns: expected {role}=FIELD or {role}=FIELD+FIELD, got {part!r}")
        return cls(fields)

    def __str__(self) -> str:
        """Return the option's value."""
        if self.width is None:
            return ",".join(f"{role}={'+'.join(map(str, names))}" for role, names in self.fields.items())
        at = {places[0]: role for role, places in self.fields.items()}
        return ",".join(at.get(place, "-") for place in range(self.width))

    def named(self) -> "Columns":
        """Return the columns by name, for rows that have names and no places: `text,category` are names, too."""
        return self if self.width is None else Columns({role: (role,) for role in self.fields})

    def placed(self, header: Sequence[str]) -> "Columns":
        """Return the columns by place, in a table whose first row names them."""
        places = {role: tuple(header.index(str(name)) for name in names) for role, names in self.fields.items()}
        return Columns(places, len(header))

    @property
    def names(self) -> list[str]:
        """Every field that is used, by name."""
        return [str(name) for names in self.fields.values() for name in names]


def parse_levels(text: str) -> tuple[str, ...]:
    """Parse `--levels`."""
    return () if text == "none" else tuple(text.split(","))


@dataclasses.dataclass(frozen=True, kw_only=True)
class CorpusOptions:
    """What documents are and where they lie; see `run_preprocess.py --help` for the options' meaning.

    Attributes:
        delimiter: between the columns of a line; `None` is a tab, for CSV a comma.
        quoting: `csv` where fields may be quoted (RFC 4180); `None` is `csv` for CSV, else `none`.
        header: whether the first row names the columns; `None` uses one that is recognized.
        encoding: of texts, labels and column names; `auto` decides for each file.
        levels: roles of the directories around a document, from the top.
        glob: names of the files to use, in trees, directories and archives; `None` uses all.
    """

    inputs: tuple[InputSpec, ...]
    input_format: Literal["auto", "tree", "zip", "tar", "tsv", "csv", "jsonl", "fasttext", "parquet"] = "auto"
    columns: Columns = dataclasses.field(default_factory=lambda: Columns.parse("text,category"))
    delimiter: str | None = None
    quoting: Literal["none", "csv"] | None = None
    header: bool | None = None
    encoding: str = "utf-8"
    levels: tuple[str, ...] = ("category",)
    glob: str | None = None

    def __post_init__(self) -> None:
        require(bool(self.inputs), "--input: expected at least one, got none")
        require_choice("input_format", self.input_format, INPUT_FORMATS)
        if self.quoting is not None:
            require_choice("quoting", self.quoting, QUOTINGS)
        require(
            sorted(self.levels) in ([], ["category"], ["category", "second"]),
            "--levels: expected category, or second and category in the order of the directories, or none, got "
            f"{','.join(self.levels)!r}",
        )
        if self.delimiter is not None:
            object.__setattr__(self, "delimiter", self.delimiter.replace("\\t", "\t"))
            require(
                bool(self.delimiter) and not set(self.delimiter or "") & set('\r\n"'),
                f"--delimiter: expected characters between columns, no quote and no line end, got {self.delimiter!r}",
            )
        # Rejected documents are listed under this name, which must not depend on how it is spelt.
        object.__setattr__(self, "encoding", canonical_encoding(self.encoding))

    def is_default(self, option: str) -> bool:
        """Tell whether an option has its default value, which of texts without labels is another."""
        if option == "columns" and str(self.columns) == "text":
            return True
        return bool(getattr(self, option) == getattr(CorpusOptions(inputs=self.inputs), option))


def add_corpus_options(group: OptionGroup, *, columns: str = "text,category") -> None:
    """Add the options that describe documents, the same for learning and for predicting.

    Args:
        group: of the fields of `CorpusOptions`.
        columns: default of the option.
    """
    group.add("input_format", "what the inputs, or the tables in archives, are")
    group.add(
        "columns",
        "what a table's columns hold, by place (text,category,second; '-' skips one) or by name "
        "(text=title+content,category=label); --columns=-,text,category where the first is '-'",
        parse=str,
        default=columns,
    )
    group.add(
        "delimiter",
        "between the columns of a line, such as '_!_'",
        metavar="CHARACTERS",
        default="a tab, for CSV a comma",
    )
    group.add("quoting", "csv: fields may be quoted", default="csv for CSV, else none")
    group.add(
        "header",
        "whether the first line names the columns",
        default="it does if --columns has the same names",
    )
    group.add(
        "encoding",
        "of texts, labels and column names: utf-8, gb18030 (covers GBK and GB2312), big5, utf-16; auto: UTF-8, or else "
        "GB18030, for each file",
    )
    group.add(
        "levels",
        "what the directories around a document are, from the top: category, or second,category; none: documents have "
        "no labels",
        parse=parse_levels,
        metavar="NAMES",
        default="category",
    )
    group.add(
        "glob",
        "which files of trees, directories and archives to use, such as '*.txt'",
        metavar="PATTERN",
        default="all",
    )


def parse_corpus_options(given: dict[str, Any]) -> dict[str, Any]:
    """Take the options of a corpus, without its inputs, out of parsed arguments.

    Raises:
        OptionError: see `Columns.parse`.
    """
    names = [field.name for field in dataclasses.fields(CorpusOptions) if field.name in given]
    options = {name: given.pop(name) for name in names if name != "inputs"}
    return options | ({"columns": Columns.parse(options["columns"])} if "columns" in options else {})
