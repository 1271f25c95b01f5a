"""Beam's in-process Python engine, set up so that it uses all cores and never becomes something else.

Beam's own `DirectRunner` tries to download another engine first and falls back without a word; chosen by name,
`FnApiRunner` starts its worker processes without the pipeline's options. So it is built here, by hand.
"""

import os
import shlex
import sys
import threading
from collections.abc import Sequence
from typing import Any

from apache_beam.options.pipeline_options import DirectOptions, PipelineOptions
from apache_beam.portability.api import beam_provision_api_pb2
from apache_beam.runners.portability.fn_api_runner import fn_runner
from apache_beam.runners.portability.fn_api_runner.worker_handlers import GrpcWorkerHandler, WorkerHandler
from apache_beam.runners.portability.portable_runner import JobServiceHandle
from apache_beam.runners.runner import PipelineRunner
from apache_beam.transforms.environments import (
    EmbeddedPythonEnvironment,
    EmbeddedPythonGrpcEnvironment,
    Environment,
    SubprocessSDKEnvironment,
    python_sdk_capabilities,
)
from google.protobuf import json_format

from pipeline.engines.forked_workers import ForkedWorker
from pipeline.engines.local_worker import MALLOC_MMAP_THRESHOLD_BYTES
from pipeline.engines.worker_watch import WORKER_THREAD
from pipeline.errors import OptionError

LOCAL_RUNNERS = ("DirectRunner", "FnApiRunner")
_IN_PROCESS = {
    "in_memory": EmbeddedPythonEnvironment.default,
    "multi_threading": EmbeddedPythonGrpcEnvironment.default,
}
MODES = (*_IN_PROCESS, "multi_processing")


def choose_mode(mode: str | None, num_workers: int) -> str:
    """Choose processes where there is more than one worker: threads of one Python are slower than one of them alone.

    Raises:
        OptionError: the two contradict each other.
    """
    if mode == "in_memory" and num_workers > 1:
        raise OptionError(f"--direct_running_mode in_memory has one worker, but --direct_num_workers is {num_workers}")
    return mode or ("in_memory" if num_workers == 1 else "multi_processing")


def make_local_runner(
    options: PipelineOptions,
    *,
    num_workers: int,
    mode: str,
    log_path: str | None,
    process_ids_path: str,
    forked_workers: Sequence[ForkedWorker] = (),
) -> PipelineRunner:
    """Make the local runner.

    Args:
        options: Beam's options; their own number of workers and mode are replaced.
        num_workers: at least 1.
        mode: `in_memory`, `multi_threading` or `multi_processing`.
        log_path: where worker processes leave what they say; `None` lets them say it on stderr.
        process_ids_path: where worker processes leave their ids, for `watch_workers`.
        forked_workers: as many as there are workers, or none: then processes are started.
    """
    if mode != "multi_processing":
        environment = _IN_PROCESS[mode]()
    elif not forked_workers:
        environment = _subprocess_environment(log_path, process_ids_path)
    else:
        environment = _forked_environment(forked_workers, log_path, process_ids_path)
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
    repository = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    paths = [repository, *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    # Ctrl-C reaches every process of the terminal at once: the job is the one to answer, and ends its workers.
    # `exec` keeps that, and the shell's process id, so that the one noted is the worker's.
    first = f"trap '' INT; echo $$ >> {shlex.quote(process_ids_path)}"
    # "" is the current directory: a directory `pipeline` there is not this package. (`-P` came with Python 3.11.)
    code = (
        "import sys; sys.path[:] = filter(None, sys.path); "
        "from pipeline.engines.local_worker import main; main(sys.argv)"
    )
    command = f"exec {shlex.quote(sys.executable)} -c {shlex.quote(code)} {os.getpid()}"
    redirection = f" 2>> {shlex.quote(log_path)}" if log_path else ""
    search = f"export PYTHONPATH={shlex.quote(os.pathsep.join(dict.fromkeys(paths)))}"
    malloc = f"export MALLOC_MMAP_THRESHOLD_={MALLOC_MMAP_THRESHOLD_BYTES}"
    return SubprocessSDKEnvironment.from_command_string(f"{first}; {malloc}; {search}; {command}{redirection}")


_FORKED = "two_headed_bert:env:forked:v1"


class _ForkedEnvironment(Environment):
    """Forked workers as Beam's pipelines know environments: by a name."""

    def __init__(self) -> None:
        super().__init__(capabilities=python_sdk_capabilities())

    def to_runner_api_parameter(self, context: object) -> tuple[str, bytes]:
        return _FORKED, b""


def _forked_environment(
    workers: Sequence[ForkedWorker], log_path: str | None, process_ids_path: str
) -> _ForkedEnvironment:
    """Return the environment of these workers, and tell Beam how to use them under its name."""
    waiting = list(workers)

    class ForkedWorkerHandler(GrpcWorkerHandler):
        """One worker, as Beam's runner handles it; its sibling is Beam's `SubprocessSdkWorkerHandler`."""

        def __init__(self, payload: bytes, *arguments: Any):
            super().__init__(*arguments)
            self._worker = waiting.pop()

        def start_worker(self) -> None:
            with open(process_ids_path, "a", encoding="ascii") as notes:
                notes.write(f"{self._worker.process_id}\n")
            endpoints = {
                "CONTROL": self.control_api_service_descriptor(),
                "LOGGING": self.logging_api_service_descriptor(),
            }
            environment = {f"{name}_API_SERVICE_DESCRIPTOR": str(endpoint) for name, endpoint in endpoints.items()}
            options = json_format.MessageToJson(self.provision_info.provision_info.pipeline_options)
            self._worker.start({**environment, "WORKER_ID": self.worker_id, "PIPELINE_OPTIONS": options}, log_path)
            self._thread = threading.Thread(name=WORKER_THREAD, target=self._wait)
            self._thread.start()

        def _wait(self) -> None:
            if status := self._worker.wait():
                raise RuntimeError(f"Worker subprocess exited with return code {status}")

        def stop_worker(self) -> None:
            self._thread.join()

    WorkerHandler.register_environment(_FORKED, bytes)(ForkedWorkerHandler)
    return _ForkedEnvironment()
