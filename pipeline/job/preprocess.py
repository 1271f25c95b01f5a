"""The preprocessing job: prepare it, build its graph, run it on an engine, and say what came out."""

import dataclasses
import logging
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import apache_beam as beam
from apache_beam.io.filesystems import FileSystems
from apache_beam.options.pipeline_options import PipelineOptions, StandardOptions

from pipeline import errors, filesystem
from pipeline.config import PreprocessConfig
from pipeline.corpus.inputs import open_sources
from pipeline.corpus.sources import TreeSource
from pipeline.dataset.info import DatasetInfo, read_dataset_info
from pipeline.dataset.labels import read_category_names, read_taxonomy
from pipeline.engines.forked_workers import can_fork, fork_workers
from pipeline.engines.local_runner import choose_mode, make_local_runner
from pipeline.engines.named import BeamOptions, EngineOptions, check_paths, fix_num_partitions, make_named_runner
from pipeline.engines.worker_watch import WORKER_DIED, watch_workers
from pipeline.errors import OptionError, OutputWriteError, PipelineError
from pipeline.job.dry_run import describe_dry_run
from pipeline.job.output_dir import STAGING_PREFIX, check_output, staging_directory
from pipeline.job.progress import PROCESS_IDS_NAME, WORKER_LOG_NAME, progress_bars
from pipeline.job.references import Job
from pipeline.job.transforms import PreprocessCorpus
from pipeline.tokenization.vocabulary import parse_vocab, read_vocab_file, vocab_warnings

# Starting worker processes takes as long as tokenizing about this much text in one process; forking them takes less.
_BYTES_WORTH_STARTING = 100 << 20
_BYTES_WORTH_FORKING = 32 << 20
_BYTES_PER_FILE = 2_700  # of THUCNews; asking each file would take longer than being wrong

logger = logging.getLogger(__name__)

# What a worker process reports of one of our exceptions: its class, its message, and the step it happened in.
_OUR_ERROR = re.compile(r"pipeline\.errors\.(?P<name>\w+): (?P<message>.*?)(?: \[while running|\n|$)")
_NO_PACKAGE = re.compile(r"No module named 'pipeline\b[^']*'")
_NO_JAR = "Unable to fetch remote job server jar"
_WHILE_RUNNING = re.compile(r" \[while running .*", re.DOTALL)


def prepare(config: PreprocessConfig) -> Job:
    """Read everything the job needs to know, and refuse what cannot work, before any document is read.

    Returns:
        The job, without a staging directory: it has not touched the output yet.

    Raises:
        MissingInputError, InputFormatError, OptionError: about an input, the vocabulary, the taxonomy or the names.
    """
    file = read_vocab_file(config.vocab_path)
    vocab = parse_vocab(file.content, config.vocab_path)
    cased = bool(file.cased if config.cased is None else config.cased)
    for warning in vocab_warnings(vocab, cased=cased, is_case_given=config.cased is not None):
        logger.warning("%s: %s", config.vocab_path, warning)
    return Job(
        config=dataclasses.replace(config, cased=cased),
        sources=open_sources(config),
        taxonomy=read_taxonomy(config.taxonomy_path) if config.second_label == "taxonomy" else None,
        category_names=read_category_names(config.category_names_path) if config.category_names_path else None,
        vocab_content=file.content,
        vocab_size=len(vocab),
        staging_dir="",
    )


def with_absolute_paths(job: Job) -> Job:
    """Return the job with paths that mean the same to workers whose current directory is another one."""
    config = dataclasses.replace(job.config, output_dir=_absolute(job.config.output_dir))
    sources = tuple(dataclasses.replace(source, path=_absolute(source.path)) for source in job.sources)
    return dataclasses.replace(job, config=config, sources=sources)


def _absolute(path: str) -> str:
    return path if filesystem.is_remote(path) else os.path.abspath(path)


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
    # Before the output is touched, so that wrong input leaves no trace.
    options, job = _prepare_for(engine, config)
    named_runner = None
    if not engine.is_local:
        named_runner = make_named_runner(engine)
        job = dataclasses.replace(with_absolute_paths(job), num_partitions=fix_num_partitions(engine, options))
    num_workers = _choose_num_workers(engine, job) if engine.is_local else 0
    mode = choose_mode(engine.running_mode, num_workers)
    with (
        # First of all, while there is no other thread yet.
        fork_workers(num_workers if mode == "multi_processing" and _may_fork(job) else 0) as forked_workers,
        progress_bars(enabled=engine.is_local and sys.stderr.isatty()) as progress_dir,
        staging_directory(job.config) as staging_dir,
        beam_errors_as_ours(engine.runner),
    ):
        job = dataclasses.replace(job, staging_dir=staging_dir, progress_dir=progress_dir if engine.is_local else None)
        process_ids_path = os.path.join(progress_dir, PROCESS_IDS_NAME)
        if named_runner is None:
            log_path = None if logger.isEnabledFor(logging.DEBUG) else os.path.join(progress_dir, WORKER_LOG_NAME)
            runner = make_local_runner(
                options,
                num_workers=num_workers,
                mode=mode,
                log_path=log_path,
                process_ids_path=process_ids_path,
                forked_workers=forked_workers,
            )
        else:
            options.view_as(StandardOptions).runner = engine.runner
            runner = named_runner
        pipeline = beam.Pipeline(runner=runner, options=options)
        build(pipeline, job)
        with watch_workers(process_ids_path, lambda: _is_moved_away(staging_dir)):
            pipeline.run().wait_until_finish()
        return read_dataset_info(config.output_dir)


def _prepare_for(engine: EngineOptions, config: PreprocessConfig) -> tuple[PipelineOptions, Job]:
    """Return Beam's options and the job, both checked as far as possible without reading documents."""
    check_paths(config, engine)
    options = BeamOptions(list(engine.beam_args), runner=None)
    # Clients of remote file systems are made from these options, and needed before there is a pipeline.
    FileSystems.set_options(options)
    return options, prepare(config)


def dry_run(config: PreprocessConfig, engine: EngineOptions) -> str:
    """Say what the job would do, and write nothing.

    Returns:
        What a sample of the documents tells; of a job on Dataflow, how many transforms it has.

    Raises:
        PipelineError: the job could not work.
    """
    if engine.is_dataflow:
        # Dataflow's own dry run, which Beam's option of this name asks for: the job is translated, but not submitted.
        engine = dataclasses.replace(engine, beam_args=(*engine.beam_args, "--dry_run=True"))
        return f"Dataflow takes this job: {_translate(config, engine)} transforms; nothing was submitted"
    _, job = _prepare_for(engine, config)
    check_output(config)
    if engine.is_local:
        choose_mode(engine.running_mode, engine.num_workers)
    else:
        make_named_runner(engine)
    return describe_dry_run(job, engine.num_workers)


def _translate(config: PreprocessConfig, engine: EngineOptions) -> int:
    """Let an engine translate the job, and return the number of its transforms."""
    options, job = _prepare_for(engine, config)
    check_output(config)
    job = with_absolute_paths(job)
    job = dataclasses.replace(job, staging_dir=filesystem.join(job.config.output_dir, STAGING_PREFIX + "dry-run"))
    options.view_as(StandardOptions).runner = engine.runner
    pipeline = beam.Pipeline(runner=make_named_runner(engine), options=options)
    build(pipeline, job)
    pipeline.run().wait_until_finish()
    return len(pipeline.to_runner_api().components.transforms)


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
def beam_errors_as_ours(runner: str) -> Iterator[None]:
    """Turn what Beam makes of an error in a worker back into the error that it was."""
    try:
        yield
    except PipelineError as error:
        # Raised in this process; Beam appended the step's name.
        error.args = (_WHILE_RUNNING.sub("", str(error)), *error.args[1:])
        raise
    except Exception as error:
        text = str(error)
        if found := _OUR_ERROR.search(text):
            kind = getattr(errors, found["name"], PipelineError)
            raise kind(found["message"]) from error
        if "KeyboardInterrupt" in text:
            raise KeyboardInterrupt from error
        if found := _NO_PACKAGE.search(text):
            raise OptionError(
                f"--runner {runner}: its workers lack this package ({found[0]}); install it where they run, or send it "
                "along with --setup_file setup.py"
            ) from error
        if _NO_JAR in text:
            raise OptionError(
                f"--runner {runner}: Beam cannot fetch its job server: {text.split('. ')[0]}; give the path of its jar "
                "with --flink_job_server_jar or --spark_job_server_jar"
            ) from error
        if "Channel closed prematurely" in text or "Worker subprocess exited" in text:
            raise OutputWriteError(WORKER_DIED) from error
        if type(error).__name__ == "DataflowRuntimeException":
            raise OutputWriteError(f"{' '.join(text.split())}; the job's page in the console says more") from error
        raise
