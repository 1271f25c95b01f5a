"""Train a shared BERT with its heads on a dataset directory that run_preprocess.py made; print the result table."""

import functools
import sys
from collections.abc import Sequence

from model.config import (
    BatchesConfig,
    DevicesConfig,
    LearningConfig,
    ModelConfig,
    PathsConfig,
    SavingConfig,
    TrainConfig,
)
from model.training.compile_cache import keep_compiled_programs
from pipeline.command_line import (
    CommandParser,
    OptionGroup,
    parse_buckets,
    parse_named_numbers,
    parse_names,
    run_command,
)

EPILOG = (
    "The same command again continues an interrupted run, to the same result. SIGTERM saves the state and exits with "
    "status 75. The original write-up's training: --optimizer adam --clip_norm 0 --batch_size 4 --buckets off (and "
    "--heads category for its single-output model). A usual fine-tuning of a pre-trained BERT: --schedule linear "
    "--learning_rate 3e-5 --epochs 3. Several machines: set TF_CONFIG on each, and start the same command on all."
)


def make_parser() -> CommandParser:
    """Return the parser of all options."""
    parser = CommandParser(prog="run_train.py", description=__doc__ or "", epilog=EPILOG)

    paths = OptionGroup(parser, "what to train on, and where to write", PathsConfig)
    paths.add("data", "dataset directory that run_preprocess.py made", field="data_dir", metavar="DIR")
    paths.add(
        "bert",
        "a BERT of Google's or Hugging Face's format, or a run; DIR/PREFIX chooses a checkpoint",
        field="bert_dir",
        metavar="BERT_DIR",
    )
    paths.add("output", "the run's directory; an unfinished run in it is continued", field="output_dir", metavar="RUN")

    model = OptionGroup(parser, "the model", ModelConfig)
    names, numbers = "HEAD,…", "HEAD=X,…"
    model.add(
        "heads",
        "labels to learn; one makes a single-output model",
        parse=parse_names,
        metavar=names,
        default="category,second",
    )
    model.add(
        "loss_weights",
        "weight of each head in the loss",
        parse=parse_named_numbers,
        metavar=numbers,
        default="1 each",
    )
    model.add(
        "label_smoothing",
        "share of the target that all classes get alike, such as category=0.1",
        parse=parse_named_numbers,
        metavar=numbers,
        default="none",
    )
    model.add(
        "balance_classes",
        "heads in whose loss rare classes weigh more",
        parse=parse_names,
        metavar=names,
        default="none",
    )
    model.add("pooling", "what the heads see: the [CLS] vector, or the maximum over all tokens")
    model.add("encoder", "our graph, or keras-bert's own for comparison")
    model.add("dropout", "dropout rate everywhere in the encoder; 0 for none", default="as its configuration says")

    batches = OptionGroup(parser, "batches", BatchesConfig)
    batches.add("batch_size", "examples per update, over all replicas and machines")
    batches.add("accumulate_steps", "compute each batch in N parts, one after another: less memory, the same update")
    batches.add(
        "batch_tokens", "about N positions per batch, whatever --batch_size: short texts, large batches", default="off"
    )
    batches.add("max_len", "cut texts to N tokens", default="the length they are stored with")
    batches.add(
        "buckets",
        "lengths that batches are padded to: planned from the data, off (all to --max_len), or a list such as 64,128",
        parse=parse_buckets,
        metavar="auto|off|N,…",
    )
    batches.add("eval_batch_size", "examples per batch of validation and test")

    learning = OptionGroup(parser, "learning", LearningConfig)
    learning.add("epochs", "passes over the training split, at most")
    learning.add("limit_steps", "stop after N updates in total, for trying out", default="off")
    learning.add("optimizer", "Adam with decoupled weight decay, or without decay")
    learning.add("learning_rate", "its peak; 1e-5 to 5e-5 suits a pre-trained BERT, 1e-4 to 1e-3 a small new one")
    learning.add(
        "weight_decay",
        "of matrices, for adamw; biases and normalization have none",
        only_with=("optimizer", ("adamw",)),
    )
    learning.add("clip_norm", "scale gradients down to this norm; 0 for never")
    learning.add("schedule", "cut the rate when validation stops improving, let it fall linearly to 0, or keep it")
    learning.add("warmup", "share of all steps over which the rate rises from 0", default="0.1 for linear, else 0")
    learning.add(
        "plateau_patience", "epochs without improvement until the rate is cut", only_with=("schedule", ("plateau",))
    )
    learning.add("plateau_factor", "factor that cuts the rate", only_with=("schedule", ("plateau",)))
    learning.add(
        "monitor",
        "validation metric that chooses the best epoch: mean of the heads' accuracies, all heads right, or the loss",
    )
    learning.add("early_stopping_patience", "stop after N epochs without a better one; 0 for never")
    learning.add(
        "max_skipped_steps", "leave out up to N updates in a row whose loss is not a finite number, then end the run"
    )
    learning.add("seed", "of new weights, the order of examples, and dropout")

    devices = OptionGroup(parser, "devices and arithmetic", DevicesConfig)
    devices.add("strategy", "where to train; auto takes the machines in TF_CONFIG, else all GPUs, else the CPU")
    devices.add(
        "cpu_replicas",
        "for --strategy mirrored without GPUs: make N devices of this CPU",
        default="use GPUs",
        only_with=("strategy", ("auto", "mirrored")),
    )
    devices.add(
        "precision",
        "of products; auto is float32 on a CPU, else what the GPU is made for; bfloat16 is fast on CPUs that have it",
    )
    devices.add("xla", "compile the step; auto on GPUs only")
    devices.add(
        "compile_cache",
        "keep what XLA compiles in this directory, so that a later run need not compile it again",
        metavar="DIR",
        default="off",
    )
    devices.add("deterministic", "same command, same bits; auto on CPUs only, as it slows GPUs down")

    saving = OptionGroup(parser, "states and logs", SavingConfig)
    saving.add("save_minutes", "save a resumable state every X minutes, and at every epoch's end")
    saving.add("save_every", "save a state every N steps, too", default="off")
    saving.add("keep_states", "states to keep")
    saving.add("log_every", "write TensorBoard scalars every N steps")
    saving.add("restart", "remove the run that is there, and start over")
    return parser


def parse_config(argv: Sequence[str]) -> TrainConfig:
    """Return the configuration that a command line describes.

    Raises:
        OptionError: an option has a value that cannot be used, or no effect beside the others.
    """
    parser = make_parser()
    given = vars(parser.parse_args(argv))
    del given["debug"]
    config = TrainConfig.from_options(**given)
    parser.require_effect(given, config.options)
    return config


def main(argv: Sequence[str]) -> int:
    """Train, and print the result table."""
    config = parse_config(argv)
    keep_compiled_programs(config.devices)
    # TensorFlow takes seconds to import, which --help and a wrong option need not wait for.
    from model.evaluate import result_table
    from model.trainer import train_and_evaluate

    report = train_and_evaluate(config)
    training = report.training
    speed = (
        f"{training.examples_per_second:,.1f} examples/s in training steps, "
        f"{training.examples_per_clock_second:,.1f} with validation and saving"
    )
    sys.stdout.write(f"{result_table(report.evaluation)}\n{speed}\n")
    return 0


command = functools.partial(run_command, main)

if __name__ == "__main__":
    sys.exit(command())
