"""Engines that Beam knows by name, and the options of all engines.

An option that the engine would ignore, or an engine that is not installed, is an error before any document is read.
"""

import argparse
import dataclasses
import difflib
import importlib
from collections.abc import Sequence
from typing import Any, TypeVar

from apache_beam.options.pipeline_options import PipelineOptions, _BeamArgumentParser
from apache_beam.runners.runner import PipelineRunner, create_runner

from pipeline.engines.local_runner import LOCAL_RUNNERS, MODES
from pipeline.errors import OptionError, require
from pipeline.filesystem import is_installed, is_remote

DASK_RUNNER = "DaskRunner"
DATAFLOW_RUNNER = "DataflowRunner"
_DASK_RUNNER_CLASS = "apache_beam.runners.dask.dask_runner.DaskRunner"

_Options = TypeVar("_Options", bound=PipelineOptions)


@dataclasses.dataclass(frozen=True, kw_only=True)
class EngineOptions:
    """Options of the engine.

    Attributes:
        runner: `DirectRunner` for this machine, or a runner's name as Beam knows it.
        num_workers: number of workers on this machine; 0 takes all cores if the corpus is large enough, else one.
        running_mode: how they run on this machine; see `choose_mode`.
        beam_args: Beam's own options, as on the command line.
    """

    runner: str = "DirectRunner"
    num_workers: int = 0
    running_mode: str | None = None
    beam_args: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "runner", _spell_out(self.runner))
        require(self.num_workers >= 0, f"--direct_num_workers: expected 0 (all cores) or more, got {self.num_workers}")
        require(
            self.running_mode is None or self.running_mode in MODES,
            f"--direct_running_mode: expected one of {', '.join(MODES)}, got {self.running_mode!r}",
        )
        for option, given in (("num_workers", self.num_workers), ("running_mode", self.running_mode)):
            require(
                self.is_local or not given,
                f"--direct_{option}: only used with --runner DirectRunner, which is {self.runner!r}",
            )
        if self.is_dask:
            _require_installed(DASK_RUNNER, module="distributed", extra="dask")
            importlib.import_module("pipeline.engines.dask")  # which makes Beam know this runner's options
        _check_beam_args(self.beam_args)

    @property
    def is_local(self) -> bool:
        """Whether the job runs on this machine's own engine."""
        return self.runner in LOCAL_RUNNERS

    @property
    def is_dask(self) -> bool:
        """Whether the job runs on Dask, which Beam knows only by its full name."""
        return self.runner in (DASK_RUNNER, _DASK_RUNNER_CLASS)

    @property
    def is_dataflow(self) -> bool:
        """Whether the job runs on Dataflow, whose workers see no file of this machine."""
        return self.runner == DATAFLOW_RUNNER


class BeamOptions(PipelineOptions):
    """Beam's options; Beam views them hundreds of times, and would parse the command line each time."""

    def __init__(self, flags: Sequence[str], **overrides: Any) -> None:
        super().__init__(flags, **overrides)
        # Beam's own `__setattr__` accepts only options.
        self.__dict__["_views"] = {}

    def view_as(self, cls: type[_Options]) -> _Options:
        """Return these options as one of Beam's classes; all views share their values."""
        views: dict[type[PipelineOptions], Any] = self.__dict__["_views"]
        if cls not in views:
            views[cls] = super().view_as(cls)
        return views[cls]


def _spell_out(runner: str) -> str:
    """Return a runner's name in our spelling; Beam accepts any case, and names without the suffix `Runner`."""
    ours = {name.lower(): name for name in (*LOCAL_RUNNERS, DASK_RUNNER, DATAFLOW_RUNNER)}
    return ours.get(runner.lower()) or ours.get(f"{runner.lower()}runner") or runner


def _require_installed(runner: str, *, module: str, extra: str) -> None:
    require(
        is_installed(module),
        f"--runner {runner}: this installation has no {module}; pip install 'apache-beam[{extra}]'",
    )


def _check_beam_args(args: Sequence[str]) -> None:
    """Check that Beam knows all of these options; it would ignore others."""
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


def check_paths(paths: Sequence[tuple[str, str]], engine: EngineOptions) -> None:
    """Check that workers of the engine can reach all paths; small files travel with the job.

    Args:
        paths: (option, path) of each.
        engine: where the job runs.

    Raises:
        OptionError: the job is to run on Dataflow, but an input or the output lies on this machine.
    """
    for option, path in paths:
        require(
            not engine.is_dataflow or is_remote(path),
            f"{option} {path}: Dataflow's workers cannot reach the files of this machine; give a path in a bucket, gs://…",
        )


def make_named_runner(engine: EngineOptions) -> PipelineRunner:
    """Make a runner that Beam knows by name.

    Raises:
        OptionError: Beam knows no runner of that name, or it is not installed.
    """
    if engine.is_dask:
        from pipeline.engines.dask import make_dask_runner

        return make_dask_runner()
    if engine.runner == DATAFLOW_RUNNER:
        _require_installed(DATAFLOW_RUNNER, module="google.cloud.storage", extra="gcp")
    try:
        return create_runner(engine.runner)
    except (ValueError, ImportError, AttributeError) as error:
        raise OptionError(f"--runner {engine.runner}: {error}") from error


def fix_num_partitions(engine: EngineOptions, options: PipelineOptions) -> int:
    """Return the number of partitions of the job, and set it in the options; 0 where the engine chooses it."""
    if not engine.is_dask:
        return 0
    from pipeline.engines import dask as dask_engine

    return dask_engine.fix_num_partitions(options)
