"""Which engine runs the job: this machine's own, or one that Beam knows by name.

An option that the engine would ignore, an engine that is not installed or cannot start: each is one line before any
document is read.
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
    """Where the job runs.

    Attributes:
        runner: `DirectRunner` for this machine, or a runner's name as Beam knows it.
        num_workers: on this machine; 0 takes all cores where there is enough to do for them, else one.
        running_mode: on this machine; see `choose_mode`.
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
            _require_installed(DASK_RUNNER, "distributed", "dask")
            importlib.import_module("pipeline.engines.dask")  # Beam knows this runner's options only then
        _check_beam_args(self.beam_args)

    @property
    def is_local(self) -> bool:
        """Whether the job runs on this machine's own engine."""
        return self.runner in LOCAL_RUNNERS

    @property
    def is_dask(self) -> bool:
        """Whether the job runs on Dask, which Beam knows by its full name only."""
        return self.runner in (DASK_RUNNER, _DASK_RUNNER_CLASS)

    @property
    def is_dataflow(self) -> bool:
        """Whether the job runs on Dataflow, whose workers see no file of this machine."""
        return self.runner == DATAFLOW_RUNNER


class BeamOptions(PipelineOptions):
    """Beam's options, of which every view is made once.

    Beam looks at them hundreds of times while it builds a graph, and would parse the command line anew each time.
    """

    def __init__(self, flags: Sequence[str], **overrides: Any) -> None:
        super().__init__(flags, **overrides)
        # Past Beam's own `__setattr__`, which takes nothing but options.
        self.__dict__["_views"] = {}

    def view_as(self, cls: type[_Options]) -> _Options:
        """Return these options as a class of Beam's knows them; all views share their values."""
        views: dict[type[PipelineOptions], Any] = self.__dict__["_views"]
        if cls not in views:
            views[cls] = super().view_as(cls)
        return views[cls]


def _spell_out(runner: str) -> str:
    """Return a runner's name as it is spelt here; Beam takes any case, and names without `Runner` at their end."""
    ours = {name.lower(): name for name in (*LOCAL_RUNNERS, DASK_RUNNER, DATAFLOW_RUNNER)}
    return ours.get(runner.lower()) or ours.get(f"{runner.lower()}runner") or runner


def _require_installed(runner: str, module: str, extra: str) -> None:
    require(
        is_installed(module),
        f"--runner {runner}: this installation has no {module}; pip install 'apache-beam[{extra}]'",
    )


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


def check_paths(paths: Sequence[tuple[str, str]], engine: EngineOptions) -> None:
    """Refuse paths that no worker of the engine can reach; small files travel with the job.

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
        OptionError: there is none of that name, or what it needs is not installed.
    """
    if engine.is_dask:
        from pipeline.engines.dask import make_dask_runner

        return make_dask_runner()
    if engine.runner == DATAFLOW_RUNNER:
        _require_installed(DATAFLOW_RUNNER, "google.cloud.storage", "gcp")
    try:
        return create_runner(engine.runner)
    except (ValueError, ImportError, AttributeError) as error:
        raise OptionError(f"--runner {engine.runner}: {error}") from error


def fix_num_partitions(engine: EngineOptions, options: PipelineOptions) -> int:
    """Return into how many partitions the job must cut its work itself; 0 where the engine does it.

    Where the user leaves it to the engine, but the engine would choose badly, the number is put into the options.
    """
    if not engine.is_dask:
        return 0
    from pipeline.engines import dask as dask_engine

    return dask_engine.fix_num_partitions(options)
