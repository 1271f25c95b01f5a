"""Train a shared BERT with its heads on a dataset directory, and measure the result: `train_and_evaluate(config)`.

    check what the options name ─▶ devices ─▶ model ─▶ run directory, or its last saved state ─▶ loop ─▶ report

The same call with the same configuration continues a run that was interrupted. What it writes is described in
`model.run.directory`.
"""

import contextlib
import dataclasses
import functools
import logging
import textwrap
from collections.abc import Callable, Iterator

import tensorflow as tf
import tf_keras

from model.bert.checkpoint import save_bert_dir
from model.classifier import build_classifier, logits_model
from model.config import TRAIN_SPLIT, TrainConfig, spell
from model.evaluate import evaluate_split, write_report
from model.files import copy_file, write_text
from model.run.description import Resolved, ResolvedBatches, ResolvedDevices, RunDescription
from model.run.directory import RunDir, open_run_dir
from model.run.finished import load_final_model
from model.run.report import Report, TrainingSummary
from model.run.weights import named_variables
from model.training.compile_cache import keep_compiled_programs
from model.training.loop import TrainingLoop
from model.training.optimizer import AdamW, LossScale, Schedule
from model.training.preemption import PreemptionWatch, watch_for_preemption
from model.training.run_inputs import RunInputs, read_run_inputs
from model.training.steps import head_losses, make_eval_step, make_train_step
from model.training.strategy import (
    SMALLER_EVALUATION,
    Devices,
    check_batch_sizes,
    describe_gpus,
    explain_device_errors,
    open_devices,
    open_local_devices,
    resolve_deterministic,
    resolve_policy,
    resolve_xla,
)
from model.training.training_state import WEIGHTS_PREFIX, Progress, restore_newest
from pipeline.dataset.summary import format_seconds
from pipeline.input_pipeline.batch_plan import BatchOptions, BatchPlan, plan_batches

logger = logging.getLogger(__name__)


def train_and_evaluate(config: TrainConfig, *, on_step: Callable[[TrainingLoop], None] | None = None) -> Report:
    """Train, then measure the best epoch's weights on the test split (the validation split where there is none).

    Args:
        config: what, where and how.
        on_step: called after each training step is started, with the loop whose `progress` counts it.

    Returns:
        The content of `report.json`.

    Raises:
        PipelineError: one of its subclasses, by what is wrong: input, options, output, loss, or `PreemptedError`.
    """
    keep_compiled_programs(config.devices)
    inputs = read_run_inputs(config)
    run = open_run_dir(config.paths.output_dir)
    if run.exists() and not config.saving.restart:
        run.check_origin(inputs.origin(config))
    setup = _resolve(config, inputs, run, open_devices(config))
    # Not before the devices: where there are several workers, TensorFlow takes SIGTERM for itself when it starts.
    with _write_access(run, setup.devices), watch_for_preemption() as watch:
        return _train_in(setup, watch, on_step)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Setup:
    """A run before anything of it is written: options, inputs, and values resolved for these devices.

    Attributes:
        policy: Keras's mixed-precision policy.
        xla: whether the training step is compiled.
        deterministic: whether TensorFlow is held to deterministic kernels.
        plan: the batches of an epoch.
    """

    config: TrainConfig
    inputs: RunInputs
    run: RunDir
    devices: Devices
    policy: str
    xla: bool
    deterministic: bool
    plan: BatchPlan

    @functools.cached_property
    def description(self) -> RunDescription:
        """The content of the run's `config.json`."""
        resolved = Resolved(
            precision=self.policy.removeprefix("mixed_"),
            devices=ResolvedDevices(
                strategy=self.devices.kind,
                num_replicas=self.devices.num_replicas,
                num_workers=self.devices.num_workers,
                accumulate_steps=self.config.batches.accumulate_steps,
                xla=self.xla,
                deterministic=self.deterministic,
                tf32=self.devices.computes_in_tf32 and self.policy == "float32",
            ),
            batches=ResolvedBatches(
                bucket_lengths=tuple(self.plan.edges),
                bucket_rows=tuple(self.plan.rows),
                steps_per_epoch=self.plan.steps_per_epoch,
            ),
        )
        return self.inputs.describe(self.config, resolved)


def _resolve(config: TrainConfig, inputs: RunInputs, run: RunDir, devices: Devices) -> _Setup:
    """Resolve the options that are left to the devices and the data."""
    check_batch_sizes(config, devices.num_replicas)
    policy = resolve_policy(config, devices)
    plan = plan_batches(
        inputs.info.split(TRAIN_SPLIT).length_histogram,
        BatchOptions(
            global_batch_size=config.batches.batch_size,
            max_len=inputs.max_len,
            buckets=config.batches.buckets,
            batch_tokens=config.batches.batch_tokens,
            batch_multiple=devices.num_replicas * config.batches.accumulate_steps,
        ),
    )
    return _Setup(
        config=config,
        inputs=inputs,
        run=run,
        devices=devices,
        policy=policy,
        xla=resolve_xla(config, devices),
        deterministic=resolve_deterministic(config, devices),
        plan=plan,
    )


def _write_access(run: RunDir, devices: Devices) -> contextlib.AbstractContextManager[None]:
    return run.locked() if devices.is_chief else contextlib.nullcontext()


def _prepare_run_dir(setup: _Setup) -> None:
    """Make a run of the directory, or what one lacks that was killed while it was made."""
    run, bert = setup.run, setup.inputs.bert
    if setup.config.saving.restart:
        run.clear()
    run.remove_temporary()
    if not run.exists():
        run.write_config(setup.description)
    for path, text in ((run.vocab, bert.vocab.decode()), (run.bert_config, bert.config.to_json())):
        if not path.exists():
            write_text(path, text)


def _train_in(setup: _Setup, watch: PreemptionWatch, on_step: Callable[[TrainingLoop], None] | None) -> Report:
    config, inputs, run, devices = setup.config, setup.inputs, setup.run, setup.devices
    changed = run.check_resumable(setup.description) if run.exists() and not config.saving.restart else []
    if setup.deterministic:
        tf_keras.utils.set_random_seed(config.learning.seed % 2**32)
        tf.config.experimental.enable_op_determinism()
    with devices.strategy.scope():
        model = build_classifier(
            inputs.bert.checkpoint,
            inputs.head_sizes(config.model.heads),
            pooling=config.model.pooling,
            encoder=config.model.encoder,
            seed=config.learning.seed,
            dropout=config.model.dropout,
            policy=setup.policy,
        )
        logits = logits_model(model)
        weight_decay = config.learning.weight_decay if config.learning.optimizer == "adamw" else 0.0
        optimizer = AdamW(logits.trainable_variables, weight_decay=weight_decay, xla=setup.xla)
        loss_scale = LossScale() if setup.policy == "mixed_float16" else None
    # Not before options and inputs have proved right, for a run continues with those it began with; nor before every
    # worker has looked at what is there.
    devices.barrier()
    if devices.is_chief:
        _prepare_run_dir(setup)
    devices.barrier()
    variables = _state_variables(model, optimizer, loss_scale)
    own_id = setup.description.run_id
    restored = restore_newest(run.states, variables, run_id=own_id, best_weights=run.best_weights)
    progress = restored or Progress(run_id=own_id)
    devices.agree(progress.step)
    if restored and changed and f" {'; '.join(changed)}" not in "".join(progress.device_changes[-1:]):
        note = f"from step {progress.step + 1}: {'; '.join(changed)}"
        progress = dataclasses.replace(progress, device_changes=(*progress.device_changes, note))

    losses = head_losses(config, inputs.info.split(TRAIN_SPLIT).label_counts)
    loop = TrainingLoop(
        config=config,
        run=run,
        devices=devices,
        plan=setup.plan,
        max_len=inputs.max_len,
        schedule=Schedule.of(config, setup.plan.steps_per_epoch * config.learning.epochs),
        model=model,
        train_step=make_train_step(logits, optimizer, losses, devices, config, xla=setup.xla, loss_scale=loss_scale),
        eval_step=make_eval_step(logits, config, devices, xla=setup.xla),
        xla=setup.xla,
        variables=variables,
        progress=progress,
        watch=watch,
        on_step=on_step,
    )
    if devices.is_chief:
        for line in _start_up_lines(setup, loop):
            logger.info("%s", line)
    loop.train()
    return _finish(setup, loop)


def _state_variables(model: tf_keras.Model, optimizer: AdamW, loss_scale: LossScale | None) -> dict[str, tf.Variable]:
    """Name all variables that the next step depends on."""
    variables = {f"{WEIGHTS_PREFIX}{name}": variable for name, variable in named_variables(model.weights).items()}
    for kind, slots in (("momentum", optimizer.momentums), ("velocity", optimizer.velocities)):
        names = [variable.name.removesuffix(":0") for variable in optimizer.variables]
        variables |= {f"{kind}/{name}": slot for name, slot in zip(names, slots, strict=True)}
    variables["num_updates"] = optimizer.num_updates
    if loss_scale is not None:
        variables |= {"loss_scale": loss_scale.scale, "num_good_updates": loss_scale.num_good_updates}
    return variables


def _start_up_lines(setup: _Setup, loop: TrainingLoop) -> Iterator[str]:
    """Yield the start-up block."""
    config, inputs, devices, plan = setup.config, setup.inputs, setup.devices, setup.plan
    info = inputs.info
    options = " ".join(f"{name}={spell(value)}" for name, value in config.options.items())
    yield from textwrap.wrap(
        options,
        110,
        initial_indent="options      ",
        subsequent_indent="             ",
        # So that a path can be copied.
        break_long_words=False,
        break_on_hyphens=False,
    )
    yield f"dataset      {config.paths.data_dir}, fingerprint {info.fingerprint[:12]}, max_len {inputs.max_len}"
    for name, split in info.splits.items():
        yield f"  {name:<10} {split.num_examples:,} examples, {split.num_tokens:,} tokens"
        for head in config.model.heads:
            names = info.labels[head].names
            counts = zip(names, split.label_counts[head], strict=True)
            yield f"    {head:<10} " + ", ".join(f"{label} {count:,}" for label, count in counts)
    parameters = sum(int(tf.size(weight)) for weight in loop.model.trainable_weights)
    bert = inputs.bert.config
    compiled = ", XLA" if setup.xla else ""
    yield (
        f"model        {config.model.encoder} BERT, {bert.num_hidden_layers} layers, hidden {bert.hidden_size}, "
        f"pooling {config.model.pooling}, {parameters:,} trainable parameters, {setup.policy}{compiled}"
    )
    workers = f" on {devices.num_workers} workers" if devices.num_workers > 1 else ""
    device_names = ", ".join(name.rpartition("device:")[2] for name in devices.names)
    yield f"devices      {devices.kind}, {devices.num_replicas} replicas{workers}: {device_names}"
    for line in describe_gpus(devices):
        yield f"             {line}"
    rows = "/".join(str(rows) for rows in dict.fromkeys(plan.rows))
    each = "/".join(str(rows // devices.num_replicas) for rows in dict.fromkeys(plan.rows))
    parts = f" in {config.batches.accumulate_steps} parts" if config.batches.accumulate_steps > 1 else ""
    yield f"batches      {rows} examples, {each} per replica{parts}, padded to {', '.join(map(str, plan.edges))}"
    fixed = f"{plan.fixed_padding_share:.1%} if all were padded to {plan.max_len}"
    yield f"padding      {plan.padding_share:.1%} of positions; {fixed}"
    yield (
        f"steps        {plan.steps_per_epoch:,} per epoch, {loop.last_step:,} at most = "
        f"{loop.last_step / plan.steps_per_epoch:.4g} epochs, {loop.schedule.warmup_steps:,} of them warm-up"
    )
    if loop.progress.step:
        yield f"continuing   after step {loop.progress.step:,}, epoch {loop.progress.epoch + 1}"


def _finish(setup: _Setup, loop: TrainingLoop) -> Report:
    """Write the results, the report last, and return the report."""
    if setup.devices.is_chief:
        _write_results(setup, loop)
    setup.devices.barrier()
    return setup.run.read_report()


def _write_results(setup: _Setup, loop: TrainingLoop) -> None:
    """Measure the best epoch's weights, and write the results."""
    config, inputs, run = setup.config, setup.inputs, setup.run
    progress = loop.progress
    monitor = progress.monitor
    copy_file(run.best_weights(monitor.best_epoch), run.weights)
    # Not the model that was trained, which may compute in another precision: the one that evaluation, prediction and
    # export load.
    # The chief of several workers measures alone, on its own devices.
    devices = setup.devices if setup.devices.num_workers == 1 else open_local_devices()
    with devices.strategy.scope():
        model = load_final_model(run, setup.description)
    with explain_device_errors(SMALLER_EVALUATION):
        evaluation = evaluate_split(
            model,
            config.paths.data_dir,
            inputs.test_split,
            labels={head: inputs.info.labels[head].names for head in config.model.heads},
            pairs=inputs.label_pairs(config.model.heads),
            max_len=inputs.max_len,
            batch_size=config.batches.eval_batch_size,
            devices=devices,
            xla=setup.xla,
        )
    report = Report(
        evaluation=evaluation,
        training=TrainingSummary(
            monitored=config.learning.monitored,
            best_value=progress.rows[monitor.best_epoch - 1][config.learning.monitored],
            best_epoch=monitor.best_epoch,
            epochs=progress.epoch,
            steps=progress.step,
            early_stopped=progress.step < loop.last_step,
            seconds=progress.train_seconds,
            clock_seconds=progress.clock_seconds,
            num_examples=progress.num_examples,
            device_changes=progress.device_changes,
        ),
    )
    save_bert_dir(model, run.bert_config, run.vocab, run.bert, overwrite=True)
    write_report(run, report, config.paths.data_dir, run.path)
    logger.info(
        "trained %d epochs, %s steps, in %s; the best was epoch %d; report in %s",
        *(progress.epoch, f"{progress.step:,}", format_seconds(progress.train_seconds)),
        *(monitor.best_epoch, run.report_page),
    )
