"""What every test needs before anything imports TensorFlow, and what a session says at its end."""

import contextlib
import os
import signal
from collections.abc import Iterator

import pytest

from tests.support.real_data import DATA_DIR_VARIABLE, NEEDS_ONNX, NEEDS_TRANSFORMERS, NOT_FOUND, data_dir

os.environ.setdefault("TF_USE_LEGACY_KERAS", "1")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
# `make test-gpu` alone is for GPUs, and says so.
if os.environ.get("CUDA_VISIBLE_DEVICES") == "all":
    del os.environ["CUDA_VISIBLE_DEVICES"]
else:
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")

# What a shell without job control runs in the background ignores Ctrl-C, and hands that on to the processes it starts.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# The environments of engines and of remote storage have no Hypothesis, and need none.
with contextlib.suppress(ModuleNotFoundError):
    from hypothesis import settings

    # How long an example takes says more about the machine than about the code; and where tests run unattended, two
    # runs of the same commit try the same examples.
    settings.register_profile("ours", deadline=None, derandomize=bool(os.environ.get("CI")))
    settings.load_profile("ours")


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> Iterator[None]:
    """Say last of all, and loudly, which promise was not put to the test."""
    yield
    reasons = [report.longrepr[2] for report in terminalreporter.stats.get("skipped", []) if report.longrepr]
    num_skipped = sum(NOT_FOUND in reason for reason in reasons)
    if num_skipped:
        terminalreporter.section("TESTS ON REAL DATA DID NOT RUN", sep="!", red=True, bold=True)
        terminalreporter.line(
            f"{num_skipped} skipped: looked in {data_dir()}; set {DATA_DIR_VARIABLE} to where the data is", red=True
        )
    for need in (NEEDS_TRANSFORMERS, NEEDS_ONNX):
        num_skipped = sum(need in reason for reason in reasons)
        if num_skipped:
            terminalreporter.section("TESTS AGAINST OTHER LIBRARIES DID NOT RUN", sep="!", red=True, bold=True)
            terminalreporter.line(f"{num_skipped} skipped: {need}", red=True)
