"""The description of one job, which all its steps share on every engine."""

import dataclasses

from pipeline.config import PreprocessConfig
from pipeline.corpus.sources import Source
from pipeline.dataset.labels import LabelMap, Taxonomy
from pipeline.tokenization.tokenizer import Tokenizer
from pipeline.tokenization.vocabulary import parse_vocab


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
    """One job: its options and what they refer to; workers get it with their steps.

    Attributes:
        config: the options, with the absolute path of the output, and `cased` resolved.
        sources: where documents come from, with absolute paths.
        taxonomy: category → parent, with `--second_label taxonomy`.
        category_names: the categories in id order, where they are given.
        vocab_content: bytes of the vocabulary, so that workers need no file.
        vocab_size: number of its tokens.
    """

    config: PreprocessConfig
    sources: tuple[Source, ...]
    taxonomy: Taxonomy | None
    category_names: LabelMap | None
    vocab_content: bytes
    vocab_size: int

    def make_tokenizer(self) -> Tokenizer:
        """Return the job's tokenizer; building its tables takes a third of a second."""
        vocab = parse_vocab(self.vocab_content, self.config.vocab_path)
        return Tokenizer(vocab, max_len=self.config.max_len, cased=bool(self.config.cased))
