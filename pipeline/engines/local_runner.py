"""Beam's local Python engine, on all cores.

It is built by hand: Beam's `DirectRunner` tries to download another engine first and falls back silently, and
`FnApiRunner`, chosen by name, starts its worker processes without the pipeline's options.
"""

from apache_beam.options.pipeline_options import DirectOptions, PipelineOptions
from apache_beam.portability.api import beam_provision_api_pb2
from apache_beam.runners.portability.fn_api_runner import fn_runner
from apache_beam.runners.portability.portable_runner import JobServiceHandle
from apache_beam.runners.runner import PipelineRunner
from apache_beam.transforms.environments import (
    EmbeddedPythonEnvironment,
    EmbeddedPythonGrpcEnvironment,
    SubprocessSDKEnvironment,
)

from pipeline.engines.local_workers import worker_command
from pipeline.errors import OptionError

LOCAL_RUNNERS = ("DirectRunner", "FnApiRunner")
_IN_PROCESS = {
    "in_memory": EmbeddedPythonEnvironment.default,
    "multi_threading": EmbeddedPythonGrpcEnvironment.default,
}
MODES = (*_IN_PROCESS, "multi_processing")


def choose_mode(mode: str | None, num_workers: int) -> str:
    """Return how workers run: several as processes by default, because threads of one Python are slower than one.

    Raises:
        OptionError: the mode allows one worker, and there are more.
    """
    if mode == "in_memory" and num_workers > 1:
        raise OptionError(f"--direct_running_mode in_memory has one worker, but --direct_num_workers is {num_workers}")
    return mode or ("in_memory" if num_workers == 1 else "multi_processing")


def make_local_runner(
    options: PipelineOptions, *, num_workers: int, mode: str, log_path: str | None, process_ids_path: str
) -> PipelineRunner:
    """Make the local runner.

    Args:
        options: Beam's options; this sets their number of workers and mode.
        num_workers: at least 1.
        mode: `in_memory`, `multi_threading` or `multi_processing`.
        log_path, process_ids_path: of worker processes; see `worker_command`.
    """
    if mode == "multi_processing":
        command = worker_command(log_path=log_path, process_ids_path=process_ids_path)
        environment = SubprocessSDKEnvironment.from_command_string(command)
    else:
        environment = _IN_PROCESS[mode]()
    direct = options.view_as(DirectOptions)
    direct.direct_num_workers = num_workers
    # With a mode set, the runner replaces our worker command, which is quoted, by one that is not.
    direct.direct_running_mode = None
    # Workers get the options (such as endpoints of remote file systems) from here alone.
    provision = beam_provision_api_pb2.ProvisionInfo(
        pipeline_options=JobServiceHandle.encode_pipeline_options(options.get_all_options())
    )
    return fn_runner.FnApiRunner(
        default_environment=environment, provision_info=fn_runner.ExtendedProvisionInfo(provision)
    )
