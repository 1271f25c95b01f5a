"""What the `--input`s are: found out, checked and turned into sources before any work starts."""

import dataclasses
import logging
import os
import re
from collections.abc import Callable, Iterator, Sequence

from pipeline import filesystem
from pipeline.corpus.archive import MAX_TABLES, ArchiveKind, TarSource, ZipSource, list_names
from pipeline.corpus.columns import make_parquet, make_table
from pipeline.corpus.detect import Part, container_of, refuse_foreign, refuse_no_text, refuse_office
from pipeline.corpus.documents import key_from_path
from pipeline.corpus.options import TABLES, CorpusOptions, InputSpec, canonical_split
from pipeline.corpus.parquet import ParquetSource
from pipeline.corpus.streams import BYTES_PER_CHUNK, compression_of
from pipeline.corpus.table import Delimited, Quoted, TableSource, open_table
from pipeline.corpus.tree import Layout, TreeSource, is_hidden
from pipeline.errors import InputFormatError, MissingInputError, require

Source = TreeSource | ZipSource | TarSource | TableSource | ParquetSource

_SPLITS_IN_NAMES = {"training": "train", "testing": "test"} | {
    name: canonical_split(name) for name in ("train", "dev", "val", "valid", "validation", "test")
}
_TABLE_FORMATS = "csv", "tsv", "json", "jsonl", "ndjson", "parquet"
_PACKED = "gz", "bz2", "xz", "zst", "zip", "tar", "rar", "7z"
_TABLE_SUFFIXES = tuple(f".{suffix}" for suffix in (*_TABLE_FORMATS, *_PACKED))

logger = logging.getLogger(__name__)


def open_sources(
    options: CorpusOptions, *, output_dir: str | None = None, needs_second: bool = False
) -> tuple[Source, ...]:
    """Find out what every input is, and refuse what cannot be read.

    Args:
        options: what was said about the corpus.
        output_dir: lies in no input.
        needs_second: whether each document must bring a second label.

    Raises:
        MissingInputError: an input is not there, is empty, or is not of the kind that was asked for.
        InputFormatError: it cannot be read, or not with these columns.
        OptionError: an input has no second label; or an option has no effect.
    """
    parts = [part for spec in options.inputs for part in _parts_of(spec, options)]
    seen: set[str] = set()
    for part in parts:
        place = _place(part.location)
        require(place not in seen, f"--input: {part.location} is given twice")
        seen.add(place)
        require(
            output_dir is None or part.kind != "tree" or not _place(output_dir).startswith(place),
            f"--output {output_dir}: lies inside the input {part.path}; give a directory elsewhere",
        )
        has_second = "second" in (options.columns.fields if part.is_table else options.levels)
        require(
            has_second or not needs_second,
            f"--second_label column: {part.location} is a {part.kind}, of which no column or directory is said to be "
            "the second label; see --columns and --levels, or use taxonomy or random",
        )
    prefixes = _key_prefixes([(part.location, part.is_table) for part in parts])
    sources = tuple(_make_source(part, options, prefix) for part, prefix in zip(parts, prefixes, strict=True))
    _check_effect(options, parts, sources)
    return sources


def _check_effect(options: CorpusOptions, parts: Sequence[Part], sources: Sequence[Source]) -> None:
    """Refuse options that none of the inputs uses."""
    delimited = [s for s in sources if isinstance(s, TableSource) and isinstance(s.syntax, (Delimited, Quoted))]
    for option, what, is_used in (
        ("columns", "tables", any(part.is_table for part in parts)),
        ("delimiter", "TSV and CSV", bool(delimited)),
        ("quoting", "TSV and CSV", bool(delimited)),
        ("header", "TSV and CSV", bool(delimited)),
        ("encoding", "files that are no Parquet", any(part.kind != "parquet" for part in parts)),
        ("levels", "trees", any(not part.is_table for part in parts)),
        ("glob", "trees, directories and archives", any(not part.is_table or part.in_directory for part in parts)),
    ):
        require(options.is_default(option) or is_used, f"--{option}: only used for {what}, and no --input is one")


# What inputs hold


def _place(path: str) -> str:
    """Return a path in the one spelling that can be compared, with a slash at the end."""
    return filesystem.canonical(path).rstrip("/") + "/"


def _layout(options: CorpusOptions) -> Layout:
    return Layout(levels=options.levels, glob=options.glob, encoding=options.encoding)


def _parts_of(spec: InputSpec, options: CorpusOptions) -> Iterator[Part]:
    paths = _expand(spec.path)
    splits = {split for path in paths if (split := _split_in_name(path))}
    if len(splits) > 1 and spec.split is None:
        logger.warning(
            "--input %s: its files are divided again, though their names say %s; to keep these splits, say SPLIT=PATH "
            "for each",
            spec.path,
            ", ".join(sorted(splits)),
        )
    for path in paths:
        if _is_directory(path):
            yield from _directory_parts(path, spec.split, options)
        else:
            yield from _file_parts(path, spec.split, options)


def _expand(path: str) -> list[str]:
    """Return the files a pattern names, or the path itself where it is none."""
    if not any(character in path for character in "*?[") or (not filesystem.is_remote(path) and os.path.exists(path)):
        return [path]
    matches = filesystem.match(path)
    if not matches:
        raise MissingInputError(f"--input {path}: no file matches this pattern")
    return matches


def _is_directory(path: str) -> bool:
    """Tell whether an input is a directory, and make sure that it is there and can be read again."""
    if filesystem.is_remote(path):
        if not path.endswith("/") and filesystem.exists(path):
            return False
        if filesystem.list_below(path):
            return True
        raise MissingInputError(f"--input {path}: no such file, and nothing below it")
    if not os.path.exists(path):
        raise MissingInputError(f"--input {path}: no such file or directory")
    # A named pipe, a process substitution: the job reads every input several times.
    if not os.path.isdir(path) and not os.path.isfile(path):
        raise MissingInputError(
            f"--input {path}: expected a regular file or a directory, which can be read again; write it to a file first"
        )
    return os.path.isdir(path)


def _directory_parts(path: str, split: str | None, options: CorpusOptions) -> list[Part]:
    """Return a tree, or the tables of a directory whose files all lie in one place."""
    wanted, layout = options.input_format, _layout(options)
    if wanted in ("zip", "tar"):
        raise MissingInputError(f"--input {path}: expected a {wanted} file, found a directory; use --input_format tree")
    if not options.levels:
        return [Part(path=path, split=split, kind="tree")]
    root, files = _remote_root(path, layout) if filesystem.is_remote(path) else _local_root(path, layout)
    if files and root != path:
        first = Part(path=filesystem.join(root, files[0]), split=split, kind="text")
        if wanted == "tree" or len(files) > MAX_TABLES or not _are_tables(files, first, options):
            root, files = filesystem.parent(root), []  # the one category of this input
    if root != path:
        logger.info("%s: what lies in it is in %s", path, os.path.relpath(root, path))
    if wanted == "tree" and files:
        raise MissingInputError(
            f"--input {path}: expected one directory for each category, found {len(files):,} files and no directory; "
            "give the directory above"
        )
    if not files:
        return [Part(path=root, split=split, kind="tree")]
    if len(files) > MAX_TABLES:
        raise InputFormatError(
            f"--input {path}: {len(files):,} files in one directory, {os.path.basename(root)}: expected one directory "
            "for each category, or tables; if it is one of the categories, give the directory above"
        )
    splits = _splits_of(path, files, split)
    found = [
        _table_part(Part(path=filesystem.join(root, name), split=splits[name], kind="text", in_directory=True), options)
        for name in files
    ]
    return found


def _local_root(path: str, layout: Layout) -> tuple[str, list[str]]:
    """Return the directory of the categories, or the one directory that holds all files, and their names."""
    root = path
    while True:
        files, directories = _entries(root, layout)
        if not files and not directories:
            raise MissingInputError(
                f"--input {root}: the directory is empty; expected one directory for each category in it"
                + (f", with files called {layout.glob}" if layout.glob else "")
            )
        if not directories:
            return root, files
        inner = os.path.join(root, directories[0])
        # As `Layout.num_around` has it for archives.
        if (
            files
            or len(directories) > 1
            or not (_reaches(inner, len(layout.levels)) or _holds_files_only(inner, layout))
        ):
            return root, []
        root = inner


def _entries(directory: str, layout: Layout) -> tuple[list[str], list[str]]:
    """Return the names of the files and of the directories in a directory, sorted, without what is left out."""
    try:
        names = sorted(os.fsdecode(name) for name in os.listdir(os.fsencode(directory)) if not is_hidden(name))
    except OSError as error:
        raise MissingInputError(f"--input {directory}: cannot list this directory: {error.strerror}") from None
    # Not `DirEntry.is_dir()`, which fails on a link to itself.
    directories = [name for name in names if os.path.isdir(os.path.join(directory, name))]
    is_directory = set(directories)
    files = [os.fsdecode(name) for name in layout.choose(os.fsencode(n) for n in names if n not in is_directory)]
    return files, directories


def _reaches(directory: str, depth: int) -> bool:
    """Tell whether a directory holds directories so many levels deep."""
    if depth == 0:
        return True
    _, directories = _entries(directory, Layout())
    return any(_reaches(os.path.join(directory, name), depth - 1) for name in directories)


def _holds_files_only(directory: str, layout: Layout) -> bool:
    files, directories = _entries(directory, layout)
    return bool(files) and not directories


def _remote_root(path: str, layout: Layout) -> tuple[str, list[str]]:
    prefix = path.rstrip("/") + "/"
    names = [found.removeprefix(prefix).encode() for found in filesystem.list_below(path)]
    names = list(layout.choose(names))
    directories = {name.rpartition(b"/")[0] for name in names}
    if len(directories) == 1:
        inside = directories.pop().decode()
        return (filesystem.join(path, inside) if inside else path), [os.path.basename(name).decode() for name in names]
    depth = layout.num_around(names)
    around = names[0].decode().split("/")[:depth] if names else []
    return (filesystem.join(path, *around) if around else path), []


def _split_in_name(path: str) -> str | None:
    """Return the split that a file's name says, where it says one."""
    words = re.split("[^a-z]+", os.path.basename(path).lower())
    found = {_SPLITS_IN_NAMES[word] for word in words if word in _SPLITS_IN_NAMES}
    return found.pop() if len(found) == 1 else None


def _splits_of(path: str, names: Sequence[str], split: str | None) -> dict[str, str | None]:
    """Return the split of each table of a directory or an archive, which their names may say.

    Raises:
        OptionError: some names say one, others do not.
    """
    found = {name: _split_in_name(name) for name in names}
    if split is not None or len({*found.values()} - {None}) < 2:
        return dict.fromkeys(names, split)
    without = [name for name, said in found.items() if said is None]
    require(
        not without,
        f"--input {path}: the names of some files say a split, that of {(without or [''])[0]} does not; give each with "
        "SPLIT=PATH, or choose with --glob",
    )
    logger.info("%s: splits as the names say: %s", path, ", ".join(f"{name} {said}" for name, said in found.items()))
    return found


def _file_parts(path: str, split: str | None, options: CorpusOptions) -> list[Part]:
    """Return what one file holds: a table, a tree in an archive, or the tables of an archive."""
    wanted = options.input_format
    with filesystem.reading(path) as stream:
        head = stream.read(16)
    if not head:
        raise MissingInputError(f"--input {path}: the file is empty")
    if wanted in ("auto", "zip", "tar"):
        refuse_foreign(path, head)
    part = Part(path=path, split=split, kind="text")
    kind: str | None = wanted
    if wanted not in ("zip", "tar"):
        part = dataclasses.replace(part, start=_read_start(part))
        kind = container_of(part.start)
        if kind in ("zip", "parquet") and compression_of(head):
            raise InputFormatError(f"{path}: a {kind} file that is compressed once more; decompress it")
    if kind in ("zip", "tar"):
        return _archive_parts(path, "zip" if kind == "zip" else "tar", split, options)
    if wanted == "tree":
        raise MissingInputError(f"--input {path}: expected a directory of categories, found a file")
    return [_table_part(part, options)]


def _archive_parts(path: str, kind: ArchiveKind, split: str | None, options: CorpusOptions) -> list[Part]:
    layout, wanted = _layout(options), options.input_format
    names = list_names(path, kind)
    tree = Part(path=path, split=split, kind=kind)
    if names is None:
        return [tree]
    refuse_office(path, names)
    number_of = {name: number for number, name in enumerate(names)}
    chosen = {os.fsdecode(name): number_of[name] for name in layout.choose(names)}
    directories = {name.rpartition("/")[0] for name in chosen}
    if wanted == "tree" or not options.levels or not chosen or (len(directories) > 1 and wanted not in TABLES):
        return [tree]
    first = Part(path=path, split=split, kind="text", member=(kind, min(chosen.values())))
    if directories != {""} and not _are_tables(list(chosen), first, options):
        return [tree]
    splits = _splits_of(path, list(chosen), split)
    return [
        _table_part(
            Part(
                path=path,
                split=splits[name],
                kind="text",
                member=(kind, number),
                member_name=name,
                in_directory=True,
            ),
            options,
        )
        for name, number in chosen.items()
    ]


def _are_tables(names: Sequence[str], first: Part, options: CorpusOptions) -> bool:
    """Tell whether the files of one directory, which may be a category's, are tables, by their names and the first."""
    if options.input_format in TABLES or any(map(_split_in_name, names)) or names[0].lower().endswith(_TABLE_SUFFIXES):
        return True
    start = _read_start(first)
    line = start.split(b"\n", 1)[0]
    return container_of(start) is not None or (options.delimiter or "\t").encode() in line or line.startswith(b"{")


def _read_start(part: Part) -> bytes:
    with open_table(part.path, part.member) as (stream, _):
        return stream.read(BYTES_PER_CHUNK)


def _table_part(part: Part, options: CorpusOptions) -> Part:
    """Return a table with its first bytes, which are not those of something else."""
    start = part.start or _read_start(part)
    if not start:
        raise MissingInputError(f"--input {part.location}: the file is empty")
    kind = container_of(start)
    if kind == "parquet" and part.member is None:
        return dataclasses.replace(part, kind="parquet")
    if kind is not None or (part.member and compression_of(start)):
        advice = "unpack the outer one, and give the directory" if part.member else "give it by itself, or unpack it"
        raise InputFormatError(
            f"{part.location}: a {kind or 'compressed'} file within an archive or directory; {advice}"
        )
    if options.input_format == "auto":
        refuse_foreign(part.location, start)
    refuse_no_text(part.location, start, options.encoding)
    return dataclasses.replace(part, start=start)


# From parts to sources


def _make_source(part: Part, options: CorpusOptions, key_prefix: str) -> Source:
    if part.kind == "parquet":
        return make_parquet(part, options, key_prefix)
    if part.kind == "text":
        try:
            return make_table(part, options, key_prefix)
        except InputFormatError as error:
            if not part.in_directory:
                raise
            raise InputFormatError(
                f"{error} (all files lie in one directory, so that they are tables; for documents, give the directory "
                "that holds one directory for each category; --glob chooses files)"
            ) from None
    makers: dict[str, Callable[..., Source]] = {"tree": TreeSource, "zip": ZipSource, "tar": TarSource}
    return makers[part.kind](path=part.path, split=part.split, key_prefix=key_prefix, layout=_layout(options))


# Keys


def _key_prefixes(inputs: list[tuple[str, bool]]) -> list[str]:
    """Return what goes before each input's keys: as little as keeps them apart.

    A tree's keys need nothing, a table's start with its file name. Inputs that would collide use their name, and as
    many of the directories around it as it takes: never the whole path, which would be another on another machine.
    """
    places = [filesystem.canonical(path).strip("/").split("/") for path, _ in inputs]
    depths = [int(is_table) for _, is_table in inputs]
    while True:
        prefixes = ["/".join(place[len(place) - depth :]) for place, depth in zip(places, depths, strict=True)]
        prefixes = [
            f"{prefix}/" if not is_table and prefix else prefix
            for prefix, (_, is_table) in zip(prefixes, inputs, strict=True)
        ]
        deeper = [
            min(depth + _collides(index, prefixes, inputs), len(place))
            for index, (depth, place) in enumerate(zip(depths, places, strict=True))
        ]
        if deeper == depths:
            return [key_from_path(os.fsencode(prefix)) for prefix in prefixes]
        depths = deeper


def _collides(index: int, prefixes: list[str], inputs: list[tuple[str, bool]]) -> bool:
    """Tell whether a key of one input could be a key of another."""
    own, (_, is_table) = prefixes[index], inputs[index]
    others = [
        prefix
        for at, prefix in enumerate(prefixes)
        # A table's keys end in a line's number, those of a tree in a file's name.
        if at != index and inputs[at][1] == is_table
    ]
    return any(other == own if is_table else other.startswith(own) or own.startswith(other) for other in others)
