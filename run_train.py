"""Train a shared BERT with its heads on a dataset directory that run_preprocess.py made, and print the result table."""

import argparse
import dataclasses
import functools
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from model.config import (
    ENCODERS,
    MONITORS,
    OPTIMIZERS,
    POOLINGS,
    PRECISIONS,
    SCHEDULES,
    STRATEGIES,
    SWITCHES,
    TrainConfig,
    parse_buckets,
    parse_head_values,
)
from model.quiet import start_tensorflow
from pipeline.command_line import CommandParser, run_command
from pipeline.config import require
from pipeline.errors import OptionError

EPILOG = (
    "The same command again continues an interrupted run, to the same result. SIGTERM saves the state and exits with "
    "status 75. The original write-up's training: --optimizer adam --clip_norm 0 --batch_size 4 --buckets off (and "
    "--heads category for its single-output model). A usual fine-tuning of a pre-trained BERT: --schedule linear "
    "--learning_rate 3e-5 --epochs 3. Several machines: set TF_CONFIG on each, and start the same command on all."
)
# Option -> the option, and its value, without which it has no effect.
ONLY_WITH = {
    "weight_decay": ("optimizer", "adamw"),
    "plateau_patience": ("schedule", "plateau"),
    "plateau_factor": ("schedule", "plateau"),
}


class _Options:
    """Adds options whose defaults are `TrainConfig`'s; one that is not given stays away from the parsed arguments."""

    def __init__(self, parser: CommandParser, title: str):
        self._group = parser.add_argument_group(title)
        self._defaults = {field.name: field.default for field in dataclasses.fields(TrainConfig)}

    def path(self, option: str, metavar: str, text: str) -> None:
        """Add a required directory."""
        self._group.add_argument(
            f"--{option}", dest=f"{option}_dir", metavar=metavar, required=True, default=argparse.SUPPRESS, help=text
        )

    def switch(self, option: str, text: str) -> None:
        """Add an option without a value."""
        self._group.add_argument(f"--{option}", action="store_true", default=argparse.SUPPRESS, help=text)

    def choice(self, option: str, choices: tuple[str, ...], text: str) -> None:
        """Add an option with one of a few values."""
        self._add(option, text, choices=choices)

    def count(self, option: str, text: str, default: str | None = None) -> None:
        """Add an option with a whole number."""
        self._add(option, text, default, type=int, metavar="N")

    def number(self, option: str, text: str, default: str | None = None) -> None:
        """Add an option with a number."""
        self._add(option, text, default, type=float, metavar="X")

    def parsed(
        self, option: str, metavar: str, parse: Callable[[str], Any], text: str, default: str | None = None
    ) -> None:
        """Add an option with a value of another form."""

        def parse_or_say_why(value: str) -> Any:
            try:
                return parse(value)
            except OptionError as error:
                raise argparse.ArgumentTypeError(str(error).removeprefix(f"--{option}: ")) from None

        self._add(option, text, default, type=parse_or_say_why, metavar=metavar)

    def _add(self, option: str, text: str, default: str | None = None, **settings: Any) -> None:
        shown = self._defaults[option] if default is None else default
        self._group.add_argument(
            f"--{option}", default=argparse.SUPPRESS, help=f"{text} (default: {shown})", **settings
        )


def _names(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(","))


def _head_values(option: str) -> Callable[[str], Any]:
    return lambda text: parse_head_values(option, text)


def build_parser() -> CommandParser:
    """Return the parser of all options."""
    parser = CommandParser(prog="run_train.py", description=__doc__ or "", epilog=EPILOG)

    paths = _Options(parser, "what to train on, and where to write")
    paths.path("data", "DIR", "dataset directory that run_preprocess.py made")
    paths.path(
        "bert", "BERT_DIR", "a BERT of Google's or Hugging Face's format, or a run; DIR/PREFIX chooses a checkpoint"
    )
    paths.path("output", "RUN", "the run's directory; an unfinished run in it is continued")
    paths.switch("restart", "remove the run that is there, and start over")

    model = _Options(parser, "the model")
    model.parsed("heads", "HEAD,…", _names, "labels to learn; one makes a single-output model", "category,second")
    pairs = "HEAD=X,…"
    model.parsed("loss_weights", pairs, _head_values("loss_weights"), "weight of each head in the loss", "1 each")
    model.parsed(
        "label_smoothing",
        pairs,
        _head_values("label_smoothing"),
        "share of the target that all classes get alike, such as category=0.1",
        "none",
    )
    model.parsed("balance_classes", "HEAD,…", _names, "heads in whose loss rare classes weigh more", "none")
    model.choice("pooling", POOLINGS, "what the heads see: the [CLS] vector, or the maximum over all tokens")
    model.choice("encoder", ENCODERS, "our graph, or keras-bert's own for comparison")
    model.number("dropout", "dropout rate everywhere in the encoder; 0 for none", "as its configuration says")

    batches = _Options(parser, "batches")
    batches.count("batch_size", "examples per update, over all replicas and machines")
    batches.count("accumulate_steps", "compute each batch in N parts, one after another: less memory, the same update")
    batches.count(
        "batch_tokens", "about N positions per batch, whatever --batch_size: short texts, large batches", "off"
    )
    batches.count("max_len", "cut texts to N tokens", "the length they are stored with")
    batches.parsed(
        "buckets",
        "auto|off|N,…",
        parse_buckets,
        "lengths that batches are padded to: planned from the data, off (all to --max_len), or a list such as 64,128",
    )
    batches.count("eval_batch_size", "examples per batch of validation and test")

    learning = _Options(parser, "learning")
    learning.count("epochs", "passes over the training split, at most")
    learning.count("limit_steps", "stop after N updates in total, for trying out", "off")
    learning.choice("optimizer", OPTIMIZERS, "Adam with decoupled weight decay, or without decay")
    learning.number("learning_rate", "its peak; 1e-5 to 5e-5 suits a pre-trained BERT, 1e-4 to 1e-3 a small new one")
    learning.number("weight_decay", "of matrices, for adamw; biases and normalization have none")
    learning.number("clip_norm", "scale gradients down to this norm; 0 for never")
    learning.choice(
        "schedule", SCHEDULES, "cut the rate when validation stops improving, let it fall linearly to 0, or keep it"
    )
    learning.number("warmup", "share of all steps over which the rate rises from 0", "0.1 for linear, else 0")
    learning.count("plateau_patience", "epochs without improvement until the rate is cut")
    learning.number("plateau_factor", "what it is multiplied with then")
    learning.choice(
        "monitor",
        MONITORS,
        "validation metric that chooses the best epoch: mean of the heads' accuracies, all heads right, or the loss",
    )
    learning.count("early_stopping_patience", "stop after N epochs without a better one; 0 for never")
    learning.count("seed", "of new weights, the order of examples, and dropout")

    devices = _Options(parser, "devices and arithmetic")
    devices.choice(
        "strategy", STRATEGIES, "where to train; auto takes the machines in TF_CONFIG, else all GPUs, else the CPU"
    )
    devices.count("cpu_replicas", "for --strategy mirrored without GPUs: make N devices of this CPU", "use GPUs")
    devices.choice(
        "precision",
        PRECISIONS,
        "of products; auto is float32 on a CPU, else what the GPU is made for; bfloat16 is fast on CPUs that have it",
    )
    devices.choice("xla", SWITCHES, "compile the step; auto on GPUs only")
    devices.choice("deterministic", SWITCHES, "same command, same bits; auto on CPUs only, as it slows GPUs down")

    running = _Options(parser, "states and logs")
    running.count("save_every", "save a resumable state every N steps, and at every epoch's end")
    running.count("keep_states", "states to keep")
    running.count("log_every", "write TensorBoard scalars every N steps")
    return parser


def make_config(options: Mapping[str, Any]) -> TrainConfig:
    """Return the configuration of the options that were given.

    Raises:
        OptionError: one has a value that cannot be used, or no effect beside the others.
    """
    config = TrainConfig(**options)
    for option, (other, value) in ONLY_WITH.items():
        found = getattr(config, other)
        require(option not in options or found == value, f"--{option}: only used with --{other} {value}, not {found}")
    return config


def main(argv: Sequence[str]) -> int:
    """Train, and print the result table."""
    options = vars(build_parser().parse_args(argv))
    debug = options.pop("debug")
    config = make_config(options)
    start_tensorflow(quietly=not debug)
    # TensorFlow takes seconds to import, which --help and a wrong option need not wait for.
    from model.evaluate import result_table
    from model.trainer import train_and_evaluate

    report = train_and_evaluate(config)
    speed = f"{report['train_examples_per_second']:,.1f} examples/s in training"
    sys.stdout.write(f"{result_table(report)}\n{speed}\n")
    return 0


command = functools.partial(run_command, main)

if __name__ == "__main__":
    sys.exit(command())
