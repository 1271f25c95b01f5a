"""Where XLA keeps its programs; nothing here imports TensorFlow, which must not start before it knows."""

import os
import sys

from model.config import DevicesConfig
from pipeline.errors import OptionError


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
