"""The exceptions a user of this project can meet, under one base.

A command turns any `PipelineError` into one line on stderr and its `exit_status`; everything else is a defect and keeps
its traceback. Messages say what is wrong, where, what was expected, what was found, and what to do about it.
"""

# Characters that break a line or steer a terminal, and can occur in a file name or a label.
_CONTROL_CHARACTERS = {code: ascii(chr(code))[1:-1] for code in (*range(0x20), *range(0x7F, 0xA0), 0x2028, 0x2029)}


def one_line(text: str) -> str:
    """Return a text with everything that would break a line, or steer a terminal, written as an escape."""
    return text.translate(_CONTROL_CHARACTERS)


def shorten(name: str, max_characters: int = 40) -> str:
    """Return a name quoted for a message, cut where it is long: a text that is taken for a label fills no screen."""
    return repr(name) if len(name) <= max_characters else f"{name[:max_characters]!r}… ({len(name):,} characters)"


class PipelineError(Exception):
    """Base of every error this project raises on purpose; as a string it is one line, whatever names it quotes."""

    exit_status = 2

    def __str__(self) -> str:
        message = str(self.args[0]) if self.args else ""
        return one_line(message)


class OptionError(PipelineError, ValueError):
    """An option, or a combination of options, that cannot be used."""


def require(condition: bool, message: str) -> None:
    """Raise an `OptionError` with this message unless the condition holds."""
    if not condition:
        raise OptionError(message)


def require_choice(option: str, value: str, choices: tuple[str, ...]) -> None:
    """Raise an `OptionError` unless an option's value is one of its choices."""
    require(value in choices, f"--{option}: expected one of {', '.join(choices)}, got {value!r}")


class MissingInputError(PipelineError, FileNotFoundError):
    """An input file or directory that is not there, or not of the kind that was expected."""


class InputFormatError(PipelineError, ValueError):
    """An input file that is there but does not hold what it should (vocabulary, taxonomy, archive, configuration)."""


class OutputExistsError(PipelineError):
    """An output directory that holds something which would be lost."""


class OutputWriteError(PipelineError):
    """The output could not be written: disk full, no permission, read-only file system."""

    exit_status = 1


class EngineError(PipelineError):
    """The engine that ran the job failed, or lost part of its work."""

    exit_status = 1


class TooManyRejectedError(PipelineError):
    """More documents were rejected than `--max_rejected_fraction` allows."""


class EmptyDocumentError(PipelineError, ValueError):
    """A document of which normalization or tokenization leaves nothing."""


class EmptySplitError(PipelineError):
    """A split without examples where examples are needed."""


class SchemaMismatchError(PipelineError):
    """A dataset written under another schema or format version, or with another vocabulary, than its reader expects."""


class CorruptShardError(PipelineError):
    """A file of a dataset that is damaged, cut short or not the one `dataset.json` describes.

    Attributes:
        what: what is wrong.
        path: the file.
        record: number of the first bad record, from 0; None where the fault is the file's.
        offset: byte offset of that record; None where the fault is the file's.
    """

    def __init__(self, what: str, *, path: str, record: int | None = None, offset: int | None = None):
        place = "" if record is None else f": record {record} at byte {offset}"
        super().__init__(f"{path}{place}: {what}; copy it back, or write the dataset again")
        self.what = what
        self.path = path
        self.record = record
        self.offset = offset


class WorkerDiedError(PipelineError):
    """A process that did part of the work was killed."""

    exit_status = 1


class NonFiniteLossError(PipelineError):
    """Training met a loss, or a gradient, that is not a number or infinite.

    Attributes:
        head: the head whose loss it was; where it was the gradient, all heads, as in `category+second`.
        step: the global step at which it happened.
    """

    exit_status = 1

    def __init__(self, message: str, *, head: str, step: int):
        super().__init__(message)
        self.head = head
        self.step = step
