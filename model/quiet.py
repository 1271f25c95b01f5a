"""TensorFlow's start without its chatter."""

import os
import re
import sys
import tempfile

# What every build of TensorFlow says when it starts on a machine without a GPU; nothing turns it off.
_CHATTER = re.compile(
    rb"All log messages before absl::InitializeLog|oneDNN custom operations are on|Could not find cuda drivers"
    rb"|failed call to cuInit|This TensorFlow binary is optimized|To enable the following instructions"
)


def import_tensorflow_quietly() -> None:
    """Import TensorFlow and let it look for devices, holding back what it always says then; all else is passed on."""
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
                if not _CHATTER.search(line):
                    os.write(2, line)
