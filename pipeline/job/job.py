"""The description of one job, which all its steps share on every engine."""

import dataclasses

from pipeline.corpus.inputs import Source
from pipeline.dataset.labels import LabelMap, Taxonomy
from pipeline.dataset.shards import STANDARD_SPLITS
from pipeline.job.config import PreprocessConfig
from pipeline.tokenization.tokenizer import Tokenizer
from pipeline.tokenization.vocabulary import parse_vocab


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
    """One job: its options and what they refer to; workers get it with their steps.

    Attributes:
        config: the options, with the absolute path of the output.
        sources: where documents come from, with absolute paths.
        taxonomy: category → parent, with `--second_label taxonomy`.
        category_names: the categories in id order, where they are given.
        vocab_content: bytes of the vocabulary, so that workers need no file.
        vocab_size: number of its tokens.
        cased: whether letter case and accents are kept.
    """

    config: PreprocessConfig
    sources: tuple[Source, ...]
    taxonomy: Taxonomy | None
    category_names: LabelMap | None
    vocab_content: bytes
    vocab_size: int
    cased: bool

    @property
    def split_names(self) -> tuple[str, ...]:
        """The splits this job writes: train, dev and test first, then others as they were named."""
        pinned = [source.split for source in self.sources if source.split]
        is_divided = len(pinned) < len(self.sources)
        hashed = [name for name, share in self.config.split_weights if share > 0] if is_divided else []
        names = dict.fromkeys([*hashed, *pinned])
        return (*(name for name in STANDARD_SPLITS if name in names), *(n for n in names if n not in STANDARD_SPLITS))

    def make_tokenizer(self) -> Tokenizer:
        """Return the job's tokenizer; building its tables takes a third of a second."""
        vocab = parse_vocab(self.vocab_content, self.config.vocab_path)
        return Tokenizer(vocab, max_len=self.config.max_len, cased=self.cased)
