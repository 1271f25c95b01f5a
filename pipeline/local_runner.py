"""Beam's in-process Python engine, set up so that it uses all cores and never becomes something else.

Beam's own `DirectRunner` tries to download another engine first and falls back without a word; chosen by name,
`FnApiRunner` starts its worker processes without the pipeline's options. So it is built here, by hand.
"""

import os
import shlex
import sys

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

from pipeline.errors import OptionError

LOCAL_RUNNERS = ("DirectRunner", "FnApiRunner")
_IN_PROCESS = {
    "in_memory": EmbeddedPythonEnvironment.default,
    "multi_threading": EmbeddedPythonGrpcEnvironment.default,
}
MODES = (*_IN_PROCESS, "multi_processing")


def make_local_runner(
    options: PipelineOptions, *, num_workers: int, mode: str | None, log_path: str | None, process_ids_path: str
) -> PipelineRunner:
    """Make the local runner.

    Args:
        options: Beam's options; their own number of workers and mode are replaced.
        num_workers: at least 1.
        mode: `in_memory`, `multi_threading`, `multi_processing`; `None` takes processes where there is more than one
            worker, because threads of one Python interpreter are slower than one alone.
        log_path: where worker processes leave what they say; `None` lets them say it on stderr.
        process_ids_path: where worker processes leave their ids, for `watch_workers`.

    Raises:
        OptionError: the two contradict each other.
    """
    if mode == "in_memory" and num_workers > 1:
        raise OptionError(f"--direct_running_mode in_memory has one worker, but --direct_num_workers is {num_workers}")
    mode = mode or ("in_memory" if num_workers == 1 else "multi_processing")
    if mode == "multi_processing":
        environment = _subprocess_environment(log_path, process_ids_path)
    else:
        environment = _IN_PROCESS[mode]()
    direct = options.view_as(DirectOptions)
    direct.direct_num_workers = num_workers
    # With a mode of its own, the runner would replace our worker command, which is quoted, by one which is not.
    direct.direct_running_mode = None
    # Workers learn the options (endpoints of remote file systems, say) from here and nowhere else.
    provision = beam_provision_api_pb2.ProvisionInfo(
        pipeline_options=JobServiceHandle.encode_pipeline_options(options.get_all_options())
    )
    return fn_runner.FnApiRunner(
        default_environment=environment, provision_info=fn_runner.ExtendedProvisionInfo(provision)
    )


def _subprocess_environment(log_path: str | None, process_ids_path: str) -> SubprocessSDKEnvironment:
    """Return worker processes of this interpreter that can import what this process can, wherever it was started."""
    repository = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    paths = [repository, *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    # `exec` keeps the shell's process id, so that the one noted is the worker's.
    note = f"echo $$ >> {shlex.quote(process_ids_path)}"
    # `-P` keeps a directory `pipeline` in the current directory from being taken for this package.
    command = f"exec {shlex.quote(sys.executable)} -P -m pipeline.local_worker {os.getpid()}"
    redirection = f" 2>> {shlex.quote(log_path)}" if log_path else ""
    search = f"export PYTHONPATH={shlex.quote(os.pathsep.join(dict.fromkeys(paths)))}"
    # Left to itself, malloc keeps the megabytes of every array it ever served. Much below 2 MiB, every array would be
    # fetched from the kernel page by page: a third of a worker's time.
    malloc = f"export MALLOC_MMAP_THRESHOLD_={2 << 20}"
    return SubprocessSDKEnvironment.from_command_string(f"{note}; {malloc}; {search}; {command}{redirection}")
