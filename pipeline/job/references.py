"""The first pass: read chunks of documents into references, and plan the dataset from all references.

The shuffle carries a reference instead of a document: its placement, its key, its labels by name and the location of
its text. The plan holds what is known only after every document was read once: the labels in use, hence their ids, and
the number of documents of each split, hence its shards.
"""

import dataclasses
import itertools
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

from pipeline.corpus.chunks import Chunk
from pipeline.corpus.documents import DocumentRejectedError, Locator, Note, RawDocument, Rejection, decode_text
from pipeline.corpus.inputs import Source
from pipeline.dataset.labels import LabelMap, normalize_label
from pipeline.dataset.schema import CATEGORY_HEAD, SECOND_HEAD
from pipeline.dataset.shards import Placement, auto_num_shards, place
from pipeline.errors import InputFormatError, TooManyRejectedError, shorten
from pipeline.job.config import PreprocessConfig
from pipeline.job.job import Job

_EXAMPLES_IN_MESSAGES = 3
_HINTS = {
    "not_utf-8": "; is it GBK? say --encoding gb18030, or auto",
    "no_category": "; --glob '*/*' leaves out files beside the categories",
}
# From so many categories on, most of which occur once, it is texts that were taken for categories.
_MANY_CATEGORIES = 10


class Reference(NamedTuple):
    """One document as the shuffle carries it.

    Attributes:
        digest: hash of its normalized text and the seed, 32 bytes; decides shard and order.
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
    """The references of one chunk, or of those of its documents that one shard gets.

    Attributes:
        by_split: split → references.
        rejections: documents of the chunk that cannot be used.
        notes: what reading decided or left out, and how often.
    """

    by_split: dict[str, list[Reference]]
    rejections: list[Rejection]
    notes: Mapping[str, int] = MappingProxyType({})

    def __reduce__(self) -> tuple[Any, ...]:
        # An engine pickles each batch several times; plain tuples take a quarter of the time of named ones.
        flat = {split: [(*r[:-1], *r.locator) for r in references] for split, references in self.by_split.items()}
        return _unflatten, (flat, self.rejections, dict(self.notes))

    @property
    def num_documents(self) -> int:
        """Number of documents, used or not."""
        return sum(map(len, self.by_split.values())) + len(self.rejections)


def _unflatten(
    flat: dict[str, list[tuple[Any, ...]]], rejections: list[Rejection], notes: dict[str, int]
) -> ReferenceBatch:
    by_split = {
        split: [
            Reference(digest, key, category, second, Locator(*locator))
            for digest, key, category, second, *locator in references
        ]
        for split, references in flat.items()
    }
    return ReferenceBatch(by_split, rejections, notes)


class ReferenceReader:
    """Reads chunks of documents into references."""

    def __init__(self, job: Job):
        self._job = job
        self._categories: dict[str, str] = {}
        self._joined: dict[str, str] = {}
        self._notes: Counter[str] = Counter()

    def read(self, chunk: Chunk) -> ReferenceBatch:
        """Read every document of a chunk, and return where each goes."""
        source = self._job.sources[chunk.source]
        self._notes = Counter(dict(chunk.notes))
        batch = ReferenceBatch({}, [], self._notes)
        for item in source.read(chunk):
            if isinstance(item, Note):
                self._notes[item.what] += item.num_times
                continue
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
        """Return a category's canonical name; where names are given, look a class index up in them."""
        name = self._categories.get(raw)
        if name is None:
            name = self._normalize(raw)
            if not name:
                raise DocumentRejectedError("no_category", "its category is empty")
            if self._job.category_names is not None:
                name = _look_up(name, self._job.category_names)
            self._categories[raw] = name
        if raw in self._joined:
            self._notes[self._joined[raw]] += 1
        return name

    def _second(self, category: str, raw: str, placement: Placement) -> str:
        config = self._job.config
        if config.second_label == "random":
            return str(placement.choice(config.num_random_labels))
        if config.second_label == "taxonomy" and self._job.taxonomy is not None:
            return self._job.taxonomy.parent(category)
        name = self._normalize(raw)
        if not name:
            raise DocumentRejectedError("no_second_label", "its second label is empty")
        return name

    def _normalize(self, raw: str) -> str:
        name = normalize_label(raw)
        if any(character in name for character in "\t\r\n"):
            raise DocumentRejectedError("bad_label", f"holds a tab or a line end: {shorten(name)}")
        if name != unicodedata.normalize("NFC", raw).strip():
            self._joined[raw] = f"labels with invisible characters, read as {shorten(name)}"
        return name


def _look_up(name: str, category_names: LabelMap) -> str:
    if name in category_names.names:
        return name
    # No class index has more digits, and Python refuses to read thousands of them.
    index = name.removesuffix(".0")  # as pandas writes it in a column where one is missing
    if index.isascii() and index.isdigit() and len(index) < 10 and int(index) < len(category_names):
        return category_names.names[int(index)]
    raise DocumentRejectedError(
        "unknown_category",
        f"expected one of the {len(category_names)} given names, or an index below that, got {shorten(name)}",
    )


@dataclasses.dataclass
class Survey:
    """Counts of the first pass; surveys of chunks merge in any order.

    Attributes:
        num_documents: split → number of usable documents.
        labels: head → name in use → number of documents.
        num_rejected: number of documents that cannot be used.
        rejections: the first few of them by key, for messages.
        notes: what reading decided or left out, and how often.
    """

    num_documents: Counter[str] = dataclasses.field(default_factory=Counter)
    labels: Mapping[str, Counter[str]] = dataclasses.field(
        default_factory=lambda: {CATEGORY_HEAD: Counter(), SECOND_HEAD: Counter()}
    )
    num_rejected: int = 0
    rejections: list[Rejection] = dataclasses.field(default_factory=list)
    notes: Counter[str] = dataclasses.field(default_factory=Counter)

    def add(self, batch: ReferenceBatch) -> None:
        """Count one batch."""
        for split, references in batch.by_split.items():
            self.num_documents[split] += len(references)
            self.labels[CATEGORY_HEAD].update(reference.category for reference in references)
            self.labels[SECOND_HEAD].update(reference.second for reference in references)
        self.num_rejected += len(batch.rejections)
        self.rejections = sorted([*self.rejections, *batch.rejections])[:_EXAMPLES_IN_MESSAGES]
        self.notes.update(batch.notes)

    def merge(self, other: "Survey") -> None:
        """Add another survey's counts to this one."""
        self.num_documents.update(other.num_documents)
        for head, names in other.labels.items():
            self.labels[head].update(names)
        self.num_rejected += other.num_rejected
        self.rejections = sorted([*self.rejections, *other.rejections])[:_EXAMPLES_IN_MESSAGES]
        self.notes.update(other.notes)


@dataclasses.dataclass(frozen=True, kw_only=True)
class DatasetPlan:
    """What the dataset will be; the same for every shard.

    Attributes:
        labels: head → label map.
        num_shards: split → number of shards, in the order in which splits are listed.
        num_documents: number of documents that the first pass read, used or not; as many must arrive at the end.
        notes: what reading decided or left out, and how often.
    """

    labels: Mapping[str, LabelMap]
    num_shards: Mapping[str, int]
    num_documents: int
    notes: Mapping[str, int] = dataclasses.field(default_factory=dict)


def plan_dataset(survey: Survey, job: Job, *, is_sample: bool = False) -> DatasetPlan:
    """Fix the label ids and the number of shards.

    Args:
        survey: of all documents, or of a sample, which says little about how many documents each category has.
        job: what was said about the job.
        is_sample: which of them.

    Raises:
        TooManyRejectedError: more documents were rejected than the options allow.
        InputFormatError: there is no usable document.
    """
    config = job.config
    num_usable = survey.num_documents.total()
    num_read = num_usable + survey.num_rejected
    require_few_rejected(survey.rejections, num_rejected=survey.num_rejected, num_read=num_read, config=config)
    if not num_usable:
        raise InputFormatError(f"no usable document in {', '.join(source.path for source in job.sources)}")
    if job.category_names is None and not is_sample:
        check_categories(survey.labels[CATEGORY_HEAD])
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
            for split in job.split_names
        },
        num_documents=num_read,
        notes=dict(sorted(survey.notes.items())),
    )


def check_categories(counts: Counter[str]) -> None:
    """Refuse a corpus whose categories are no classes.

    Raises:
        InputFormatError: there is one alone, or most of many occur once, as texts in the wrong column do.
    """
    if len(counts) == 1:
        (name,) = counts
        raise InputFormatError(
            f"all {counts.total():,} documents have the category {shorten(name)}, but a classifier needs two or more; "
            "check --input (a directory above the categories?) and --columns, or give the names with --category_names"
        )
    num_single = sum(count == 1 for count in counts.values())
    if len(counts) >= _MANY_CATEGORIES and num_single > len(counts) / 2:
        examples = ", ".join(shorten(name) for name, _ in itertools.islice(sorted(counts.items()), 2))
        raise InputFormatError(
            f"{num_single:,} of {len(counts):,} categories occur once, such as {examples}: are text and category the "
            "other way round? check --columns, or give the names with --category_names"
        )


def require_few_rejected(
    rejections: Sequence[Rejection], *, num_rejected: int, num_read: int, config: PreprocessConfig
) -> None:
    """Check that no more documents were rejected than the options allow.

    Args:
        rejections: all rejected documents, or the first few, to be named in the message.
        num_rejected: number of rejected documents.
        num_read: number of documents read.
        config: the options.

    Raises:
        TooManyRejectedError: too many were rejected.
    """
    if num_rejected > config.max_rejected_fraction * num_read:
        examples = rejections[:_EXAMPLES_IN_MESSAGES]
        shown = "; ".join(f"{key} ({reason}: {detail})" for key, reason, detail in examples)
        reasons = {reason for _, reason, _ in examples}
        hint = "".join(text for reason, text in _HINTS.items() if reason in reasons)
        raise TooManyRejectedError(
            f"{num_rejected:,} of {num_read:,} documents rejected ({num_rejected / num_read:.1%}), at most "
            f"{config.max_rejected_fraction:.1%} allowed: {shown}{hint}; correct them, or raise --max_rejected_fraction"
        )
