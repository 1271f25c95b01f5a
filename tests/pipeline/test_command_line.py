"""What all commands share: exit statuses, one line for each error, and output that ends well."""

import argparse
import dataclasses
import logging
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import apache_beam
import pytest

from pipeline import VERSION, command_line
from pipeline.command_line import (
    CommandParser,
    OptionGroup,
    parse_buckets,
    parse_named_numbers,
    parse_names,
    run_command,
)
from pipeline.errors import CorruptShardError, NonFiniteLossError, OptionError, OutputWriteError, PipelineError
from tests.support.corpora import own_logging

REPOSITORY = Path(__file__).resolve().parents[2]


def run(error: BaseException | None, *arguments: str) -> int:
    def main(argv: Sequence[str]) -> int:
        assert list(argv) == list(arguments)
        if error:
            raise error
        return 0

    with own_logging():
        return run_command(main, arguments)


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [
        (None, 0, ""),
        (OptionError("--x: wrong"), 2, "error: --x: wrong\n"),
        (OutputWriteError("disk full"), 1, "error: disk full\n"),
        (
            CorruptShardError("bad", path="x", record=3, offset=99),
            2,
            "error: x: record 3 at byte 99: bad; copy it back, or write the dataset again\n",
        ),
        (NonFiniteLossError("nan", head="second", step=7), 1, "error: nan\n"),
        (KeyboardInterrupt(), 130, "interrupted\n"),
        (
            ModuleNotFoundError("No module named 'tensorflow'", name="tensorflow"),
            2,
            "error: this installation has no tensorflow, which training needs; pip install 'two-headed-bert[train]'\n",
        ),
    ],
)
def test_exit_status_and_message(
    capsys: pytest.CaptureFixture[str], error: BaseException | None, status: int, said: str
) -> None:
    assert run(error) == status
    assert capsys.readouterr() == ("", said)


def test_defects_keep_their_traceback() -> None:
    with pytest.raises(ZeroDivisionError):
        run(ZeroDivisionError())


def test_a_missing_module_of_our_own_is_a_defect() -> None:
    with pytest.raises(ModuleNotFoundError):
        run(ModuleNotFoundError("No module named 'pipeline.nothing'", name="pipeline.nothing"))


def test_installed_commands_call_themselves_by_their_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["/usr/bin/two-headed-bert-inspect"])
    assert CommandParser(prog="python -m pipeline.inspect", description="").prog == "two-headed-bert-inspect"
    monkeypatch.setattr(sys, "argv", ["/usr/bin/pytest"])
    assert CommandParser(prog="python -m pipeline.inspect", description="").prog == "python -m pipeline.inspect"


def test_debug_shows_the_traceback_of_an_error() -> None:
    with pytest.raises(OptionError):
        run(OptionError("x"), "--debug")


def test_an_error_is_one_line_whatever_it_quotes(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(OptionError("two\nlines\r, \x1b[31mred\x85 \u2028 体育\u3000")) == 2
    assert capsys.readouterr().err.endswith("error: two\\nlines\\r, \\x1b[31mred\\x85 \\u2028 体育\u3000\n")


@pytest.mark.parametrize("error", [PipelineError(), PipelineError("a", "b"), PipelineError(7)])
def test_an_error_is_always_a_string(error: PipelineError) -> None:
    assert str(error) in ("", "a", "7")


def test_parser_errors_are_option_errors() -> None:
    parser = CommandParser(prog="tool", description="d")
    parser.add_argument("--number", type=int)
    with pytest.raises(OptionError, match="argument --number: invalid int value: 'x'; see tool --help"):
        parser.parse_args(["--number", "x"])
    with pytest.raises(OptionError, match="unrecognized arguments: --num"):
        parser.parse_args(["--num", "1"])  # no abbreviations: a misspelt option is an error


def test_version_and_help(capsys: pytest.CaptureFixture[str]) -> None:
    parser = CommandParser(prog="tool", description="d")
    for option, expected in (("--version", f"tool {VERSION}\n"), ("--help", "usage: tool")):
        with pytest.raises(SystemExit) as leaving:
            parser.parse_args([option])
        assert leaving.value.code == 0
        assert capsys.readouterr().out.startswith(expected)


def test_messages_of_beam_are_shown_with_debug_alone(capsys: pytest.CaptureFixture[str]) -> None:
    beam = f"{Path(apache_beam.__file__).parent}/x.py"
    ours = "/home/apache_beam/two-headed-bert/pipeline/x.py"

    def main(_: Sequence[str]) -> int:
        for path in (beam, ours):
            record = logging.LogRecord("root", logging.WARNING, path, 1, f"from {path}", (), None)
            logging.getLogger().handle(record)
        return 0

    with own_logging():
        run_command(main, [])
    assert capsys.readouterr().err == f"from {ours}\n"
    with own_logging():
        run_command(main, ["--debug"])
    assert f"from {beam}\n" in capsys.readouterr().err


def test_a_reader_that_goes_away_is_no_defect(tmp_path: Path) -> None:
    code = (
        "import sys; from pipeline.command_line import run_command\n"
        "def main(argv):\n"
        "    for number in range(100_000): print('line', number)\n"
        "    return 0\n"
        "sys.exit(run_command(main, []))\n"
    )
    reader, writer = os.pipe()
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=writer, stderr=subprocess.PIPE, env=environment, cwd=tmp_path
    )
    os.close(writer)
    assert os.read(reader, 10)
    os.close(reader)
    _, stderr = process.communicate(timeout=30)
    assert (process.returncode, stderr) == (141, b"")


def test_a_pipe_that_breaks_elsewhere_is_a_defect() -> None:
    with pytest.raises(BrokenPipeError):
        run(BrokenPipeError())


def test_help_says_each_default_once(capsys: pytest.CaptureFixture[str]) -> None:
    parser = CommandParser(prog="command", description="Does something.")
    parser.add_argument("--run", required=True, help="what to run")
    parser.add_argument("--count", type=int, default=64, help="how many")
    parser.add_argument("--split", help="which one (default: all)")
    with pytest.raises(SystemExit):
        parser.parse_args(["--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert "what to run --count" in text
    assert "how many (default: 64) --split" in text
    assert text.endswith("which one (default: all)")


@pytest.mark.parametrize(
    ("arguments", "has_gpu", "level"), [((), False, "3"), ((), True, "1"), (("--debug",), True, None)]
)
def test_tensorflow_is_quiet_unless_it_may_have_to_explain_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], has_gpu: bool, level: str | None
) -> None:
    monkeypatch.setenv("TF_CPP_MIN_LOG_LEVEL", "")  # so that it is restored
    monkeypatch.delenv("TF_CPP_MIN_LOG_LEVEL")
    monkeypatch.setattr(command_line, "GPU_DRIVER", tmp_path if has_gpu else tmp_path / "none")
    assert run(None, *arguments) == 0
    assert os.environ.get("TF_CPP_MIN_LOG_LEVEL") == level


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cake:
    baker_name: str
    layers: int = 2
    sugar: float | None = None
    filling: Literal["cream", "jam"] = "cream"
    toppings: tuple[str, ...] = ()
    shared: bool = False


def cake_parser() -> CommandParser:
    parser = CommandParser(prog="bake", description="Bakes.")
    group = OptionGroup(parser, "cake", Cake)
    group.add("baker", "who bakes", field="baker_name", metavar="NAME")
    group.add("layers", "how high")
    group.add("sweet", "how sweet", field="sugar", default="to taste", only_with=("filling", ("jam",)))
    group.add("filling", "between layers")
    group.add("toppings", "on top", parse=parse_names, metavar="NAME,…", default="none")
    group.add("shared", "for everybody")
    return parser


def bake(*arguments: str) -> Cake:
    parser = cake_parser()
    given = vars(parser.parse_args(arguments))
    del given["debug"]
    cake = Cake(**given)
    parser.require_effect(given, dataclasses.asdict(cake))
    return cake


def test_options_set_the_fields_of_a_dataclass_and_have_its_defaults() -> None:
    assert bake("--baker", "Ada") == Cake(baker_name="Ada")
    options = ["--layers", "3", "--sweet", "0.5", "--filling", "jam", "--toppings", "nuts, icing", "--shared"]
    cake = bake("--baker", "Ada", *options)
    assert (cake.baker_name, cake.layers, cake.sugar, cake.filling) == ("Ada", 3, 0.5, "jam")
    assert (cake.toppings, cake.shared) == (("nuts", "icing"), True)
    text = " ".join(cake_parser().format_help().split())
    assert "--baker NAME who bakes --layers N how high (default: 2) --sweet X how sweet (default: to taste)" in text
    assert "--shared for everybody" in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "the following arguments are required: --baker"),
        (["--baker", "Ada", "--layers", "high"], "argument --layers: invalid int value: 'high'"),
        (["--baker", "Ada", "--filling", "air"], "argument --filling: invalid choice: 'air'"),
        (["--baker", "Ada", "--sweet", "1"], "--sweet: only used with --filling jam, not cream"),
    ],
)
def test_refuses_options_that_do_not_fit(arguments: list[str], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        bake(*arguments)


def test_buckets_are_words_or_numbers() -> None:
    assert [parse_buckets(text) for text in ("auto", "off", "64", "64,128")] == ["auto", "off", (64,), (64, 128)]
    with pytest.raises(argparse.ArgumentTypeError, match=r"expected auto, off or lengths such as 64,128, got '64;128'"):
        parse_buckets("64;128")


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("category=1,second=0.5", {"category": 1.0, "second": 0.5}),
        ("second = 1e-1", {"second": 0.1}),
        # Not a number, no name, no equals sign, twice.
        ("category=much", None),
        ("=1", None),
        ("0.5", None),
        ("category=1,category=2", None),
        ("", None),
    ],
)
def test_parses_a_number_for_each_name(text: str, values: dict[str, float] | None) -> None:
    if values is not None:
        assert parse_named_numbers(text) == values
        return
    with pytest.raises(argparse.ArgumentTypeError, match=r"expected NAME=NUMBER|is named twice"):
        parse_named_numbers(text)


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
@pytest.mark.parametrize(("body", "status"), [("print('done'); return 0", 0), ("raise OptionError('wrong')", 2)])
def test_streams_that_are_closed(tmp_path: Path, closed: str, body: str, status: int) -> None:
    """As cron and daemons leave them: the same status, and no file takes the place of a stream."""
    script = tmp_path / "command.py"
    script.write_text(
        "import sys\nfrom pipeline.command_line import run_command\nfrom pipeline.errors import OptionError\n"
        f"def main(argv):\n    assert open(__file__).fileno() > 2\n    sys.stdin.read()\n    {body}\n"
        "sys.exit(run_command(main, []))\n"
    )
    command = ["bash", "-c", f"{sys.executable} {script} {closed}"]
    done = subprocess.run(command, env={"PYTHONPATH": str(REPOSITORY)}, capture_output=True, text=True, input="")
    assert done.returncode == status
    said = ("" if ">&-" in closed.replace("2>&-", "") else "done\n", "") if status == 0 else ("", "error: wrong\n")
    assert (done.stdout, done.stderr) == (said[0], "" if "2>&-" in closed else said[1])
