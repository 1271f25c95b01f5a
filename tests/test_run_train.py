"""The command itself: every option, one line for every mistake, and runs that are killed."""

import ast
import dataclasses
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

import run_train
from model.config import TrainConfig
from model.training.training_state import list_states
from pipeline.command_line import run_command
from pipeline.errors import OptionError
from tests.support.runs import assert_same_results, make_inputs

REPOSITORY = Path(run_train.__file__).parent
PATHS = ["--data", "data", "--bert", "bert", "--output", "run"]

# For each option a value that is not its default, as typed and as the configuration has it.
OPTIONS = {
    "data": ("elsewhere", "elsewhere"),
    "bert": ("elsewhere", "elsewhere"),
    "output": ("elsewhere", "elsewhere"),
    "restart": (None, True),
    "heads": ("second", ("second",)),
    "loss_weights": ("category=1,second=0.5", {"category": 1.0, "second": 0.5}),
    "label_smoothing": ("second=0.1", {"second": 0.1}),
    "balance_classes": ("category,second", ("category", "second")),
    "pooling": ("max", "max"),
    "encoder": ("keras_bert", "keras_bert"),
    "dropout": ("0", 0.0),
    "max_len": ("128", 128),
    "batch_size": ("4", 4),
    "batch_tokens": ("4096", 4096),
    "accumulate_steps": ("4", 4),
    "eval_batch_size": ("8", 8),
    "buckets": ("64,128", (64, 128)),
    "epochs": ("3", 3),
    "limit_steps": ("20", 20),
    "optimizer": ("adam", "adam"),
    "learning_rate": ("3e-5", 3e-5),
    "weight_decay": ("0", 0.0),
    "clip_norm": ("0", 0.0),
    "schedule": ("linear", "linear"),
    "warmup": ("0.2", 0.2),
    "plateau_factor": ("0.1", 0.1),
    "plateau_patience": ("1", 1),
    "monitor": ("exact_match", "exact_match"),
    "early_stopping_patience": ("0", 0),
    "precision": ("bfloat16", "bfloat16"),
    "xla": ("on", "on"),
    "deterministic": ("off", "off"),
    "strategy": ("one_device", "one_device"),
    "cpu_replicas": ("2", 2),
    "seed": ("7", 7),
    "max_skipped_steps": ("0", 0),
    "compile_cache": ("cache", "cache"),
    "save_minutes": ("2.5", 2.5),
    "save_every": ("10", 10),
    "keep_states": ("5", 5),
    "log_every": ("10", 10),
}


GROUPS = {group.name for group in dataclasses.fields(TrainConfig)}


def parse(arguments: Any) -> Any:
    return run_train.parse_config(arguments)


@pytest.mark.parametrize("option", OPTIONS)
def test_each_option_changes_its_field_alone(option: Any) -> None:
    text, value = OPTIONS[option]
    before = parse(PATHS)
    after = parse([*PATHS, f"--{option}", *([] if text is None else [text])])
    field = f"{option}_dir" if option in ("data", "bert", "output") else option
    assert before.options[field] != value
    assert after.options == before.options | {field: value}


def test_there_is_an_option_for_every_field() -> None:
    assert {option.removesuffix("_dir") for option in parse(PATHS).options} == OPTIONS.keys()


def reads(tree: Any, owners: Any) -> Any:
    """Return the attributes that a module reads of names or attributes called like one of the owners."""
    return {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute)
        and isinstance(node.ctx, ast.Load)
        and getattr(node.value, "id", getattr(node.value, "attr", None)) in owners
    }


def test_every_field_is_read_by_somebody() -> None:
    """To check a value, or to write it down, is not to use it."""
    read = set()
    for path in (REPOSITORY / "model").rglob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        if path != REPOSITORY / "model" / "config.py":
            read |= reads(tree, GROUPS)
            continue
        for group in tree.body:
            if isinstance(group, ast.ClassDef):
                public = (method for method in group.body if not getattr(method, "name", "_").startswith("_"))
                read |= set().union(*(reads(method, {"self"}) for method in public))
    assert parse(PATHS).options.keys() - read == set()


def test_help_shows_every_option_and_its_default(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        run_train.main(["--help"])
    text = " ".join(capsys.readouterr().out.split())
    for option in OPTIONS:
        assert f"--{option} " in text
    assert "(default: 1e-05)" in text
    assert "None" not in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data", "data"], "the following arguments are required: --bert, --output"),
        ([*PATHS, "--learning_rates", "1e-5"], "unrecognized arguments: --learning_rates"),
        ([*PATHS, "--batch", "8"], "unrecognized arguments: --batch"),
        ([*PATHS, "--batch_size", "many"], "argument --batch_size: invalid int value: 'many'"),
        ([*PATHS, "--schedule", "cosine"], "argument --schedule: invalid choice: 'cosine'"),
        ([*PATHS, "--heads", "category", "--loss_weights", "second=1"], "--loss_weights: there is no head 'second'"),
        ([*PATHS, "--loss_weights", "category"], "argument --loss_weights: expected NAME=NUMBER"),
        ([*PATHS, "--buckets", "64;128"], "argument --buckets: expected auto, off or lengths such as 64,128"),
        ([*PATHS, "--heads", "categories"], "--heads: unknown head 'categories'"),
        ([*PATHS, "--optimizer", "adam", "--weight_decay", "0.1"], "--weight_decay: only used with --optimizer adamw"),
        (
            [*PATHS, "--schedule", "linear", "--plateau_factor", "0.1"],
            "--plateau_factor: only used with --schedule plat",
        ),
        ([*PATHS, "--optimizer", "adam", "--weight_decay", "0.01"], "--weight_decay: only used with --optimizer adamw"),
        (
            [*PATHS, "--cpu_replicas", "2", "--strategy", "one_device"],
            "--cpu_replicas: only used with --strategy auto or mirrored, not one_device",
        ),
        (
            [*PATHS, "--plateau_patience", "3", "--schedule", "constant"],
            "--plateau_patience: only used with --schedule",
        ),
    ],
)
def test_refuses_wrong_command_lines(arguments: list[Any] | list[str], message: str) -> None:
    with pytest.raises(OptionError, match=re.escape(message)):
        parse(arguments)


def command(inputs: Any, output: Any, *more: Any) -> list[Any]:
    options = ["--epochs", "2", "--batch_size", "8", "--learning_rate", "5e-3", "--save_every", "4"]
    paths = ["--data", inputs["data_dir"], "--bert", inputs["bert_dir"], "--output", str(output)]
    return [sys.executable, "run_train.py", *paths, *options, *more]


def start(arguments: Any) -> Any:
    environment = {name: value for name, value in os.environ.items() if name != "TF_CONFIG"}
    return subprocess.Popen(
        arguments, cwd=REPOSITORY, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def finish(process: Any) -> Any:
    output, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    return output


def newest_step(run: Any) -> Any:
    states = list_states(run / "state")
    return int(states[-1].name.split("-")[1]) if states else 0


def interrupt_after(arguments: Any, run: Any, step: int, signal_number: Any) -> tuple[Any, ...]:
    """Start a training, and send it a signal once it has saved a state of at least that step.

    A state that an earlier process left does not count: this one trains by then, and handles signals.

    Returns:
        Its exit status, and what it said.
    """
    least = max(step, newest_step(run) + 1)
    process = start(arguments)
    while process.poll() is None and newest_step(run) < least:
        time.sleep(0.002)
    process.send_signal(signal_number)
    _, errors = process.communicate(timeout=120)
    return process.returncode, errors


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return make_inputs(tmp_path_factory.mktemp("inputs"))


def test_a_killed_run_ends_with_the_same_bytes(inputs: Any, tmp_path: Path) -> None:
    """Dropout on, deterministic kernels: SIGKILL, then to the end, beside a run nobody interrupts."""
    undisturbed = start(command(inputs, tmp_path / "undisturbed"))
    disturbed = command(inputs, tmp_path / "disturbed")
    status, errors = interrupt_after(disturbed, tmp_path / "disturbed", 4, signal.SIGKILL)
    assert status == -signal.SIGKILL, errors
    table = finish(start(disturbed))
    assert re.search(
        r"^test \(13 examples\)\n.*\ncategory +[\d.]+%.*\nsecond .*\nboth.*\nindependent .*\njoint .*\n.*examples/s",
        table,
    )
    assert finish(undisturbed).splitlines()[:-1] == table.splitlines()[:-1]
    assert_same_results(tmp_path / "disturbed", tmp_path / "undisturbed")


@pytest.mark.slow
def test_three_kills_at_random_moments_and_a_polite_request(inputs: Any, tmp_path: Path) -> None:
    options = ["--epochs", "8", "--early_stopping_patience", "0"]
    finish(start(command(inputs, tmp_path / "undisturbed", *options)))
    run = tmp_path / "disturbed"
    disturbed = command(inputs, run, *options)
    # Sent from outside while the process trains, validates or saves, whatever it does just then.
    for step in sorted(random.Random(0).sample(range(1, 40), 3)):
        status, errors = interrupt_after(disturbed, run, step, signal.SIGKILL)
        assert status == -signal.SIGKILL, errors
        assert newest_step(run) >= step
    status, errors = interrupt_after(disturbed, run, 45, signal.SIGTERM)
    assert status == 75, errors
    stopped = re.fullmatch(
        r"error: stopped by SIGTERM after step (\d+); the state is saved, .*", errors.splitlines()[-1]
    )
    assert stopped
    assert int(stopped[1]) == newest_step(run) >= 45
    finish(start(disturbed))
    assert_same_results(run, tmp_path / "undisturbed")


def test_debug_shows_where_an_error_arose(inputs: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    arguments = command(inputs, tmp_path / "run", "--max_len", "20")[2:]
    assert run_command(run_train.main, arguments) == 2
    assert caplog.messages[-1].startswith("error: --max_len 20 is longer than")
    with pytest.raises(OptionError, match="--max_len 20 is longer than"):
        run_command(run_train.main, [*arguments, "--debug"])


def test_mistakes_are_one_line_and_status_2(inputs: Any, tmp_path: Path) -> None:
    """All in one process: what TensorFlow costs to start is paid once."""
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "thesis.txt").write_text("years of work")
    mistakes = [
        (["--heads", "third"], "--heads: unknown head 'third'"),
        (["--max_len", "20"], "--max_len 20 is longer than the 16 tokens the dataset was written with"),
        (["--batch_size", "7", "--cpu_replicas", "2"], "must be a multiple of the 2 replicas; use 6 or 8"),
        (["--data", str(tmp_path / "none")], "no such dataset directory"),
        (["--bert", str(foreign)], "the BERT directory has no vocab.txt"),
        (["--output", str(foreign)], "not a run (it holds 'thesis.txt'"),
        (["--strategy", "mirrored"], "TensorFlow sees no GPU"),
        (["--strategy", "multi_worker"], "TF_CONFIG names no cluster"),
        (["--precision", "float16"], "--precision float16"),
    ]
    commands = [command(inputs, tmp_path / "run", *more)[2:] for more, _ in mistakes]
    code = (
        "import json, sys\nfrom pipeline.command_line import run_command\nimport run_train\n"
        "for arguments in json.loads(sys.argv[1]):\n"
        "    print('status', run_command(run_train.main, arguments), file=sys.stderr, flush=True)\n"
    )
    process = start([sys.executable, "-c", code, json.dumps(commands)])
    _, errors = process.communicate(timeout=300)
    lines = [line for line in errors.splitlines() if line.startswith(("error:", "status", "Traceback"))]
    assert len(lines) == 2 * len(mistakes), errors
    for (_, message), line, status in zip(mistakes, lines[::2], lines[1::2], strict=True):
        assert line.startswith("error: ")
        assert message in line
        assert status == "status 2"
    assert not (tmp_path / "run").exists()
