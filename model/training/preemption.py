"""A polite request to stop (SIGTERM), as clusters send it before they take a machine away."""

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType

from pipeline.errors import PipelineError


class PreemptedError(PipelineError):
    """The run was asked to stop, and has saved its state; the same command continues it."""

    # EX_TEMPFAIL of sysexits.h, "try again": neither done (0), nor wrong (1, 2), nor killed without a word (143).
    exit_status = 75


class PreemptionWatch:
    """Whether the process was asked to stop.

    Attributes:
        requested: it was.
    """

    def __init__(self) -> None:
        self.requested = False
        self._deferring = False

    def handle(self, signum: int, frame: FrameType | None) -> None:
        """Take in the signal: at once, or noted inside `deferred`."""
        self.requested = True
        if not self._deferring:
            raise _stopped()

    @contextlib.contextmanager
    def deferred(self) -> Iterator[None]:
        """Only note the signal for the duration of this context, whose body looks at `requested`.

        Raises:
            PreemptedError: it came after the body had looked for the last time.
        """
        self._deferring = True
        try:
            yield
        finally:
            self._deferring = False
        if self.requested:
            raise _stopped()


def _stopped() -> PreemptedError:
    return PreemptedError("stopped by SIGTERM; run the same command again to continue")


@contextlib.contextmanager
def watch_for_preemption() -> Iterator[PreemptionWatch]:
    """Handle SIGTERM for the duration of this context; only the main thread can, others never see it."""
    watch = PreemptionWatch()
    if threading.current_thread() is not threading.main_thread():
        yield watch
        return
    former = signal.signal(signal.SIGTERM, watch.handle)
    try:
        yield watch
    finally:
        signal.signal(signal.SIGTERM, former)
