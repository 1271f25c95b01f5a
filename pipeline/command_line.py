"""What all commands share: options, one-line errors with the right exit status, logging, `--version`, `--debug`."""

import argparse
import dataclasses
import io
import logging
import os
import select
import sys
import types
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NoReturn, TextIO, Union, get_args, get_origin, get_type_hints

from pipeline import VERSION
from pipeline.errors import OptionError, PipelineError, require

_INSTALLED_PREFIX = "two-headed-bert-"
# What the extra `train` installs and a worker of the preprocessing job does without.
_TRAINING_MODULES = ("jinja2", "keras_bert", "matplotlib", "sklearn", "tensorboard", "tensorflow", "tf_keras")
_TENSORFLOW_LOGGERS = ("absl", "tensorflow")
GPU_DRIVER = Path("/proc/driver/nvidia/version")
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
        self.only_with: dict[str, tuple[str, str, tuple[str, ...]]] = {}
        self.add_argument("--version", action="version", version=f"%(prog)s {VERSION}")
        self.add_argument("--debug", action="store_true", help="show the traceback of an error and Beam's own messages")

    def error(self, message: str) -> NoReturn:
        """Raise an `OptionError` where argparse would print the usage and exit."""
        raise OptionError(f"{message}; see {self.prog} --help")

    def require_effect(self, given: Mapping[str, Any], values: Mapping[str, Any]) -> None:
        """Refuse options that have no effect beside the others.

        Args:
            given: the parsed arguments, by field; options that are not given are absent.
            values: field → value, of all options.

        Raises:
            OptionError: an option is given that is only used with another value of another option.
        """
        for field, (option, other, used_with) in self.only_with.items():
            require(
                field not in given or values[other] in used_with,
                f"--{option}: only used with --{other} {' or '.join(used_with)}, not {values[other]}",
            )


class OptionGroup:
    """Adds options whose types and defaults are those of a configuration dataclass's fields.

    An option that is not given is absent from the parsed arguments: the dataclass alone holds its default. An option
    whose field has no default is required.

    Args:
        parser: gets the options.
        title: of the group in the help.
        config_type: the dataclass.
    """

    def __init__(self, parser: CommandParser, title: str, config_type: type):
        self._only_with = parser.only_with
        self._group = parser.add_argument_group(title)
        self._fields = {field.name: field for field in dataclasses.fields(config_type)}
        self._hints = get_type_hints(config_type)

    def add(
        self,
        option: str,
        text: str,
        *,
        field: str | None = None,
        parse: Callable[[str], Any] | None = None,
        metavar: str | None = None,
        default: str | None = None,
        only_with: tuple[str, tuple[str, ...]] | None = None,
        repeatable: bool = False,
    ) -> None:
        """Add an option.

        Args:
            option: its name, without dashes.
            text: its help.
            field: the name of its field, where that is another.
            parse: reads its value, where the field is neither a number, a string, a choice nor a switch; raises
                `argparse.ArgumentTypeError`.
            metavar: the name of its value in the help.
            default: the default as the help describes it, where the value itself does not say it.
            repeatable: whether it may be given several times, and its value is a list.
            only_with: another option, whose field has the same name, and those of its values beside which this option
                has an effect; see `CommandParser.require_effect`.
        """
        field = field or option
        if only_with:
            self._only_with[field] = (option, *only_with)
        value, factory = self._fields[field].default, self._fields[field].default_factory
        if repeatable:
            settings: dict[str, Any] = {"action": "append", "type": parse, "metavar": metavar}
        else:
            settings = _argument_of(self._hints[field], parse, metavar)
        if value is factory is dataclasses.MISSING:
            settings["required"] = True
        elif value is not False:
            text += f" (default: {value if default is None else default})"
        self._group.add_argument(f"--{option}", dest=field, default=argparse.SUPPRESS, help=text, **settings)


def _argument_of(hint: Any, parse: Callable[[str], Any] | None, metavar: str | None) -> dict[str, Any]:
    """Return how argparse reads a field of this type."""
    if parse is not None:
        return {"type": parse, "metavar": metavar}
    is_optional = get_origin(hint) in (Union, types.UnionType)
    if is_optional:
        (hint,) = (kind for kind in get_args(hint) if kind is not types.NoneType)
    if hint is bool:
        return {"action": argparse.BooleanOptionalAction if is_optional else "store_true"}
    if get_origin(hint) is Literal:
        return {"choices": get_args(hint)}
    return {"type": hint, "metavar": metavar or {int: "N", float: "X"}.get(hint)}


def parse_names(text: str) -> tuple[str, ...]:
    """Parse `NAME,…`."""
    return tuple(part.strip() for part in text.split(","))


def parse_named_numbers(text: str) -> dict[str, float]:
    """Parse `NAME=NUMBER,…`.

    Raises:
        argparse.ArgumentTypeError: the text has another form, or names something twice.
    """
    values: dict[str, float] = {}
    for item in text.split(","):
        name, equals, number = (part.strip() for part in item.partition("="))
        try:
            value = float(number)
        except ValueError:
            equals = ""
        if not (name and equals):
            raise argparse.ArgumentTypeError(f"expected NAME=NUMBER,…, got {item!r} in {text!r}")
        if name in values:
            raise argparse.ArgumentTypeError(f"{name!r} is named twice in {text!r}")
        values[name] = value
    return values


def parse_buckets(text: str) -> Literal["auto", "off"] | tuple[int, ...]:
    """Parse `auto`, `off` or `64,128,…`.

    Raises:
        argparse.ArgumentTypeError: it is none of them.
    """
    if text == "auto":
        return "auto"
    if text == "off":
        return "off"
    try:
        return tuple(int(edge) for edge in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected auto, off or lengths such as 64,128, got {text!r}") from None


def num_cores() -> int:
    """Return how many cores this process may use; all of them where a process cannot be tied to some (macOS)."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


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
    if not debug:
        # TensorFlow reads this once, when it is imported. Where there is a GPU, a warning says why it does not use it.
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "1" if GPU_DRIVER.exists() else "3")
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
    """Log to stderr; what Beam and TensorFlow say about themselves only with `--debug`."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(message)s"))
    if not debug:
        handler.addFilter(lambda record: not _is_of_beam(record) or record.levelno >= logging.CRITICAL)
        handler.addFilter(lambda record: record.name not in _TENSORFLOW_LOGGERS or record.levelno >= logging.WARNING)
    logging.basicConfig(level=logging.DEBUG if debug else logging.INFO, handlers=[handler])


def _is_of_beam(record: logging.LogRecord) -> bool:
    """Tell whether a message comes from Beam's own files; it uses the root logger too, so that names do not tell."""
    beam = sys.modules.get("apache_beam")
    return beam is not None and record.pathname.startswith(tuple(f"{directory}/" for directory in beam.__path__))
