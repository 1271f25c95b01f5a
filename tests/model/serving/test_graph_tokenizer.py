"""The tokenizer in the graph equals `pipeline.tokenization.Tokenizer`, which other tests compare with keras-bert's."""

import itertools
import random
import sys
import unicodedata
from collections.abc import Sequence
from typing import Any

import keras_bert
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from model.serving.graph_tokenizer import GraphTokenizer
from model.serving.tokenizer_tables import CASE_IGNORABLE, CASED, COMBINING_CLASS, build_tables
from pipeline.corpus.documents import normalize_text
from pipeline.tokenization.tokenizer import Tokenizer
from pipeline.tokenization.vocabulary import load_vocab
from tests.pipeline.tokenization.test_tokenizer import HARD, SMALL_VOCAB
from tests.support.hard_texts import HARD_TEXTS
from tests.support.real_data import TEXTS, real_data

MAX_LEN = 24
ALL_CHARACTERS = [chr(point) for point in range(sys.maxunicode + 1) if not 0xD800 <= point < 0xE000]
# Beside single characters: words, and what stands where two rules meet.
PIECES = [
    *["中国", "bert", "Tokenizer", "2008", "abcdeabcde", "abcd", "the", "  ", "\r\n", "\n\n", "。。", "。", "\ufeff"],
    *["ΑΣ", "Σ", "ςΣσ", "αβγΣ", "Σ\u00ad", "\u00adΣ", "'Σ'", "ΣΑ", "Σ\u0345α", "\u1fb3Σ", "ʰΣ", "\u2122Σ"],
    *["\u302f\u302e", "\u302e\u0301\u302f", "\u302f\u034f\u302e", "\u302f\u0f73\u302e", "\u1b44\u302e\U00016ff0"],
    *["\U0001d160", "\U0001d16e\U0001d165", "\U0001d15e\u302e\U0001d16d", "한국", "\u1112\u1161\u11ab", "a\u0301b"],
]

characters = st.one_of(
    st.characters(exclude_categories=["Cs"]), st.sampled_from(HARD), st.sampled_from(PIECES), st.text(max_size=3)
)
any_text = st.lists(characters, max_size=40).map("".join)


class Pair:
    """The tokenizer in a graph, and the one it must equal."""

    def __init__(self, vocab: Any, max_len: Any, *, cased: Any = False) -> None:
        self.tokenizer = Tokenizer(vocab, max_len=max_len, cased=cased)
        self.graph_fn = tf.function(
            GraphTokenizer(vocab, max_len=max_len, cased=cased), input_signature=[tf.TensorSpec([None], tf.string)]
        )

    def __call__(self, texts: Sequence[str]) -> Any:
        """The graph's rows without padding, whose form is checked."""
        indices, segments = (values.numpy() for values in self.graph_fn(tf.constant(texts, tf.string)))
        assert indices.dtype == segments.dtype == np.int32
        assert segments.shape == indices.shape
        assert not segments.any()
        rows = [row[: np.count_nonzero(row)].tolist() for row in indices]
        assert [not row[len(ids) :].any() for row, ids in zip(indices, rows, strict=True)] == [True] * len(rows)
        assert indices.shape[1] == max(map(len, rows), default=2)
        return rows

    def check(self, texts: Sequence[str]) -> None:
        batch = self.tokenizer.encode_arrays([normalize_text(text) for text in texts])
        expected = [batch.ids[start:stop].tolist() for start, stop in itertools.pairwise(batch.row_splits)]
        differing = [
            (ascii(text), got, want)
            for text, got, want in zip(texts, self(texts), expected, strict=True)
            if got != want
        ]
        assert not differing, differing[:3]


@pytest.mark.parametrize("max_len", [3, MAX_LEN, 512])
def test_hard_texts(max_len: Any) -> None:
    # A small max_len leaves little of the texts, so each of their parts is compared too.
    texts = list(dict.fromkeys(part for text in HARD_TEXTS for part in (text, *text.split(" "))))
    Pair({token: token_id for token_id, token in enumerate(SMALL_VOCAB)}, max_len).check(texts)


def random_texts(count: int, *, seed: int, longest: Any = 30) -> Any:
    """Texts over all of Unicode, with what is hard in every one of them."""
    generator = random.Random(seed)

    def piece() -> Any:
        kind = generator.random()
        if kind < 0.4:
            return generator.choice(HARD)
        return generator.choice(PIECES) if kind < 0.6 else generator.choice(ALL_CHARACTERS)

    return ["".join(piece() for _ in range(generator.randrange(longest))) for _ in range(count)]


@pytest.fixture(scope="module")
def vocab() -> Any:
    return {token: number for number, token in enumerate(SMALL_VOCAB)}


@pytest.fixture(scope="module")
def pair(vocab: Any) -> Any:
    return Pair(vocab, MAX_LEN)


def test_worked_example(vocab: Any, pair: Any) -> None:
    (ids,) = pair(["\ufeff 你好\n\n中国\tBERTER。。體，é \r\n"])
    assert pair.tokenizer.tokens(ids) == [
        *["[CLS]", "你", "好", "。", "中", "国", "bert", "##er", "。", "[UNK]", "，", "e", "[SEP]"]
    ]
    assert ids == keras_bert.Tokenizer(vocab).encode("你好。中国BERTER。體，é")[0]


def test_texts_of_which_nothing_is_left(pair: Any) -> None:
    empty = [pair.tokenizer.cls_id, pair.tokenizer.sep_id]
    assert pair(["", " \n\r\t\u3000", "\ufeff", "\u200b\x00", "\ufffd", "\u0301"]) == [empty] * 6
    assert pair([""]) == [empty]


def test_no_texts(pair: Any) -> None:
    indices, segments = pair.graph_fn(tf.constant([], tf.string))
    assert indices.shape == segments.shape == (0, 2)


def test_neighbours_in_a_batch_are_strangers(pair: Any) -> None:
    texts = [
        "Α",
        "Σ",
        "Α",
        "a",
        "b",
        "\u0301",
        "\u302f",
        "\u302e",
        " 。",
        "。",
        "\r",
        "\n",
        "a\r",
        "\nb",
        "\ufeff",
        "\ufeff",
    ]
    pair.check(texts)
    pair.check(texts[::-1])


@pytest.mark.parametrize("max_len", [3, 4, 5, 9])
def test_cut_as_in_the_records(vocab: Any, max_len: int) -> None:
    texts = [" ".join(["abcd"] * count) + tail for count in range(8) for tail in ("", "中", " ", "abc", "\u0301")]
    Pair(vocab, max_len).check([*texts, *random_texts(300, seed=max_len)])


@given(texts=st.lists(any_text, max_size=8))
@settings(max_examples=150, deadline=None)
def test_any_texts(pair: Any, texts: Sequence[str]) -> None:
    pair.check(texts)


@pytest.mark.slow
@given(texts=st.lists(any_text, min_size=10, max_size=10))
@settings(max_examples=2000, deadline=None, suppress_health_check=[HealthCheck.data_too_large, HealthCheck.too_slow])
def test_twenty_thousand_texts(pair: Any, texts: Sequence[str]) -> None:
    pair.check(texts)


def test_random_texts(pair: Any) -> None:
    for seed in range(3):
        pair.check(random_texts(3000, seed=seed))


def test_texts_that_keep_their_case(vocab: Any) -> None:
    pair = Pair(vocab, MAX_LEN, cased=True)
    pair.check(random_texts(3000, seed=7))
    text = "AB Bab é É e\u0301 Σ"
    assert pair([text]) == [keras_bert.Tokenizer(vocab, cased=True).encode(text)[0]]


@pytest.mark.slow
def test_many_random_texts(pair: Any) -> None:
    for seed in range(100, 130):
        pair.check(random_texts(2000, seed=seed, longest=60))


CONTEXTS = ["a{}b", "{}", "Α{}Σ", "Σ{}Α", "\u302f{}\u302e", "。{}。"]


@pytest.mark.parametrize("context", CONTEXTS)
def test_every_character_before_the_ideographs(pair: Any, context: Any) -> None:
    pair.check([context.format(character) for character in ALL_CHARACTERS[:0x3400]])


def check_in_context(pair: Any, context: Any, characters: Any) -> None:
    for start in range(0, len(characters), 1 << 17):
        part = [context.format(character) for character in characters[start : start + (1 << 17)]]
        # The rows have room for the tokens of four; spaces keep them apart.
        pair.check([" ".join(part[first : first + 4]) for first in range(0, len(part), 4)])


def test_every_character(pair: Any) -> None:
    check_in_context(pair, CONTEXTS[0], ALL_CHARACTERS[0x3400:])


@pytest.mark.slow
@pytest.mark.parametrize("context", CONTEXTS[1:])
def test_every_assigned_character_in_context(pair: Any, context: Any) -> None:
    assigned = [character for character in ALL_CHARACTERS if unicodedata.category(character) not in ("Cn", "Co")]
    check_in_context(pair, context, assigned)


def test_normalization(pair: Any) -> None:
    """Every combination of the characters that normalization looks at, up to five in a row."""
    alphabet = ["a", "。", "\n", "\r", "\t", "\u3000", " ", "\ufeff"]
    for length in range(5):
        pair.check(["".join(letters) for letters in itertools.product(alphabet, repeat=length)])
    spaces = [character for character in ALL_CHARACTERS if character.isspace()]
    pair.check([f"{a}中\n{b}\n中{a}" for a in spaces for b in spaces])


def test_marks_in_every_order(pair: Any) -> None:
    marks = ["\u0301", "\u0323", "\u302e", "\u302f", "\U00016ff0", "\U0001d165", "\u034f", "\u0903", "a"]
    pair.check(["".join(order) for order in itertools.permutations(marks, 4)])


def test_bytes_that_are_not_utf_8(pair: Any) -> None:
    generator = random.Random(0)
    leads = [
        b"a",
        b"\xe4",
        b"\xb8",
        b"\xad",
        b"\xf0",
        b"\x9f",
        b"\xed\xa0\x80",
        b"\xc0\xaf",
        b"\xf4\x90",
        b"\xff",
        b"\n",
    ]
    texts = [b"".join(generator.choices(leads, k=generator.randrange(8))) for _ in range(3000)]
    pair.check([text.decode("utf-8", "replace") for text in texts])
    assert pair(texts) == pair([text.decode("utf-8", "replace") for text in texts])


def test_long_words_and_runs_do_not_take_long(pair: Any) -> None:
    pair.check(["abcde" * 20_000, "x" * 100_000, "\u302f\u302e" * 20_000, "Σ\u00ad" * 20_000, "。\n " * 20_000])


def test_greedy_pieces_far_into_a_word(vocab: Any) -> None:
    """No part of a long word is lost or doubled where jumps over pieces are combined."""
    generator = random.Random(1)
    words = ["".join(generator.choices("abcdeσ2008", k=length)) for length in (*range(1, 40), 300, 301)]
    Pair(vocab, 400).check(words)


def test_a_vocabulary_without_words() -> None:
    Pair({token: number for number, token in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "中"])}, 9).check(
        ["中国", "ab 中", "", "Σ"]
    )


def test_uses_nothing_but_core_operations(pair: Any) -> None:
    graph = pair.graph_fn.get_concrete_function().graph.as_graph_def(add_shapes=False)
    nodes = [*graph.node, *(node for function in graph.library.function for node in function.node_def)]
    kinds = {node.op for node in nodes}
    assert "UnicodeDecode" in kinds
    assert not {kind for kind in kinds if "Py" in kind or "Hash" in kind or kind.startswith("Stateful")}
    assert all(kind in dir(tf.raw_ops) or kind in {"Const", "Placeholder"} for kind in kinds), kinds


def test_context_bits_are_those_of_unicode() -> None:
    """Probed from what `str.lower` does; here by category and by examples."""
    table = build_tables({"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3}, cased=False).context

    def bits(character: Any) -> Any:
        point = ord(character)
        return table.entries[table.page_starts[point >> table.page_bits] + point % (1 << table.page_bits)]

    for character in ALL_CHARACTERS:
        category = unicodedata.category(character)
        # U+0345, an uppercase letter's iota, is both and counts as ignorable.
        if category in ("Lu", "Ll", "Lt"):
            assert bits(character) & CASED, ascii(character)
        if category in ("Mn", "Me", "Cf", "Lm", "Sk"):
            assert bits(character) & CASE_IGNORABLE, ascii(character)
    assert [bits(character) & CASED > 0 for character in "aAⓐª1中。 "] == [True, True, True, True, *[False] * 4]
    assert [bits(character) & CASE_IGNORABLE > 0 for character in "'’.:·1中, "] == [*[True] * 5, *[False] * 4]
    assert [bits(character) & COMBINING_CLASS for character in "\u302e\u302f\u0301\u0903a"] == [224, 224, 0, 0, 0]


# From here on with the real vocabulary and real texts.


@pytest.fixture(scope="module")
def chinese() -> Any:
    return load_vocab(real_data("bert_base_chinese", "vocab.txt"))


def real_texts(*parts: Any) -> Any:
    """All texts of a file or, for the original layout, of a directory; whole lines and columns of tables."""
    path = real_data(*parts)
    if path.is_dir():
        return [file.read_text("utf-8") for file in sorted(path.glob("*/*.txt"))]
    lines = path.read_text("utf-8").split("\n")
    return list(dict.fromkeys(itertools.chain(lines, *(line.split("\t") for line in lines))))


def test_real_articles(chinese: Any) -> None:
    texts = real_texts("fulltext", "THUCNews")
    for max_len in (512, 32):
        Pair(chinese, max_len).check(texts[:256])


@pytest.mark.slow
@pytest.mark.parametrize("parts", TEXTS, ids="/".join)
def test_real_texts(chinese: Any, parts: Any) -> None:
    """Against keras-bert itself."""
    pair, reference = Pair(chinese, 512), keras_bert.Tokenizer(chinese)
    texts = real_texts(*parts)
    for start in range(0, len(texts), 1024):
        part = texts[start : start + 1024]
        for text, ids in zip(part, pair(part), strict=True):
            expected = reference.encode(normalize_text(text))[0]
            assert ids == (expected if len(expected) <= 512 else [*expected[:511], expected[-1]]), text[:80]


@pytest.mark.slow
def test_random_texts_with_the_real_vocabulary(chinese: Any) -> None:
    pair, reference = Pair(chinese, 64), keras_bert.Tokenizer(chinese)
    for seed in range(12):
        texts = random_texts(2000, seed=seed)
        for text, ids in zip(texts, pair(texts), strict=True):
            expected = reference.encode(normalize_text(text))[0]
            assert ids == (expected if len(expected) <= 64 else [*expected[:63], expected[-1]]), ascii(text)
