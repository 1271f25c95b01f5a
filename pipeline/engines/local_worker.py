"""One worker process of a job on this machine: Beam's own worker, which dies with the job that started it.

Without that, workers of a killed job would live on for up to a minute, holding memory and writing into its output.

    python -m pipeline.engines.local_worker JOB_PROCESS_ID
"""

import ctypes
import os
import signal
import sys
from collections.abc import Sequence

# Left to itself, malloc keeps the megabytes of every array it ever served. Much below 2 MiB, every array would be
# fetched from the kernel page by page: a third of a worker's time.
MALLOC_MMAP_THRESHOLD_BYTES = 2 << 20
_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def end_with_job(job_process_id: int) -> None:
    """Tie this process to its parent, the job: whatever ends that kills this."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    # The job may have died before it could be said what its death means.
    if os.getppid() != job_process_id:
        sys.exit("the job has died")


def main(argv: Sequence[str]) -> None:
    """Tie this process to its job, then do what the job asks for until it is over."""
    end_with_job(int(argv[1]))
    # It takes a second to import, in which the job could die.
    from apache_beam.runners.worker import sdk_worker_main

    sdk_worker_main.main([argv[0]])


if __name__ == "__main__":
    main(sys.argv)
