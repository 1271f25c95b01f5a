"""What prediction and export need of a finished run besides its model."""

import hashlib

from model.evaluate import FinishedRun
from pipeline import filesystem
from pipeline.errors import InputFormatError
from pipeline.vocabulary import parse_vocab


def load_run_vocab(finished: FinishedRun) -> dict[str, int]:
    """Read the vocabulary that a run was trained with, token to id.

    Raises:
        MissingInputError: it is missing.
        InputFormatError: it is another one by now.
    """
    path = str(finished.run.vocab)
    data = filesystem.read_bytes(path)
    expected = finished.description["bert"]["vocab_sha256"]
    found = hashlib.sha256(data).hexdigest()
    if found != expected:
        raise InputFormatError(
            f"{path}: not the vocabulary this run was trained with (expected SHA-256 {expected[:12]}, "
            f"got {found[:12]}); copy it back from {finished.run.bert}"
        )
    return parse_vocab(data, path)
