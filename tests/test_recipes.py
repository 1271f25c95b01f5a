"""Every training command that README and docs show is one that works: parsed, and resolved on the machines it names."""

import dataclasses
import re
import shlex
from pathlib import Path

import pytest

import run_train
from model.training.strategy import check_batch_sizes, open_devices, resolve_policy
from tests.support.runs import tiny_config

REPOSITORY = Path(__file__).parents[1]
PAGES = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").glob("*.md"))]
PATHS = ["--data", "data", "--bert", "bert", "--output", "run"]


def commands() -> list[str]:
    """Return the options of every `run_train.py …`, and of every quoted list of options that it alone knows."""
    known = {f"--{option.removesuffix('_dir')}" for option in tiny_config().options} - {
        "--data",
        "--output",
        "--batch_size",
    }
    found = []
    for page in PAGES:
        text = page.read_text(encoding="utf-8").replace("\\\n", " ")
        found += re.findall(r"run_train\.py +(--[^\n`|]+)", text)
        found += [options for options in re.findall(r"`(--[a-z_]+[^`\n]*)`", text) if options.split()[0] in known]
    return list(dict.fromkeys(option.split("#")[0].strip() for option in found))


COMMANDS = commands()


def test_finds_the_recipes() -> None:
    assert len(COMMANDS) > 12
    assert any("--batch_size 256" in command for command in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_recipe_is_accepted(command: str) -> None:
    arguments = [re.sub("[…]|DIR|FILE", "x", argument) for argument in shlex.split(command)]
    if len(arguments) == 1 and arguments[0] not in ("--restart", "--debug"):
        assert f"{arguments[0]} " in " ".join(run_train.make_parser().format_help().split())
        return
    given = {argument for argument in arguments if argument.startswith("--")}
    arguments += [part for pair in zip(PATHS[::2], PATHS[1::2], strict=True) if pair[0] not in given for part in pair]
    config = run_train.parse_config(arguments)
    for capability in ((7, 5), (8, 0), (9, 0)):
        devices = dataclasses.replace(open_devices(tiny_config()), on_gpu=True, compute_capability=capability)
        if config.devices.precision == "auto" or capability >= (8, 0):
            assert resolve_policy(config, devices)
    if config.learning.learning_rate >= 1e-4 and config.batches.batch_size >= 64:
        assert config.learning.warmup_share > 0, "a rate this high needs a warm-up"
        check_batch_sizes(config, 8)
