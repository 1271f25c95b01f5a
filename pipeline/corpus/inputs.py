"""What the `--input`s are: found out, checked and turned into sources before any work starts."""

import os

from pipeline import filesystem
from pipeline.config import PreprocessConfig, require
from pipeline.corpus.documents import key_from_path
from pipeline.corpus.sources import Source, TreeSource, TsvSource, ZipSource
from pipeline.errors import InputFormatError, MissingInputError

_ZIP_MAGICS = (b"PK\x03\x04", b"PK\x05\x06")  # the first member, or the directory of an empty archive


def open_sources(config: PreprocessConfig) -> tuple[Source, ...]:
    """Find out what every input is, and refuse what cannot be read.

    Raises:
        MissingInputError: an input is not there, is empty, or is not of the kind that was asked for.
        InputFormatError: no line of a TSV has the expected columns.
        OptionError: the second label is to come from a column, but an input has none; or an option has no effect.
    """
    found = [(spec, path, _kind(path, config.input_format)) for spec in config.inputs for path in _expand(spec.path)]
    seen: set[str] = set()
    for _, path, kind in found:
        place = _place(path)
        require(place not in seen, f"--input: {path} is given twice")
        seen.add(place)
        require(
            kind != "tree" or not _place(config.output_dir).startswith(place),
            f"--output {config.output_dir}: lies inside the input {path}; give a directory elsewhere",
        )
        require(
            config.second_label != "column" or kind == "tsv",
            f"--second_label column: {path} is a {kind}, which has no columns; use taxonomy or random",
        )
    for option in ("tsv_columns", "tsv_header", "tsv_encoding"):
        require(
            config.is_default(option) or "tsv" in {kind for *_, kind in found},
            f"--{option}: only used for TSVs, and no --input is one",
        )
    prefixes = _key_prefixes([(path, kind) for _, path, kind in found])
    sources: list[Source] = []
    for (spec, path, kind), prefix in zip(found, prefixes, strict=True):
        if kind == "tsv":
            source = TsvSource(
                path=path,
                split=spec.split,
                key_prefix=prefix,
                encoding=config.tsv_encoding,
                columns=config.tsv_columns,
                header=config.tsv_header,
            )
            _check_columns(source)
            sources.append(source)
        else:
            kind_of_source = TreeSource if kind == "tree" else ZipSource
            sources.append(kind_of_source(path=path, split=spec.split, key_prefix=prefix))
    return tuple(sources)


def _place(path: str) -> str:
    """Return a path in the one spelling that can be compared, with a slash at the end."""
    return filesystem.canonical(path).rstrip("/") + "/"


def _expand(path: str) -> list[str]:
    """Return the files a pattern names, or the path itself where it is none."""
    if not any(character in path for character in "*?[") or (not filesystem.is_remote(path) and os.path.exists(path)):
        return [path]
    matches = filesystem.match(path)
    if not matches:
        raise MissingInputError(f"--input {path}: no file matches this pattern")
    return matches


def _kind(path: str, wanted: str) -> str:
    """Tell whether an input is a `tree`, a `zip` or a `tsv`, and check that it is what was wanted."""
    if filesystem.is_remote(path):
        if not path.endswith("/") and filesystem.exists(path):
            is_tree = False
        elif filesystem.list_below(path):
            is_tree = True
        else:
            raise MissingInputError(f"--input {path}: no such file, and nothing below it")
    elif not os.path.exists(path):
        raise MissingInputError(f"--input {path}: no such file or directory")
    else:
        is_tree = os.path.isdir(path)
        # A named pipe, a process substitution: the job reads every input several times.
        if not is_tree and not os.path.isfile(path):
            raise MissingInputError(
                f"--input {path}: expected a regular file or a directory, which can be read again; "
                "write it to a file first"
            )
    if is_tree:
        if wanted not in ("auto", "tree"):
            raise MissingInputError(
                f"--input {path}: expected a {wanted} file, found a directory; use --input_format tree"
            )
        if not filesystem.is_remote(path):
            _check_tree(path)
        return "tree"
    if wanted == "tree":
        raise MissingInputError(f"--input {path}: expected a directory of categories, found a file")
    with filesystem.reading(path) as stream:
        start = stream.read(len(_ZIP_MAGICS[0]))
    if not start:
        raise MissingInputError(f"--input {path}: the file is empty")
    if wanted == "auto":
        return "zip" if start in _ZIP_MAGICS else "tsv"
    return wanted


def _check_tree(path: str) -> None:
    try:
        with os.scandir(path) as listing:
            entries = [entry for entry in listing if not entry.name.startswith(".")]
    except OSError as error:
        raise MissingInputError(f"--input {path}: cannot list this directory: {error.strerror}") from None
    if not entries:
        raise MissingInputError(
            f"--input {path}: the directory is empty; expected one directory for each category in it"
        )
    # Not `entry.is_dir()`, which fails on a link to itself.
    if not any(os.path.isdir(entry.path) for entry in entries):
        raise MissingInputError(
            f"--input {path}: expected one directory for each category, found {len(entries):,} files and no directory; "
            "give the directory above, or each TSV file by its name"
        )


def _check_columns(source: TsvSource) -> None:
    """Refuse a TSV of whose first lines none has the expected number of columns."""
    with filesystem.reading(source.path) as raw:
        lines = next(source.blocks(raw), b"").split(b"\n")[:20]
    counts = {line.count(b"\t") + 1 for line in lines if line}
    if counts and len(source.columns) not in counts:
        raise InputFormatError(
            f"{source.path}: expected {len(source.columns)} tab-separated columns ({','.join(source.columns)}), "
            f"got {', '.join(map(str, sorted(counts)))}; say what the columns are with --tsv_columns ('-' skips one)"
        )


def _key_prefixes(inputs: list[tuple[str, str]]) -> list[str]:
    """Return what goes before each input's keys: as little as keeps them apart.

    A tree's keys need nothing, a TSV's start with its file name. Inputs that would collide use their name, and as many
    of the directories around it as it takes: never the whole path, which would be another on another machine.
    """
    places = [filesystem.canonical(path).strip("/").split("/") for path, _ in inputs]
    depths = [int(kind == "tsv") for _, kind in inputs]
    while True:
        prefixes = ["/".join(place[len(place) - depth :]) for place, depth in zip(places, depths, strict=True)]
        prefixes = [
            f"{prefix}/" if kind != "tsv" and prefix else prefix
            for prefix, (_, kind) in zip(prefixes, inputs, strict=True)
        ]
        deeper = [
            min(depth + _collides(index, prefixes, inputs), len(place))
            for index, (depth, place) in enumerate(zip(depths, places, strict=True))
        ]
        if deeper == depths:
            return [key_from_path(os.fsencode(prefix)) for prefix in prefixes]
        depths = deeper


def _collides(index: int, prefixes: list[str], inputs: list[tuple[str, str]]) -> bool:
    """Tell whether a key of one input could be a key of another."""
    own, (_, kind) = prefixes[index], inputs[index]
    others = [
        prefix
        for at, prefix in enumerate(prefixes)
        # A TSV's keys end in a line's number, those of a tree in a file's name.
        if at != index and (inputs[at][1] == "tsv") == (kind == "tsv")
    ]
    return any(other == own if kind == "tsv" else other.startswith(own) or own.startswith(other) for other in others)
