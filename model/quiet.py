"""TensorFlow's start: without its chatter, and with what must be set before it."""

import os
import re
import sys
import tempfile
from pathlib import Path

from model.config import DevicesConfig
from pipeline.errors import OptionError

# What every build of TensorFlow says when it starts on a machine without a GPU; nothing turns it off.
_CHATTER = re.compile(
    rb"All log messages before absl::InitializeLog|oneDNN custom operations are on"
    rb"|This TensorFlow binary is optimized|To enable the following instructions"
)
_NO_GPU = re.compile(rb"Could not find cuda drivers|failed call to cuInit")
NVIDIA_DRIVER = Path("/proc/driver/nvidia/version")


def keep_compiled_programs(devices: DevicesConfig) -> None:
    """Let XLA keep its programs in `compile_cache`; TensorFlow reads this once, when it is imported.

    Raises:
        OptionError: TensorFlow is imported already, without this directory.
    """
    if devices.compile_cache is None:
        return
    flags = os.environ.get("TF_XLA_FLAGS", "")
    flag = f"--tf_xla_persistent_cache_directory={os.path.abspath(devices.compile_cache)}"
    if flag in flags.split():
        return
    if "tensorflow" in sys.modules:
        raise OptionError(f"--compile_cache: TensorFlow has started already; set TF_XLA_FLAGS={flag} before it does")
    os.environ["TF_XLA_FLAGS"] = f"{flags} {flag}".strip()


def start_tensorflow(*, quietly: bool) -> None:
    """Import TensorFlow and let it look for devices, without what it always says then.

    Args:
        quietly: False leaves both to whoever comes first, and lets it talk.
    """
    if not quietly:
        return
    # What stops TensorFlow comes as an exception. What its C++ side prints beside, in every run an error of tf.data
    # about itself, is for those who ask for it; TensorFlow reads this once. Why it
    # sees no GPU, where there is a driver, is a warning.
    has_driver = NVIDIA_DRIVER.exists()
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "1" if has_driver else "3")
    sys.stderr.flush()
    stderr = os.dup(2)
    with tempfile.TemporaryFile() as held:
        os.dup2(held.fileno(), 2)
        try:
            import tensorflow as tf

            tf.config.list_physical_devices()
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)
            held.seek(0)
            for line in held:
                if not _CHATTER.search(line) and (has_driver or not _NO_GPU.search(line)):
                    os.write(2, line)
