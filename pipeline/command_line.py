"""What every command shares: one-line errors with the right exit status, logging, `--version` and `--debug`."""

import argparse
import io
import logging
import os
import select
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn, TextIO

from pipeline import VERSION
from pipeline.errors import OptionError, PipelineError

_INSTALLED_PREFIX = "two-headed-bert-"
# What the extra `train` installs and a worker of the preprocessing job does without.
_TRAINING_MODULES = ("jinja2", "keras_bert", "matplotlib", "sklearn", "tensorboard", "tensorflow", "tf_keras")
# As shells report a command that a signal ended: 128 and the signal's number.
_INTERRUPTED_STATUS = 130  # SIGINT
_BROKEN_PIPE_STATUS = 141  # SIGPIPE


class _HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """Adds the default to an option's help, where there is one and the help does not say it already."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        has_default = action.default not in (None, False) and "(default:" not in (action.help or "")
        return super()._get_help_string(action) if has_default else action.help


class CommandParser(argparse.ArgumentParser):
    """An argument parser whose errors are one line, and which takes no abbreviated options."""

    def __init__(self, *, prog: str, description: str, epilog: str | None = None):
        called = os.path.basename(sys.argv[0])
        super().__init__(
            prog=called if called.startswith(_INSTALLED_PREFIX) else prog,
            description=description,
            epilog=epilog,
            allow_abbrev=False,
            formatter_class=_HelpFormatter,
        )
        self.add_argument("--version", action="version", version=f"%(prog)s {VERSION}")
        self.add_argument("--debug", action="store_true", help="show the traceback of an error and Beam's own messages")

    def error(self, message: str) -> NoReturn:
        raise OptionError(f"{message}; see {self.prog} --help")


def run_command(main: Callable[[Sequence[str]], int], argv: Sequence[str] | None = None) -> int:
    """Run a command's `main` and turn its outcome into an exit status; the installed commands call nothing else.

    Args:
        main: takes the arguments, returns the exit status.
        argv: the arguments; `None` takes the process's own.

    Returns:
        0 done; 2 the command line or the input is wrong; 75 training was asked to stop and can be continued; 130
        interrupted from the keyboard; 141 nobody reads the output; 1 anything else.
    """
    _open_closed_streams()
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in arguments
    _configure_logging(debug)
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A label that the terminal's encoding lacks must not turn finished work into a failure.
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        status = main(arguments)
        sys.stdout.flush()
        return status
    except PipelineError as error:
        if debug:
            raise
        logging.getLogger(__name__).error("error: %s", error)
        return error.exit_status
    except ModuleNotFoundError as error:
        if debug or (error.name or "").split(".")[0] not in _TRAINING_MODULES:
            raise
        logging.getLogger(__name__).error(
            "error: this installation has no %s, which training needs; pip install 'two-headed-bert[train]'", error.name
        )
        return OptionError.exit_status
    except KeyboardInterrupt:
        logging.getLogger(__name__).error("interrupted")
        return _INTERRUPTED_STATUS
    except BrokenPipeError:
        if not _is_unread(sys.stdout):
            raise
        # The reader of our output went away (`… | head`), which is its right: not a word, but what the status would
        # have said is not known, so it says this. What is still buffered must not be tried again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _BROKEN_PIPE_STATUS


def _open_closed_streams() -> None:
    """Open the null device where a standard stream is closed, as cron and daemons do, before a file takes its place."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):  # in the order of their descriptors
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(os.open(os.devnull, os.O_RDWR), mode))


def _is_unread(stream: TextIO) -> bool:
    """Tell whether a stream leads into a pipe that nobody reads any more."""
    if not isinstance(stream, io.TextIOWrapper):
        return False
    poll = select.poll()
    poll.register(stream, 0)  # errors are told unasked
    return any(events & (select.POLLERR | select.POLLHUP) for _, events in poll.poll(0))


def _configure_logging(debug: bool) -> None:
    """Log to stderr; what Beam says about itself, and about parts of it that are not installed, only with `--debug`."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(message)s"))
    if not debug:
        handler.addFilter(lambda record: not _is_of_beam(record) or record.levelno >= logging.CRITICAL)
    logging.basicConfig(level=logging.DEBUG if debug else logging.INFO, handlers=[handler])


def _is_of_beam(record: logging.LogRecord) -> bool:
    """Tell whether a message comes from Beam's own files; it uses the root logger too, so that names do not tell."""
    beam = sys.modules.get("apache_beam")
    return beam is not None and record.pathname.startswith(tuple(f"{directory}/" for directory in beam.__path__))
