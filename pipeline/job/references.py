"""The first pass: from a chunk of documents to references, and from all references to the plan of the dataset.

A reference is what the shuffle carries instead of a document: its placement, its key, its labels by name and the place
where its text can be read again. The plan is what cannot be known before every document was seen once: which labels
there are, hence their ids, and how many documents each split has, hence its shards.
"""

import dataclasses
from collections import Counter
from collections.abc import Mapping
from typing import Any, NamedTuple

from pipeline.config import PreprocessConfig
from pipeline.corpus.documents import DocumentRejectedError, Locator, RawDocument, Rejection, decode_text
from pipeline.corpus.sources import Chunk, Source
from pipeline.dataset.labels import LabelMap, Taxonomy, normalize_label
from pipeline.dataset.schema import CATEGORY_HEAD, SECOND_HEAD
from pipeline.dataset.shards import Placement, auto_num_shards, place
from pipeline.errors import InputFormatError, TooManyRejectedError
from pipeline.tokenization.tokenizer import Tokenizer
from pipeline.tokenization.vocabulary import parse_vocab

_EXAMPLES_IN_MESSAGES = 3


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
    """Everything a worker needs to know about one run.

    Attributes:
        config: the options.
        sources: where documents come from.
        taxonomy: category → parent, with `--second_label taxonomy`.
        category_names: the categories in id order, where they are given.
        vocab_content: the vocabulary's bytes, so that workers need no file.
        vocab_size: its tokens.
        staging_dir: where everything is written before it is published.
        progress_dir: where workers on this machine leave their counts; `None` elsewhere.
        num_partitions: into how many parts the work is cut, for engines that do not find that out by themselves.
    """

    config: PreprocessConfig
    sources: tuple[Source, ...]
    taxonomy: Taxonomy | None
    category_names: LabelMap | None
    vocab_content: bytes
    vocab_size: int
    staging_dir: str
    progress_dir: str | None = None
    num_partitions: int = 0

    def make_tokenizer(self) -> Tokenizer:
        """Return the job's tokenizer; building its tables takes a third of a second."""
        vocab = parse_vocab(self.vocab_content, self.config.vocab_path)
        return Tokenizer(vocab, max_len=self.config.max_len, cased=bool(self.config.cased))


class Reference(NamedTuple):
    """What the shuffle carries of one document.

    Attributes:
        digest: of its normalized text and the seed, 32 bytes; decides shard and order.
        key: unique in the corpus.
        category, second: its labels, by canonical name.
        locator: where its text is.
    """

    digest: bytes
    key: str
    category: str
    second: str
    locator: Locator


class ReferenceBatch(NamedTuple):
    """The outcome of one chunk.

    Attributes:
        by_split: split → references.
        rejections: documents of the chunk that cannot be used.
    """

    by_split: dict[str, list[Reference]]
    rejections: list[Rejection]

    def __reduce__(self) -> tuple[Any, ...]:
        # An engine pickles a batch again and again; plain tuples take a quarter of the time of named ones.
        flat = {split: [(*r[:-1], *r.locator) for r in references] for split, references in self.by_split.items()}
        return _unflatten, (flat, self.rejections)

    @property
    def num_documents(self) -> int:
        """Documents in the chunk, used or not."""
        return sum(map(len, self.by_split.values())) + len(self.rejections)


def _unflatten(flat: dict[str, list[tuple[Any, ...]]], rejections: list[Rejection]) -> ReferenceBatch:
    by_split = {
        split: [
            Reference(digest, key, category, second, Locator(*place))
            for digest, key, category, second, *place in references
        ]
        for split, references in flat.items()
    }
    return ReferenceBatch(by_split, rejections)


class ReferenceReader:
    """Reads chunks of documents into references."""

    def __init__(self, job: Job):
        self._job = job
        self._categories: dict[str, str] = {}

    def read(self, chunk: Chunk) -> ReferenceBatch:
        """Read every document of a chunk once, and keep where it goes."""
        source = self._job.sources[chunk.source]
        batch = ReferenceBatch({}, [])
        for item in source.read(chunk):
            if isinstance(item, Rejection):
                batch.rejections.append(item)
                continue
            try:
                split, reference = self._refer(item, source)
            except DocumentRejectedError as error:
                batch.rejections.append(Rejection(item.key, error.reason, error.detail))
                continue
            batch.by_split.setdefault(split, []).append(reference)
        return batch

    def _refer(self, document: RawDocument, source: Source) -> tuple[str, Reference]:
        config = self._job.config
        category = self._category(document.category)
        text = decode_text(document.content, document.locator.encoding)
        placement = place(text, config.seed)
        second = self._second(category, document.second, placement)
        split = source.split or placement.split(config.split_weights)
        return split, Reference(placement.digest, document.key, category, second, document.locator)

    def _category(self, raw: str) -> str:
        """Return a category's canonical name; where names are given, a class index stands for its name."""
        name = self._categories.get(raw)
        if name is None:
            name = normalize_label(raw)
            if not name:
                raise DocumentRejectedError("no_category", "its category is empty")
            if self._job.category_names is not None:
                name = _look_up(name, self._job.category_names)
            self._categories[raw] = name
        return name

    def _second(self, category: str, raw: str, placement: Placement) -> str:
        config = self._job.config
        if config.second_label == "random":
            return str(placement.choice(config.num_random_labels))
        if config.second_label == "taxonomy" and self._job.taxonomy is not None:
            return self._job.taxonomy.parent(category)
        name = normalize_label(raw)
        if not name:
            raise DocumentRejectedError("no_second_label", "its second label is empty")
        return name


def _look_up(name: str, category_names: LabelMap) -> str:
    if name in category_names.names:
        return name
    # No class index has more digits, and Python refuses to read thousands of them.
    if name.isascii() and name.isdigit() and len(name) < 10 and int(name) < len(category_names):
        return category_names.names[int(name)]
    raise DocumentRejectedError(
        "unknown_category",
        f"expected one of the {len(category_names)} given names, or an index below that, got {name[:80]!r}",
    )


@dataclasses.dataclass
class Survey:
    """What the first pass found, to be merged over all chunks in any order.

    Attributes:
        num_documents: split → usable documents.
        labels: head → names in use.
        num_rejected: documents that cannot be used.
        rejections: the first few of them by key, for messages.
    """

    num_documents: Counter[str] = dataclasses.field(default_factory=Counter)
    labels: Mapping[str, set[str]] = dataclasses.field(
        default_factory=lambda: {CATEGORY_HEAD: set(), SECOND_HEAD: set()}
    )
    num_rejected: int = 0
    rejections: list[Rejection] = dataclasses.field(default_factory=list)

    def add(self, batch: ReferenceBatch) -> None:
        """Count one batch."""
        for split, references in batch.by_split.items():
            self.num_documents[split] += len(references)
            self.labels[CATEGORY_HEAD].update(reference.category for reference in references)
            self.labels[SECOND_HEAD].update(reference.second for reference in references)
        self.num_rejected += len(batch.rejections)
        self.rejections = sorted([*self.rejections, *batch.rejections])[:_EXAMPLES_IN_MESSAGES]

    def merge(self, other: "Survey") -> None:
        """Add another survey's counts to this one."""
        self.num_documents.update(other.num_documents)
        for head, names in other.labels.items():
            self.labels[head].update(names)
        self.num_rejected += other.num_rejected
        self.rejections = sorted([*self.rejections, *other.rejections])[:_EXAMPLES_IN_MESSAGES]


@dataclasses.dataclass(frozen=True, kw_only=True)
class DatasetPlan:
    """What holds for every shard.

    Attributes:
        labels: head → label map.
        num_shards: split → shards, in the order in which splits are listed.
        num_documents: read in the first pass, used or not; as many must arrive at the end.
    """

    labels: Mapping[str, LabelMap]
    num_shards: Mapping[str, int]
    num_documents: int


def plan_dataset(survey: Survey, job: Job) -> DatasetPlan:
    """Fix the label ids and the number of shards.

    Raises:
        TooManyRejectedError: more documents were rejected than the options allow.
        InputFormatError: there is no usable document.
    """
    config = job.config
    num_usable = survey.num_documents.total()
    check_rejected(survey.num_rejected, num_usable + survey.num_rejected, survey.rejections, config)
    if not num_usable:
        raise InputFormatError(f"no usable document in {', '.join(source.path for source in job.sources)}")
    if config.second_label == "random":
        second = LabelMap(tuple(map(str, range(config.num_random_labels))))
    else:
        second = LabelMap.from_names(survey.labels[SECOND_HEAD])
    return DatasetPlan(
        labels={
            CATEGORY_HEAD: job.category_names or LabelMap.from_names(survey.labels[CATEGORY_HEAD]),
            SECOND_HEAD: second,
        },
        num_shards={
            split: config.num_shards or auto_num_shards(survey.num_documents[split], config.max_len)
            for split in config.split_names
        },
        num_documents=num_usable + survey.num_rejected,
    )


def check_rejected(num_rejected: int, num_read: int, examples: list[Rejection], config: PreprocessConfig) -> None:
    """Refuse to go on if too many documents were rejected.

    Raises:
        TooManyRejectedError: with the first few of them.
    """
    if num_rejected > config.max_rejected_fraction * num_read:
        shown = "; ".join(f"{key} ({reason}: {detail})" for key, reason, detail in examples[:_EXAMPLES_IN_MESSAGES])
        raise TooManyRejectedError(
            f"{num_rejected:,} of {num_read:,} documents rejected ({num_rejected / num_read:.1%}), at most "
            f"{config.max_rejected_fraction:.1%} allowed: {shown}; mend them, or raise --max_rejected_fraction"
        )
