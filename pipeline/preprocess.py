"""The preprocessing job: prepare it, build its graph, run it on an engine, and say what came out."""

import argparse
import dataclasses
import difflib
import logging
import os
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import apache_beam as beam
from apache_beam.io.filesystems import FileSystems
from apache_beam.options.pipeline_options import PipelineOptions, StandardOptions, _BeamArgumentParser

from pipeline import errors, filesystem
from pipeline.config import PreprocessConfig, require
from pipeline.dataset_info import DatasetInfo, read_dataset_info
from pipeline.errors import OptionError, OutputWriteError, PipelineError
from pipeline.forked_workers import can_fork, fork_workers
from pipeline.inputs import open_sources
from pipeline.labels import read_category_names, read_taxonomy
from pipeline.local_runner import LOCAL_RUNNERS, MODES, choose_mode, make_local_runner
from pipeline.progress import PROCESS_IDS_NAME, WORKER_LOG_NAME, progress_bars
from pipeline.publish import staging_directory
from pipeline.references import Job
from pipeline.sources import TreeSource
from pipeline.transforms import PreprocessCorpus
from pipeline.vocabulary import parse_vocab
from pipeline.worker_watch import WORKER_DIED, watch_workers

# Starting worker processes takes as long as tokenizing about this much text in one process; forking them takes less.
_BYTES_WORTH_STARTING = 100 << 20
_BYTES_WORTH_FORKING = 32 << 20
_BYTES_PER_FILE = 2_700  # of THUCNews; asking each file would take longer than being wrong

logger = logging.getLogger(__name__)

# What a worker process reports of one of our exceptions: its class, its message, and the step it happened in.
_OUR_ERROR = re.compile(r"pipeline\.errors\.(?P<name>\w+): (?P<message>.*?)(?: \[while running|\n|$)")
_WHILE_RUNNING = re.compile(r" \[while running .*", re.DOTALL)


@dataclasses.dataclass(frozen=True, kw_only=True)
class EngineOptions:
    """Where the job runs.

    Attributes:
        runner: `DirectRunner` for this machine, or a runner's name as Beam knows it.
        num_workers: on this machine; 0 takes all cores.
        running_mode: on this machine; see `make_local_runner`.
        beam_args: Beam's own options, as on the command line.
    """

    runner: str = "DirectRunner"
    num_workers: int = 0
    running_mode: str | None = None
    beam_args: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        require(self.num_workers >= 0, f"--direct_num_workers: expected 0 (all cores) or more, got {self.num_workers}")
        require(
            self.running_mode is None or self.running_mode in MODES,
            f"--direct_running_mode: expected one of {', '.join(MODES)}, got {self.running_mode!r}",
        )
        _check_beam_args(self.beam_args)

    @property
    def is_local(self) -> bool:
        """Whether the job runs on this machine's own engine."""
        return self.runner in LOCAL_RUNNERS


def _check_beam_args(args: Sequence[str]) -> None:
    """Refuse options that Beam would ignore."""
    parser = _BeamArgumentParser(allow_abbrev=False, add_help=False, exit_on_error=False)
    for options in dict.fromkeys(PipelineOptions.__subclasses__()):
        options._add_argparse_args(parser)
    try:
        _, unknown = parser.parse_known_args(list(args))
    except argparse.ArgumentError as error:
        raise OptionError(f"{error}; see run_preprocess.py --help, and Beam's own options") from None
    if unknown:
        known = [name for action in parser._actions for name in action.option_strings]
        close = difflib.get_close_matches(unknown[0].split("=")[0], known, n=1)
        hint = f"; did you mean {close[0]}?" if close else ""
        raise OptionError(f"unknown option {unknown[0]}{hint}; see run_preprocess.py --help, and Beam's own options")


def prepare(config: PreprocessConfig) -> Job:
    """Read everything the job needs to know, and refuse what cannot work, before any document is read.

    Returns:
        The job, without a staging directory: it has not touched the output yet.

    Raises:
        MissingInputError, InputFormatError, OptionError: about an input, the vocabulary, the taxonomy or the names.
    """
    vocab_content = filesystem.read_bytes(config.vocab_path)
    vocab = parse_vocab(vocab_content, config.vocab_path)
    return Job(
        config=config,
        sources=open_sources(config),
        taxonomy=read_taxonomy(config.taxonomy_path) if config.second_label == "taxonomy" else None,
        category_names=read_category_names(config.category_names_path) if config.category_names_path else None,
        vocab_content=vocab_content,
        vocab_size=len(vocab),
        staging_dir="",
    )


def build(pipeline: beam.Pipeline, job: Job) -> beam.PCollection[str]:
    """Add the job to a pipeline; the one output element is the text of `dataset.json`."""
    return pipeline | "PreprocessCorpus" >> PreprocessCorpus(job)


def run(config: PreprocessConfig, engine: EngineOptions | None = None) -> DatasetInfo:
    """Preprocess a corpus into a dataset directory.

    Args:
        config: what to make of what.
        engine: where; this machine by default.

    Returns:
        What the published dataset holds.

    Raises:
        PipelineError: the input, the options or the output are at fault; nothing that was complete is damaged.
    """
    engine = engine or EngineOptions()
    options = PipelineOptions(list(engine.beam_args), runner=None)
    # Clients of remote file systems are made from these options, and needed before there is a pipeline.
    FileSystems.set_options(options)
    # Before the output is touched, so that wrong input leaves no trace.
    job = prepare(config)
    num_workers = _choose_num_workers(engine, job) if engine.is_local else 0
    mode = choose_mode(engine.running_mode, num_workers)
    with (
        # First of all, while there is no other thread yet.
        fork_workers(num_workers if mode == "multi_processing" and _may_fork(job) else 0) as forked_workers,
        progress_bars(enabled=engine.is_local and sys.stderr.isatty()) as progress_dir,
        staging_directory(config) as staging_dir,
        _beam_errors_as_ours(),
    ):
        job = dataclasses.replace(job, staging_dir=staging_dir, progress_dir=progress_dir if engine.is_local else None)
        process_ids_path = os.path.join(progress_dir, PROCESS_IDS_NAME)
        if engine.is_local:
            log_path = None if logger.isEnabledFor(logging.DEBUG) else os.path.join(progress_dir, WORKER_LOG_NAME)
            runner = make_local_runner(
                options,
                num_workers=num_workers,
                mode=mode,
                log_path=log_path,
                process_ids_path=process_ids_path,
                forked_workers=forked_workers,
            )
            pipeline = beam.Pipeline(runner=runner, options=options)
        else:
            options.view_as(StandardOptions).runner = engine.runner
            pipeline = beam.Pipeline(options=options)
        build(pipeline, job)
        with watch_workers(process_ids_path, lambda: _is_moved_away(staging_dir)):
            pipeline.run().wait_until_finish()
        return read_dataset_info(config.output_dir)


def _is_moved_away(staging_dir: str) -> bool:
    return not filesystem.is_remote(staging_dir) and not os.path.exists(staging_dir)


def _choose_num_workers(engine: EngineOptions, job: Job) -> int:
    """Return the number that was asked for, else all cores where there is enough to do for them, else one."""
    if engine.num_workers:
        return engine.num_workers
    worth_it = _BYTES_WORTH_FORKING if _may_fork(job) else _BYTES_WORTH_STARTING
    if engine.running_mode is None and _num_bytes_up_to(worth_it, job) < worth_it:
        return 1
    return 1 if engine.running_mode == "in_memory" else len(os.sched_getaffinity(0))


def _may_fork(job: Job) -> bool:
    """Tell whether workers can be forked; connections to remote storage, already open, must not be shared with them."""
    config = job.config
    paths = (
        config.vocab_path,
        config.taxonomy_path,
        config.category_names_path,
        *(spec.path for spec in config.inputs),
    )
    return can_fork() and not any(path and filesystem.is_remote(path) for path in paths)


def _num_bytes_up_to(limit: int, job: Job) -> int:
    """Return roughly how much text there is, without listing more of it than `limit` asks for."""
    num_bytes = 0
    for index, source in enumerate(job.sources):
        if filesystem.is_remote(source.path):
            return limit
        if isinstance(source, TreeSource):
            for chunk in source.chunks(index):
                num_bytes += len(chunk.items) * _BYTES_PER_FILE
                if num_bytes >= limit:
                    return limit
        else:
            num_bytes += os.path.getsize(source.path)
    return num_bytes


@contextmanager
def _beam_errors_as_ours() -> Iterator[None]:
    """Turn what Beam makes of an error in a worker back into the error that it was."""
    try:
        yield
    except PipelineError as error:
        # Raised in this process; Beam appended the step's name.
        error.args = (_WHILE_RUNNING.sub("", str(error)), *error.args[1:])
        raise
    except (RuntimeError, OSError) as error:
        text = str(error)
        if found := _OUR_ERROR.search(text):
            kind = getattr(errors, found["name"], PipelineError)
            raise kind(found["message"]) from error
        if "KeyboardInterrupt" in text:
            raise KeyboardInterrupt from error
        if "Channel closed prematurely" in text or "Worker subprocess exited" in text:
            raise OutputWriteError(WORKER_DIED) from error
        raise
