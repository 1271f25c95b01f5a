"""The lines that a job logs before it starts, and a cheap estimate of the size of its corpus."""

import dataclasses
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from pipeline import filesystem
from pipeline.corpus.inputs import Source
from pipeline.corpus.tree import TreeSource
from pipeline.engines.named import EngineOptions
from pipeline.errors import one_line
from pipeline.job.job import Job

_BYTES_PER_FILE = 2_700  # of THUCNews; reading the size of each file would take longer than a wrong one costs
_NUM_PATHS = 3
# On lines of their own.
_SHOWN_APART = ("corpus", "inputs", "vocab_path", "output_dir", "split_weights")


@dataclasses.dataclass(frozen=True, kw_only=True)
class CorpusSize:
    """Size of a corpus, or of its beginning.

    Attributes:
        num_bytes: approximate size of the inputs; the limit where it was reached.
        num_files: number of files found in trees.
        is_whole: whether the limit was not reached.
    """

    num_bytes: int
    num_files: int
    is_whole: bool


def measure_corpus(sources: Sequence[Source], *, limit_bytes: int) -> CorpusSize:
    """Add up the sizes of files, and list trees, until the limit is reached; a remote source reaches it at once."""
    num_bytes = num_files = 0
    files: set[str] = set()  # several tables may lie in one archive
    for index, source in enumerate(sources):
        if filesystem.is_remote(source.path):
            num_bytes = limit_bytes
        elif isinstance(source, TreeSource):
            for chunk in source.chunks(index):
                num_files += len(chunk.items)
                num_bytes += len(chunk.items) * _BYTES_PER_FILE
                if num_bytes >= limit_bytes:
                    break
        elif source.path not in files:
            files.add(source.path)
            num_bytes += os.path.getsize(source.path)
        if num_bytes >= limit_bytes:
            break
    is_whole = num_bytes < limit_bytes
    return CorpusSize(num_bytes=min(num_bytes, limit_bytes), num_files=num_files, is_whole=is_whole)


def start_up_lines(job: Job, *, engine: EngineOptions, num_workers: int, mode: str, size: CorpusSize) -> Iterator[str]:
    """Yield the lines that describe a job.

    Args:
        job: the job.
        engine: where it runs.
        num_workers, mode: on this machine, as resolved.
        size: size of the corpus.
    """
    config = job.config
    changed = [
        f"{field.name}={_spell(getattr(options, field.name))}"
        for options in (config.corpus, config)
        for field in dataclasses.fields(options)
        if field.name not in _SHOWN_APART and not options.is_default(field.name)
    ]
    if changed:
        yield _entry("options", " ".join(changed))
    paths_by_kind: dict[str, list[str]] = {}
    for source in job.sources:
        paths_by_kind.setdefault(source.kind, []).append(source.path)
    for kind, all_paths in paths_by_kind.items():
        paths = list(dict.fromkeys(all_paths))
        more = ", …" if len(paths) > _NUM_PATHS else ""
        yield _entry("inputs", f"{len(all_paths):,} {kind}: {', '.join(paths[:_NUM_PATHS])}{more}")
    if paths_by_kind.keys() == {"tree"} and size.num_files:
        yield _entry("documents", f"{'' if size.is_whole else 'more than '}{size.num_files:,}")
    shares = [f"{name} {share:.4g}" for name, share in config.split_weights if share]
    pinned = Counter(source.split for source in job.sources if source.split)
    fixed = [f"{split} from {count:,} inputs of its own" for split, count in pinned.items()]
    yield _entry("splits", ", ".join([*(shares if pinned.total() < len(job.sources) else []), *fixed]))
    yield _entry("vocabulary", f"{config.vocab_path}, {job.vocab_size:,} tokens")
    workers = {"in_memory": "worker in this process", "multi_threading": "threads", "multi_processing": "processes"}
    yield _entry("engine", f"this machine, {num_workers} {workers[mode]}" if engine.is_local else engine.runner)
    yield _entry("output", config.output_dir)


def _spell(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _entry(label: str, text: str) -> str:
    return f"{label:<13}{one_line(text)}"
