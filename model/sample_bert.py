"""Makes a small BERT directory with random weights, so that the whole chain runs without a download.

    python -m model.sample_bert --corpus CORPUS --output BERT_DIR [--layers 2 --hidden 128 --heads 2 …]

The files and variable names are Google's (see `model.bert.checkpoint`), pooler and pre-training heads included. The
vocabulary is that of the corpus: `[PAD] [UNK] [CLS] [SEP] [MASK]`, then printable ASCII, then the corpus's other
characters, the most frequent first; characters that can occur inside a word are listed a second time as continuations
(`##a`). Same arguments, same bytes.
"""

import dataclasses
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from model.bert.config import BertConfig
from pipeline.command_line import CommandParser, run_command
from pipeline.errors import InputFormatError, MissingInputError, OptionError
from pipeline.tokenization.characters import SINGLE, WORD, class_table, fold_blocks
from pipeline.tokenization.vocabulary import CONTINUATION, SPECIAL_TOKENS, load_vocab

MASK_TOKEN = "[MASK]"


@dataclasses.dataclass(frozen=True, kw_only=True)
class SampleBertConfig:
    """What the command line says.

    Attributes:
        output: directory to create.
        corpus: file or directory of UTF-8 text to take the vocabulary from, or None.
        vocab: vocabulary to use as it is, or None; exactly one of the two is given.
        vocab_size: upper limit of the vocabulary's size; None for every character of the corpus.
        layers: number of layers.
        hidden: width of the encoder.
        heads: number of attention heads.
        intermediate: width between the two feed-forward projections.
        max_position: longest text in tokens.
        seed: of the weights.

    Raises:
        OptionError: an option is out of range, or does not go with another.
    """

    output: Path
    corpus: Path | None = None
    vocab: Path | None = None
    vocab_size: int | None = None
    layers: int = 2
    hidden: int = 128
    heads: int = 2
    intermediate: int = 512
    max_position: int = 512
    seed: int = 0

    def __post_init__(self) -> None:
        if (self.corpus is None) == (self.vocab is None):
            raise OptionError("give one of --corpus (make a vocabulary) and --vocab (use that one)")
        if self.vocab is not None and self.vocab_size is not None:
            raise OptionError("--vocab_size limits the vocabulary made from --corpus; with --vocab it has no use")
        smallest = len(_fixed_entries()) + 1
        if self.vocab_size is not None and self.vocab_size < smallest:
            raise OptionError(
                f"--vocab_size must be at least {smallest} (special tokens, ASCII, a character), got {self.vocab_size}"
            )
        if not 0 <= self.seed < 2**63:
            raise OptionError(f"--seed must be at least 0 and below 2**63, got {self.seed}")
        self.bert_config(vocab_size=smallest)

    def bert_config(self, *, vocab_size: int) -> BertConfig:
        """Return the configuration of a BERT with that vocabulary.

        Raises:
            OptionError: there can be no such BERT.
        """
        return BertConfig(
            vocab_size=vocab_size,
            num_hidden_layers=self.layers,
            hidden_size=self.hidden,
            num_attention_heads=self.heads,
            intermediate_size=self.intermediate,
            max_position_embeddings=self.max_position,
        )


def make_sample_bert(config: SampleBertConfig) -> BertConfig:
    """Write the BERT directory.

    Returns:
        The configuration written into it.

    Raises:
        MissingInputError: the corpus or the vocabulary is not there.
        InputFormatError: the corpus has no character for a vocabulary, or the vocabulary is none.
        OutputExistsError: the output is there already.
        OutputWriteError: it could not be written.
    """
    # TensorFlow takes seconds to import, which --help and a wrong option need not wait for.
    from model.bert.checkpoint import encoder_variables, pretraining_variables, random_variable, write_bert_dir

    if config.vocab is not None:
        vocab_size, vocab_bytes = len(load_vocab(config.vocab)), config.vocab.read_bytes()
    elif config.corpus is not None:
        entries = build_vocab(count_characters(config.corpus), config.vocab_size)
        vocab_size, vocab_bytes = len(entries), "".join(f"{entry}\n" for entry in entries).encode("utf-8")
    bert_config = config.bert_config(vocab_size=vocab_size)
    shapes = pretraining_variables(bert_config)
    for variables in encoder_variables(bert_config).values():
        shapes.extend(variables)
    write_bert_dir(
        config.output,
        config_bytes=bert_config.to_json().encode("utf-8"),
        vocab_bytes=vocab_bytes,
        variables={
            name: random_variable(name, shape, stddev=bert_config.initializer_range, seed=config.seed)
            for name, shape in shapes
        },
    )
    return bert_config


def count_characters(corpus: Path) -> Counter[str]:
    """Count the characters of a file, or of all files below a directory, as the tokenizer meets them.

    Characters are folded (no accents, lower case); ASCII and what never becomes a token do not count.

    Raises:
        MissingInputError: there is no such file or directory.
        InputFormatError: no character is left.
    """
    if not corpus.exists():
        raise MissingInputError(f"{corpus}: no such file or directory; expected a corpus of UTF-8 text")
    paths = [corpus] if corpus.is_file() else [path for path in corpus.rglob("*") if path.is_file()]
    raw: Counter[str] = Counter()
    for path in paths:
        with path.open(encoding="utf-8", errors="replace") as lines:
            for line in lines:
                raw.update(line)
    classes = class_table()
    counts: Counter[str] = Counter()
    for character, count in raw.items():
        for folded in "".join(fold_blocks(character)):
            if not folded.isascii() and classes[ord(folded)] in (SINGLE, WORD):
                counts[folded] += count
    if not counts:
        raise InputFormatError(
            f"{corpus}: {len(paths)} files without a character beyond ASCII; expected a corpus of UTF-8 text"
        )
    return counts


def build_vocab(counts: Counter[str], vocab_size: int | None) -> list[str]:
    """Return the entries of a vocabulary: fixed ones first, then characters by frequency and code point.

    Args:
        counts: character -> how often it occurs.
        vocab_size: upper limit of the number of entries; None for no limit.
    """
    entries = _fixed_entries()
    for character in sorted(counts, key=lambda character: (-counts[character], character)):
        entries.extend(_entries_of(character))
    return entries[:vocab_size]


def _fixed_entries() -> list[str]:
    """Return what every vocabulary begins with: special tokens and lower-case printable ASCII."""
    ascii_characters = [chr(code) for code in range(33, 127) if not chr(code).isupper()]
    ascii_entries = [entry for character in ascii_characters for entry in _entries_of(character)]
    return [*SPECIAL_TOKENS, MASK_TOKEN, *ascii_entries]


def _entries_of(character: str) -> list[str]:
    """Return a character's entries; one that the tokenizer leaves inside words needs one for the inside, too."""
    if class_table()[ord(character)] == WORD:
        return [character, CONTINUATION + character]
    return [character]


def main(argv: Sequence[str]) -> int:
    """Make a BERT directory; returns the exit status."""
    parser = CommandParser(
        prog="python -m model.sample_bert", description="Make a small BERT directory with random weights."
    )
    parser.add_argument("--output", type=Path, required=True, help="directory to create")
    parser.add_argument("--corpus", type=Path, help="file or directory of UTF-8 text to take the vocabulary from")
    parser.add_argument("--vocab", type=Path, help="use this vocabulary instead of making one")
    for name, meaning in (
        ("vocab_size", "upper limit of the vocabulary's size; None keeps every character of the corpus"),
        ("layers", "number of layers"),
        ("hidden", "width of the encoder"),
        ("heads", "number of attention heads"),
        ("intermediate", "width between the two feed-forward projections"),
        ("max_position", "longest text in tokens"),
        ("seed", "seed of the weights"),
    ):
        parser.add_argument(f"--{name}", type=int, default=getattr(SampleBertConfig, name), help=meaning)
    arguments = vars(parser.parse_args(argv))
    config = SampleBertConfig(**{field.name: arguments[field.name] for field in dataclasses.fields(SampleBertConfig)})
    made = make_sample_bert(config)
    sys.stdout.write(
        f"{config.output}: {made.num_hidden_layers} layers of width {made.hidden_size}, "
        f"{made.vocab_size} vocabulary entries, random weights of seed {config.seed}\n"
    )
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
