"""The preprocessing job: prepare it, build its graph, and run it on an engine."""

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
from pipeline.command_line import num_cores
from pipeline.corpus.inputs import open_sources
from pipeline.dataset.info import DatasetInfo, read_dataset_info
from pipeline.dataset.labels import read_category_names, read_taxonomy
from pipeline.engines.local_runner import choose_mode, make_local_runner
from pipeline.engines.local_workers import WORKER_DIED, watch_workers
from pipeline.engines.named import BeamOptions, EngineOptions, check_paths, fix_num_partitions, make_named_runner
from pipeline.errors import EngineError, OptionError, PipelineError, WorkerDiedError
from pipeline.job.config import PreprocessConfig
from pipeline.job.dry_run import describe_dry_run
from pipeline.job.job import Job
from pipeline.job.output_dir import STAGING_PREFIX, check_output, staging_directory
from pipeline.job.progress import PROCESS_IDS_NAME, WORKER_LOG_NAME, progress_bars
from pipeline.job.start_up import CorpusSize, measure_corpus, start_up_lines
from pipeline.job.transforms import PreprocessCorpus
from pipeline.tokenization.vocabulary import parse_vocab, read_vocab_file, vocab_warnings

# Starting worker processes takes as long as tokenizing about this much text in one process.
_BYTES_WORTH_WORKERS = 100 << 20

logger = logging.getLogger(__name__)

# One of our exceptions in the report of a worker process: its class, its message, and the step that raised it.
_OUR_ERROR = re.compile(r"pipeline\.errors\.(?P<name>\w+): (?P<message>.*?)(?: \[while running|\n|$)")
_NO_PACKAGE = re.compile(r"No module named 'pipeline\b[^']*'")
_NO_JAR = "Unable to fetch remote job server jar"
_WHILE_RUNNING = re.compile(r" \[while running .*", re.DOTALL)


def prepare(config: PreprocessConfig) -> Job:
    """Read all that the job needs besides documents, and refuse what cannot work; writes nothing.

    Raises:
        MissingInputError, InputFormatError, OptionError: about an input, the vocabulary, the taxonomy or the names.
    """
    file = read_vocab_file(config.vocab_path)
    vocab = parse_vocab(file.content, config.vocab_path)
    cased = bool(file.cased if config.cased is None else config.cased)
    for warning in vocab_warnings(vocab, cased=cased, is_case_given=config.cased is not None):
        logger.warning("%s: %s", config.vocab_path, warning)
    sources = open_sources(config.corpus, output_dir=config.output_dir, needs_second=config.second_label == "column")
    return Job(
        # Workers may have another current directory.
        config=dataclasses.replace(config, output_dir=_absolute(config.output_dir)),
        sources=tuple(dataclasses.replace(source, path=_absolute(source.path)) for source in sources),
        taxonomy=read_taxonomy(config.taxonomy_path) if config.second_label == "taxonomy" else None,
        category_names=read_category_names(config.category_names_path) if config.category_names_path else None,
        vocab_content=file.content,
        vocab_size=len(vocab),
        cased=cased,
    )


def _absolute(path: str) -> str:
    # Not `abspath`: where `link` is a symbolic link, `link/..` is another directory than `.`.
    return path if filesystem.is_remote(path) else os.path.join(os.getcwd(), path)


def run(config: PreprocessConfig, engine: EngineOptions | None = None) -> DatasetInfo:
    """Preprocess a corpus into a dataset directory.

    Args:
        config: the options.
        engine: where to run the job; this machine by default.

    Returns:
        The description of the published dataset.

    Raises:
        PipelineError: the input, the options, the output or the engine failed; no complete dataset is damaged.
    """
    engine = engine or EngineOptions()
    # Before the output is touched, so that wrong input leaves no trace.
    options, job = _prepare_for(engine, config)
    named_runner = None if engine.is_local else make_named_runner(engine)
    size = measure_corpus(job.sources, limit_bytes=_BYTES_WORTH_WORKERS)
    num_workers = _choose_num_workers(engine, size) if engine.is_local else 0
    mode = choose_mode(engine.running_mode, num_workers)
    with staging_directory(config) as staging_dir:
        for line in start_up_lines(job, engine=engine, num_workers=num_workers, mode=mode, size=size):
            logger.info("%s", line)
        with (
            progress_bars(enabled=engine.is_local and sys.stderr.isatty()) as progress_dir,
            beam_errors_as_ours(engine.runner),
        ):
            process_ids_path = os.path.join(progress_dir, PROCESS_IDS_NAME)
            if named_runner is None:
                log_path = None if logger.isEnabledFor(logging.DEBUG) else os.path.join(progress_dir, WORKER_LOG_NAME)
                runner = make_local_runner(
                    options, num_workers=num_workers, mode=mode, log_path=log_path, process_ids_path=process_ids_path
                )
            else:
                options.view_as(StandardOptions).runner = engine.runner
                runner = named_runner
            pipeline = beam.Pipeline(runner=runner, options=options)
            _ = pipeline | "PreprocessCorpus" >> PreprocessCorpus(
                job,
                staging_dir=_absolute(staging_dir),
                progress_dir=progress_dir if engine.is_local else None,
                num_partitions=fix_num_partitions(engine, options),
            )
            with watch_workers(process_ids_path, lambda: _is_moved_away(staging_dir)):
                pipeline.run().wait_until_finish()
        return read_dataset_info(config.output_dir)


def _prepare_for(engine: EngineOptions, config: PreprocessConfig) -> tuple[PipelineOptions, Job]:
    """Return Beam's options and the job, both checked as far as possible without reading documents."""
    inputs = (("--input", spec.path) for spec in config.corpus.inputs)
    check_paths([("--output", config.output_dir), *inputs], engine)
    options = BeamOptions(list(engine.beam_args), runner=None)
    # Clients of remote file systems are made from these options, and needed before there is a pipeline.
    FileSystems.set_options(options)
    return options, prepare(config)


def dry_run(config: PreprocessConfig, engine: EngineOptions) -> str:
    """Predict what the job would do, and write nothing.

    Returns:
        The prediction from a sample of the documents; for a job on Dataflow, the number of its transforms.

    Raises:
        PipelineError: the job could not work.
    """
    if engine.is_dataflow:
        # Dataflow's own dry run, by Beam's option of this name: it translates the job and does not submit it.
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
    options.view_as(StandardOptions).runner = engine.runner
    pipeline = beam.Pipeline(runner=make_named_runner(engine), options=options)
    staging_dir = filesystem.join(job.config.output_dir, STAGING_PREFIX + "dry-run")
    _ = pipeline | "PreprocessCorpus" >> PreprocessCorpus(job, staging_dir=staging_dir)
    pipeline.run().wait_until_finish()
    return len(pipeline.to_runner_api().components.transforms)


def _is_moved_away(staging_dir: str) -> bool:
    return not filesystem.is_remote(staging_dir) and not os.path.exists(staging_dir)


def _choose_num_workers(engine: EngineOptions, size: CorpusSize) -> int:
    """Return the requested number of workers; by default all cores if the corpus is large enough, else one."""
    if engine.num_workers:
        return engine.num_workers
    if engine.running_mode is None and size.num_bytes < _BYTES_WORTH_WORKERS:
        return 1
    return 1 if engine.running_mode == "in_memory" else num_cores()


@contextmanager
def beam_errors_as_ours(runner: str) -> Iterator[None]:
    """Raise the original exception where Beam wraps the exception of a worker in one of its own."""
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
            raise WorkerDiedError(WORKER_DIED) from error
        if type(error).__name__ == "DataflowRuntimeException":
            raise EngineError(f"{' '.join(text.split())}; the job's page in the console says more") from error
        raise
