"""Tiny corpora of made-up text in every shape the job reads, and ways to run the job and to look at what it made."""

import contextlib
import dataclasses
import hashlib
import io
import logging
import random
import re
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import run_preprocess
from pipeline.command_line import run_command
from pipeline.corpus.options import Columns, CorpusOptions, InputSpec
from pipeline.dataset.info import DatasetInfo, read_dataset_info
from pipeline.dataset.shards import Placement
from pipeline.dataset.tfexample import parse_example, read_records
from pipeline.job.config import PreprocessConfig
from pipeline.job.job import Job
from pipeline.job.preprocess import EngineOptions, prepare, run
from pipeline.job.publish import publish_dataset
from pipeline.job.references import DatasetPlan, ReferenceBatch, ReferenceReader, Survey, plan_dataset
from pipeline.job.shard_writer import ShardReport, write_shard
from pipeline.job.transforms import divide_report, join_parts
from pipeline.tokenization.tokenizer import Tokenizer
from pipeline.tokenization.vocabulary import parse_vocab

CATEGORIES = ("体育", "科技", "股票")  # one of each parent but two: 生活娱乐, 公共事务, 经济金融
_CHARACTERS = "山水风云日月星花草木鱼鸟春夏秋冬早晚上下左右红黄蓝白大小多少远近"
VOCAB_TOKENS = (
    *("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "。", "，", "！", "？", ":"),
    *_CHARACTERS,
    *"0123456789abcdefghijklmnopqrstuvwxyz",
    *(f"##{character}" for character in "0123456789abcdefghijklmnopqrstuvwxyz"),
    *("bert", "##ing", "20", "##24"),
)

# What the job does on one core within a process: about a third of a second, where real workers take seconds.
QUICK = ("--direct_num_workers", "1")


def made_up_text(index: int, num_characters: int = 24) -> str:
    """Return a headline and a paragraph, another one for each index, in the layout of THUCNews."""
    draw = random.Random(index)
    body = "".join(draw.choice(_CHARACTERS + "，") for _ in range(num_characters))
    return f"{body[:8]}{index}\n\u3000\u3000{body[8:]}。\n"


def made_up_documents(num_documents: int, categories: Sequence[str] = CATEGORIES) -> dict[str, str]:
    """Return key → text, the categories in turns."""
    return {f"{categories[i % len(categories)]}/{i}.txt": made_up_text(i) for i in range(num_documents)}


def as_bytes(content: str | bytes) -> bytes:
    """Return UTF-8 of a text, and bytes as they are."""
    return content if isinstance(content, bytes) else content.encode()


def write_tree(root: Path, documents: Mapping[str, str | bytes]) -> Path:
    """Write one file per document below a directory."""
    for key, content in documents.items():
        path = root / key
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(as_bytes(content))
    return root


def write_zip(path: Path, documents: Mapping[str, str | bytes], *, compression: int = zipfile.ZIP_DEFLATED) -> Path:
    """Write one member per document; names that are not ASCII get the UTF-8 flag, as Python does it."""
    with zipfile.ZipFile(path, "w", compression) as archive:
        for key, content in documents.items():
            archive.writestr(key, as_bytes(content))
    return path


def write_lines(path: Path, lines: Sequence[str | bytes], *, end: bytes = b"\n") -> Path:
    """Write a file of lines."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"".join(as_bytes(line) + end for line in lines))
    return path


def write_vocab(path: Path, tokens: Sequence[str] = VOCAB_TOKENS) -> Path:
    """Write a vocabulary that has every character of `made_up_text`."""
    return write_lines(path, tokens)


def make_config(tmp_path: Path, *inputs: Path | str | InputSpec, **changes: Any) -> PreprocessConfig:
    """Return a valid configuration for some inputs; vocabulary and output lie in `tmp_path`.

    Args:
        tmp_path: where they lie.
        inputs: paths, and specifications with a split.
        changes: options of the job and of the corpus; `columns` may be text.
    """
    vocab = tmp_path / "vocab.txt"
    if not vocab.exists():
        write_vocab(vocab)
    specs = tuple(spec if isinstance(spec, InputSpec) else InputSpec(str(spec)) for spec in inputs)
    names = {field.name for field in dataclasses.fields(CorpusOptions)}
    of_corpus = {name: changes.pop(name) for name in list(changes) if name in names}
    if isinstance(of_corpus.get("columns"), str):
        of_corpus["columns"] = Columns.parse(of_corpus["columns"])
    fields = {"vocab_path": str(vocab), "output_dir": str(tmp_path / "dataset")} | changes
    return PreprocessConfig(corpus=CorpusOptions(inputs=specs, **of_corpus), **fields)


def make_staging(config: PreprocessConfig) -> str:
    """Make an empty staging directory beside the output."""
    staging = Path(f"{config.output_dir}.staging")
    staging.mkdir(parents=True, exist_ok=True)
    return str(staging)


def first_pass(job: Job) -> list[ReferenceBatch]:
    """Read all documents of a job into references, without Beam."""
    reader = ReferenceReader(job)
    chunks = (chunk for index, source in enumerate(job.sources) for chunk in source.chunks(index))
    return [reader.read(chunk) for chunk in chunks]


def make_plan(batches: Sequence[ReferenceBatch], job: Job) -> DatasetPlan:
    """Return the plan that follows from all references."""
    survey = Survey()
    for batch in batches:
        survey.add(batch)
    return plan_dataset(survey, job)


def second_pass(
    batches: Sequence[ReferenceBatch], *, plan: DatasetPlan, job: Job, staging_dir: str
) -> list[ShardReport]:
    """Write all shards that have documents into the staging directory, without Beam."""
    tokenizer = Tokenizer(parse_vocab(job.vocab_content, "vocab.txt"), max_len=job.config.max_len)
    groups: dict[tuple[str, int], list[Any]] = {}
    for batch in batches:
        for split, references in batch.by_split.items():
            for reference in references:
                shard = Placement(reference.digest).shard(plan.num_shards[split])
                groups.setdefault((split, shard), []).append(reference)
    reports = [
        write_shard(
            references, split=split, index=index, plan=plan, job=job, staging_dir=staging_dir, tokenizer=tokenizer
        )
        for (split, index), references in groups.items()
    ]
    rejections = [rejection for batch in batches for rejection in batch.rejections]
    parts: dict[tuple[str, int], list[Any]] = {}
    for report in [*reports, ShardReport(split="", index=0, rejections=rejections)]:
        for key, part in divide_report(report):
            parts.setdefault(key, []).append(part)
    return [report for element in parts.items() for report in join_parts(element)]


def run_by_hand(config: PreprocessConfig, between_fn: Callable[[], object] = lambda: None) -> DatasetInfo:
    """Run both passes without Beam, one after the other, with something happening in between."""
    Path(config.output_dir).mkdir(parents=True, exist_ok=True)
    job, staging_dir = prepare(config), make_staging(config)
    batches = first_pass(job)
    plan = make_plan(batches, job)
    between_fn()
    reports = second_pass(batches, plan=plan, job=job, staging_dir=staging_dir)
    publish_dataset(reports, plan=plan, job=job, staging_dir=staging_dir)
    return read_dataset_info(config.output_dir)


def run_quickly(config: PreprocessConfig, *beam_args: str) -> DatasetInfo:
    """Run the whole job within this process."""
    return run(config, EngineOptions(num_workers=1, beam_args=beam_args))


_START_UP = re.compile(r"^(?:options|inputs|documents|splits|vocabulary|engine|output) {3}.*\n", re.MULTILINE)


@dataclasses.dataclass(frozen=True)
class Outcome:
    """Result of a command.

    Attributes:
        status: its exit status.
        stdout: its standard output.
        stderr: its standard error, without the lines with which a job starts.
    """

    status: int
    stdout: str
    stderr: str

    @classmethod
    def of(cls, status: int, stdout: str, stderr: str) -> "Outcome":
        """Return the result of a command that may have logged the lines with which a job starts."""
        return cls(status, stdout, _START_UP.sub("", stderr))


def run_command_line(*argv: str | Path) -> Outcome:
    """Run `run_preprocess.py` within this process as a shell would: with its own logging, and an exit status."""
    stdout, stderr = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(stdout), contextlib.redirect_stderr(stderr), own_logging():
        try:
            status = run_command(run_preprocess.main, [str(argument) for argument in argv])
        except SystemExit as leaving:
            status = leaving.code if isinstance(leaving.code, int) else 1
    return Outcome.of(status, stdout.getvalue(), stderr.getvalue())


@contextlib.contextmanager
def own_logging() -> Iterator[None]:
    """Take pytest's log handlers away for a while, so that a command sets up its own."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    root.handlers[:] = []
    try:
        yield
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)


def digest_files(directory: Path) -> dict[str, str]:
    """Return name → SHA-256 of every file below a directory, hidden ones included; directories end in `/`."""
    found = {}
    for path in sorted(directory.rglob("*")):
        name = path.relative_to(directory).as_posix()
        if path.is_dir():
            found[f"{name}/"] = ""
        else:
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


@dataclasses.dataclass(frozen=True)
class Stored:
    """One stored example.

    Attributes:
        split: the split it is in.
        shard: its file's name.
        features: as `parse_example` gives them.
    """

    split: str
    shard: str
    features: dict[str, Any]


def read_dataset(directory: Path) -> tuple[DatasetInfo, dict[str, Stored]]:
    """Return a dataset's description and key → example, in stored order."""
    info = read_dataset_info(str(directory))
    examples: dict[str, Stored] = {}
    for split, split_info in info.splits.items():
        for shard in split_info.shards:
            with open(directory / shard.name, "rb") as stream:
                for _, record in read_records(stream, shard.name):
                    features: dict[str, Any] = {**parse_example(record)}
                    key = features["key"][0].decode()
                    assert key not in examples, f"{key} is stored twice"
                    examples[key] = Stored(split, shard.name, features)
    return info, examples


def texts_of(info: DatasetInfo, examples: Mapping[str, Stored]) -> dict[str, tuple[str, str]]:
    """Return key → (category, second label) by name."""
    categories, seconds = info.labels["category"].names, info.labels["second"].names
    return {
        key: (categories[stored.features["label"][0]], seconds[stored.features["second_label"][0]])
        for key, stored in examples.items()
    }
