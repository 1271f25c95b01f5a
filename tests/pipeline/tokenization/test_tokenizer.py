"""The tokenizer against keras-bert's own, which is asked for every expected id."""

import itertools
import json
import pickle
import random
import re
import time
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import keras_bert
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import EmptyDocumentError, InputFormatError, MissingInputError, OptionError
from pipeline.tokenization import characters, wordpiece
from pipeline.tokenization import tokenizer as tokenization
from pipeline.tokenization.tokenizer import Tokenizer, load_vocab
from pipeline.tokenization.vocabulary import VocabFile, read_vocab_file, vocab_content, vocab_warnings
from tests.support.real_data import TEXTS, real_data

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
# Whole words, first pieces, continuations that overlap, single characters of every class, both sigmas, jamo, and
# entries no text can reach: U+2028, "##", "[UNK]" and words with punctuation.
SMALL_VOCAB = [
    *SPECIAL,
    *"，。！？《》：；“”-'.,!?#[]()",
    *"中国新闻体育你好的是不豈更",
    *"abcdeopstσςä０１ａｂ〇한글",
    *"0123456789",
    *[f"##{c}" for c in "abcdeopstσςä０１ａｂ〇0123456789"],
    *["the", "be", "##rt", "bert", "##er", "##ert", "ber", "token", "##ize", "##izer", "to", "##ken", "2008", "##08"],
    *["20", "##20", "abc", "##bcd", "##cde", "αβγς", "αβγσ", "##γσ", "aσ", "aς", "é", "e\u0301", "ab\u20dd"],
    *["A", "B", "AB", "##B", "É", "i", "##i", "\u2028", "##\u2028", "##", "a-b", "a b"],
    *["\u1112", "\u1161", "##\u1161", "##\u11ab", "\u1112\u1161\u11ab"],
    *["\u302e", "##\u302e", "##\u302f", "##\U00016ff0", "##\u0903", "\ue000", "##\ue000", "##\u20dd"],
]
# Characters that some rule treats unlike its neighbours.
HARD = [
    *"aAbzZ01 \n\t\r,.'-_:#[]$~中国豈更〇０Ａａ，。　“·…",
    *["Σ", "σ", "ς", "α", "Α", "ΐ", "İ", "ı", "I", "ß", "ẞ", "ǅ", "K", "Å", "é", "É", "ö", "ﬁ", "ª", "ʰ"],
    *["한", "가", "\u1112", "\u1161", "\u11ab", "\uac01"],
    *["\u0301", "\u0307", "\u0345", "\u0316", "\u0344", "\u20dd", "\u0903", "\u302e", "\u302f", "\u034f", "\ufe0f"],
    *["\u0b4b", "\u09cb", "\u0dda", "\u1715", "\u1b44", "\U00016ff0"],
    *["\U0001d15e", "\U0001d165", "\U0001d16d", "\U0001d1bf"],
    *["\x00", "\x01", "\x0b", "\x0c", "\x1c", "\x1f", "\x7f", "\x85", "\xa0", "\xad", "\ufeff", "\ufffd", "\ufffe"],
    *["\u200b", "\u200d", "\u2028", "\u2029", "\u202f", "\u3000", "\u1680", "\u180e", "\u2060", "\ue000", "\uf0d8"],
    *["\u0378", "\U000e0001", "\U000f0000", "\U0010ffff", "\U0001f600", "\U00020000", "\U0002f800", "\uf900", "\ufa0e"],
    *["\U00010400", "\U0001e900", "\u01c5", "\u1fb3", "\u1ffc", "\u2f00", "\u3400", "\u4dc0", "\u9fff", "\ua000"],
]
MAX_LENS = [3, 4, 5, 9, 17, 64]

mixed_text = st.lists(
    st.one_of(
        st.sampled_from(HARD),
        st.sampled_from(["中国", "bert", "tokenizer", "2008", "αβγΣ", " ", "，", "abcdeabcde", "a\u0301b"]),
        st.characters(exclude_categories=["Cs"]),
    ),
    max_size=60,
).map("".join)


def as_vocab(tokens: Sequence[str]) -> dict[str, int]:
    return {token: number for number, token in enumerate(tokens)}


def keras_bert_ids(vocab: dict[str, int], text: str, *, cased: bool = False) -> list[int]:
    """All ids of a text, uncut, with [CLS] and [SEP]."""
    return keras_bert.Tokenizer(vocab, cased=cased).encode(text)[0]


def cut(ids: list[int], max_len: int) -> list[int]:
    return ids if len(ids) <= max_len else [*ids[: max_len - 1], ids[-1]]


def rows_of(batch: tokenization.TokenBatch) -> list[list[int]]:
    return [batch.ids[start:stop].tolist() for start, stop in itertools.pairwise(batch.row_splits)]


def assert_same(tokenizer: Tokenizer, texts: Sequence[str], reference: Sequence[list[int]]) -> None:
    """Check all three ways of encoding `texts` against keras-bert's uncut ids."""
    expected = [cut(ids, tokenizer.max_len) for ids in reference]
    batch = tokenizer.encode_arrays(texts)
    differing = [text for text, got, want in zip(texts, rows_of(batch), expected, strict=True) if got != want]
    assert not differing, differing[:3]
    assert batch.truncated.tolist() == [len(ids) > tokenizer.max_len for ids in reference]
    full = [index for index, ids in enumerate(expected) if len(ids) > 2]
    encoded = tokenizer.encode_batch([texts[index] for index in full])
    assert encoded == [(expected[index], [0] * len(expected[index])) for index in full]
    for index in full:
        assert tokenizer.encode(texts[index]) == (expected[index], [0] * len(expected[index])), texts[index]


@pytest.fixture(scope="module")
def small() -> dict[str, int]:
    return as_vocab(SMALL_VOCAB)


@pytest.fixture(scope="module")
def tokenizers(small: dict[str, int]) -> dict[tuple[int, bool], Tokenizer]:
    return {(n, cased): Tokenizer(small, max_len=n, cased=cased) for n in MAX_LENS for cased in (False, True)}


def test_planes_that_are_not_asked_hold_nothing() -> None:
    assert {unicodedata.category(chr(point)) for point in characters._EMPTY_PLANES} == {"Cn"}


def test_worked_example(tmp_path: Path) -> None:
    path = tmp_path / "vocab.txt"
    path.write_text("\n".join([*SPECIAL, "be", "##rt", "读", "，"]), "utf-8")
    tokenizer = Tokenizer.from_vocab(path, max_len=8)
    indices, segments = tokenizer.encode("BÉRT，读\u3000报")
    assert tokenizer.tokens(indices) == ["[CLS]", "be", "##rt", "，", "读", "[UNK]", "[SEP]"]
    assert segments == [0] * 7
    assert (tokenizer.vocab_size, tokenizer.max_len, tokenizer.cased) == (8, 8, False)
    assert (tokenizer.unk_id, tokenizer.cls_id, tokenizer.sep_id) == (1, 2, 3)


@pytest.mark.parametrize("cased", [False, True])
@pytest.mark.parametrize(
    "text",
    [
        "bert berty xbert tokenizer TOKENIZER tokenizers",
        "abcde abcdabcd ab12 20082008",  # greedy: the longest piece, not the best cover
        "xayb",  # one [UNK] per unmatched character, continuations after it
        "[UNK] [CLS] ##a ## a-b a b",  # special tokens have no power in a text
        "ΑΒΓΣ ΑΒΓΣ. ΑΒΓΣ' ΣΑ Σ .Σ aΣ aΣ́ aΣ\u00ada aΣ\u00ad 中Σ中",  # final sigma looks across what is dropped
        "İstanbul I\u0307 ı",
        "한글 하다 \u1112\u1161\u11ab",
        "a\u2028b\u2029c\x85d\x1ce\x0bf\x00g\ufffdh",
        "a\u302f\u302eb \u1d15e \u302f\u0316\u302e \U0001d165\U0001d16d",
        "豈更\uf900\ufa0e\U0002f800",
        "０１ａｂＡＢ １２",
        "a\ue000\ue000b \U0010ffff \u0378",
        "ab\u20dd a\u0903",
    ],
)
def test_rules(small: dict[str, int], tokenizers: dict[tuple[int, bool], Tokenizer], text: str, cased: bool) -> None:
    reference = keras_bert_ids(small, text, cased=cased)
    for max_len in MAX_LENS:
        assert_same(
            tokenizers[max_len, cased],
            [text, "", text + " x"],
            [reference, keras_bert_ids(small, "", cased=cased), keras_bert_ids(small, text + " x", cased=cased)],
        )


# Only these planes hold anything that folds, so only they can differ between cased and not.
@pytest.mark.parametrize(("plane", "cased"), [*((n, False) for n in range(17)), (0, True), (1, True), (2, True)])
def test_every_code_point(plane: int, cased: bool) -> None:
    """First, between CJK characters and inside a word, with a vocabulary that tells every result from every other."""
    points = [chr(point) for point in range(plane << 16, (plane + 1) << 16) if not 0xD800 <= point < 0xE000]
    folded = sorted({c for point in points for c in (point, *unicodedata.normalize("NFD", point).lower())})
    tokens = dict.fromkeys([*SPECIAL, "中", "a", "b", "##b", *folded, *[f"##{c}" for c in folded]])
    vocab = as_vocab(list(tokens))
    texts = [f"{point}中{point}中a{point}b" for point in points]
    batch = Tokenizer(vocab, max_len=64, cased=cased).encode_arrays(texts)
    assert not batch.truncated.any()
    got = np.delete(batch.ids, np.concatenate([batch.row_splits[:-1], batch.row_splits[1:] - 1]))
    reference = keras_bert.Tokenizer(vocab, cased=cased)
    expected = reference.encode("\n".join(texts))[0][1:-1]
    assert got.tolist() == expected


@pytest.mark.parametrize("cased", [False, True])
def test_every_pair_of_hard_characters(small: dict[str, int], cased: bool) -> None:
    pairs = ["".join(pair) for pair in itertools.product(HARD, repeat=2)]
    texts = [*pairs, *[f"a{pair}b" for pair in pairs], *[f"中{pair}\u0301" for pair in pairs]]
    reference = keras_bert.Tokenizer(small, cased=cased)
    expected = [reference.encode(text)[0] for text in texts]
    for max_len in (4, 64):
        batch = Tokenizer(small, max_len=max_len, cased=cased).encode_arrays(texts)
        assert rows_of(batch) == [cut(ids, max_len) for ids in expected]
        assert batch.truncated.tolist() == [len(ids) > max_len for ids in expected]


def test_triples_of_the_hardest(small: dict[str, int]) -> None:
    hardest = [
        *[*"aA中 .Σσ-", "İ", "한", "\u0301", "\u0316", "\u0345", "\u034f", "\u302e", "\u302f", "\u1715", "\u0b4b"],
        *["\U0001d15e", "\U0001d165", "\xad", "\u2028", "\ufffd", "ʰ", "\u20dd", "\u1fb3"],
    ]
    texts = ["".join(triple) for triple in itertools.product(hardest, repeat=3)]
    reference = keras_bert.Tokenizer(small)
    expected = [reference.encode(text)[0] for text in texts]
    tokenizer = Tokenizer(small, max_len=64)
    assert rows_of(tokenizer.encode_arrays(texts)) == expected
    singles = [tokenizer.encode(text)[0] for text, ids in zip(texts, expected, strict=True) if len(ids) > 2]
    assert singles == [ids for ids in expected if len(ids) > 2]


@settings(max_examples=400, deadline=None)
@given(texts=st.lists(mixed_text, max_size=6), max_len=st.sampled_from(MAX_LENS), cased=st.booleans())
def test_any_text(
    tokenizers: dict[tuple[int, bool], Tokenizer], small: dict[str, int], texts: list[str], max_len: int, cased: bool
) -> None:
    assert_same(tokenizers[max_len, cased], texts, [keras_bert_ids(small, text, cased=cased) for text in texts])


def test_windows_and_passes(small: dict[str, int], monkeypatch: pytest.MonkeyPatch) -> None:
    """Long documents of all kinds, read in several windows and passes: how they are read must not show."""
    choose = random.Random(7)
    alphabets = [
        "中国新闻，。",
        "abcde",
        "ab cde ",
        "  \u3000\n中",
        "\u200b\u0301中a",
        "a\u0301Σ ",
        "αβγΣ.",
        "한글 ",
        "".join(HARD),
    ]
    texts = []
    for length in (0, 1, 2, 3, 7, 20, 60, 100, 200, 500, 1000):
        for alphabet in alphabets:
            texts.append("".join(choose.choices(alphabet, k=length)))
            head, tail = choose.choices(alphabets, k=2)
            texts.append("".join(choose.choices(head, k=length)) + "".join(choose.choices(tail, k=length)))
    choose.shuffle(texts)
    reference = [keras_bert_ids(small, text) for text in texts]
    for max_len in (3, 5, 20, 100):
        for pass_chars in (1, 100, 1 << 17):
            monkeypatch.setattr(tokenization, "_PASS_CHARS", pass_chars)
            assert_same(Tokenizer(small, max_len=max_len), texts, reference)


@pytest.mark.parametrize("block_chars", [1, 2, 5])
def test_folding_in_blocks_is_folding(block_chars: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(characters, "_FOLD_BLOCK_CHARS", block_chars)
    choose = random.Random(block_chars)
    num_blocks = 0
    for _ in range(3000):
        text = "".join(choose.choices([*HARD, *"ΣΣΣaB3中 .\u0301\u0316\u302e\u302f"], k=choose.randrange(30)))
        marked = unicodedata.normalize("NFD", text)
        blocks = list(characters.fold_blocks(text))
        num_blocks += len(blocks)
        assert "".join(blocks) == "".join(c for c in marked if unicodedata.category(c) != "Mn").lower(), text
    assert num_blocks > 4500


def test_batch_of_nothing(small: dict[str, int]) -> None:
    tokenizer = Tokenizer(small)
    batch = tokenizer.encode_arrays([])
    assert (batch.ids.tolist(), batch.row_splits.tolist(), batch.truncated.tolist()) == ([], [0], [])
    assert tokenizer.encode_batch([]) == []


def test_batch_arrays(small: dict[str, int]) -> None:
    batch = Tokenizer(small, max_len=4).encode_arrays(("中国", "", "中国新", "中国 \ufffd\n"))
    assert (batch.ids.dtype, batch.row_splits.dtype, batch.truncated.dtype) == (np.int32, np.int64, bool)
    assert batch.lengths.tolist() == [4, 2, 4, 4]
    assert batch.truncated.tolist() == [False, False, True, False]  # dropped characters and spaces are not tokens


@pytest.mark.parametrize("text", ["", " \n\u3000", "\x00\ufffd\u200b", "\u0301", "\u2028"])
def test_document_without_a_token(small: dict[str, int], text: str) -> None:
    tokenizer = Tokenizer(small)
    with pytest.raises(EmptyDocumentError, match="text has no token"):
        tokenizer.encode(text)
    with pytest.raises(EmptyDocumentError, match="text 1 of the batch"):
        tokenizer.encode_batch(["中", text, text])
    assert tokenizer.encode_arrays(["中", text]).lengths.tolist() == [3, 2]


@pytest.mark.parametrize("where", [0, 1, 60, 5000, (1 << 20) + 1])
def test_lone_surrogate_is_refused_wherever_it_is(small: dict[str, int], where: int) -> None:
    tokenizer = Tokenizer(small, max_len=16)
    text = "中" * where + "\ud83d" + "中"
    with pytest.raises(InputFormatError, match=rf"text: character {where} is the lone surrogate U\+D83D"):
        tokenizer.encode(text)
    for encode in (tokenizer.encode_arrays, tokenizer.encode_batch):
        with pytest.raises(InputFormatError, match=rf"text 2 of the batch: character {where} "):
            encode(["中", "", text])


def test_one_text_is_no_batch(small: dict[str, int]) -> None:
    with pytest.raises(TypeError, match="sequence of texts"):
        Tokenizer(small).encode_arrays("中国")


def cpu_seconds(function: Callable[[str], object], text: str) -> float:
    """Return what a call costs this thread; what else the machine does counts for little."""
    started = time.thread_time()
    function(text)
    return time.thread_time() - started


@pytest.mark.parametrize(
    ("make_text", "equal_to"),
    [
        (lambda size: "a" * size, "a" * 300),
        (lambda size: "x" * size, "x" * 300),
        (lambda size: "abcde" * (size // 5) + " 中", "abcde" * 60),
        (lambda size: "Σ" + "A" * size, "Σ" + "A" * 300),
        (lambda size: " " * size + "中", "中"),
        (lambda size: "中" + "\u200b" * size, "中"),
        (lambda size: "a" + "\u0301" * size + "b", "ab"),
        (lambda size: "aΣ" + "\u0301\u0316" * (size // 4) + "b", "aΣb"),
        (lambda size: "Σ" + "\u302e\U00016ff0" * (size // 4), "Σ" + "\U00016ff0" * 300),
        (lambda size: "한글" * (size // 4), "한글" * 60),
    ],
    ids=[
        "a known letter",
        "an unknown letter",
        "pieces, then more",
        "a sigma in front",
        "spaces",
        "dropped characters",
        "dropped marks",
        "marks that NFD would sort",
        "marks that NFD would sort and keep",
        "Hangul",
    ],
)
def test_long_runs(small: dict[str, int], make_text: Callable[[int], str], equal_to: str) -> None:
    """Eight times the length takes eight times as long at most, where the square would take 64 times."""
    tokenizer = Tokenizer(small, max_len=64)
    # keras-bert is asked about fewer of them: its own work grows with the square.
    reference = keras_bert_ids(small, equal_to)
    short, text = make_text(30_000), make_text(240_000)
    for encode in (tokenizer.encode, lambda content: tokenizer.encode_arrays(["中", content])):
        # What takes no time at all may take it any number of times.
        at_most = 32 * min(cpu_seconds(encode, short) for _ in range(3)) + 0.1
        assert any(cpu_seconds(encode, text) < at_most for _ in range(2))
    assert tokenizer.encode(text)[0] == cut(reference, 64)
    batch = tokenizer.encode_arrays(["中", text])
    assert rows_of(batch)[1] == cut(reference, 64)
    assert batch.truncated.tolist() == [False, len(reference) > 64]


def test_words_longer_than_any_entry_but_one() -> None:
    """A whole word of the vocabulary at the edge of a window, and the same word with one more letter."""
    vocab = as_vocab([*SPECIAL, "ab" * 40, "a", "##a", "##b", "中"])
    texts = [f"{'中 ' * k}{'ab' * 40}{tail}" for k in range(9) for tail in ("", "a", " ", "中", "\u0301", "\u0301a")]
    for max_len in range(3, 14):
        assert_same(Tokenizer(vocab, max_len=max_len), texts, [keras_bert_ids(vocab, text) for text in texts])


def test_memory_for_words_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wordpiece, "_MAX_ENTRIES", 3)
    cache = wordpiece.BoundedCache(str.upper)
    for number in range(100):
        word = f"{'x' * number}{number}"
        assert cache[word] == word.upper()
        assert len(cache) <= 3
        assert all(len(key) <= 64 for key in cache)


def test_pickle(small: dict[str, int]) -> None:
    tokenizer = Tokenizer(small, max_len=9, cased=True)
    tokenizer.encode("中")
    data = pickle.dumps(tokenizer)
    assert len(data) < 20_000  # the vocabulary, not the tables
    copy = pickle.loads(data)
    assert (copy.max_len, copy.cased) == (9, True)
    assert copy.encode("AB中ab") == tokenizer.encode("AB中ab")


@pytest.mark.parametrize("max_len", [2, 0, -1])
def test_no_room_for_a_token(small: dict[str, int], max_len: int) -> None:
    with pytest.raises(OptionError, match=f"max_len is {max_len}, expected at least 3"):
        Tokenizer(small, max_len=max_len)


@pytest.mark.parametrize(
    ("vocab", "message"),
    [
        ({"[PAD]": 0, "[UNK]": 1, "[CLS]": 2}, r"without \[SEP\]"),
        ({"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 2}, "each once"),
        ({"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 4}, "0 to 3"),
    ],
)
def test_unusable_vocabulary(vocab: dict[str, int], message: str) -> None:
    with pytest.raises(InputFormatError, match=message):
        Tokenizer(vocab)


def test_load_vocab_cuts_at_line_feeds_only(tmp_path: Path) -> None:
    path = tmp_path / "vocab.txt"
    tokens = [*SPECIAL, "\u2028", "##\u2028", "\x85", "a ", "\x0b", "中"]
    for data in ("\n".join(tokens), "\n".join(tokens) + "\n", "\r\n".join(tokens), "\r\n".join(tokens) + "\r\n"):
        path.write_bytes(data.encode())
        assert load_vocab(path) == as_vocab(tokens)
        assert load_vocab(str(path)) == as_vocab(tokens)


@pytest.mark.parametrize(
    ("data", "ids"),
    [
        (b"\xef\xbb\xbf[PAD]\n[UNK]\n[CLS]\n[SEP]\na", {"a": 4}),  # byte-order mark
        (b"[PAD]\r\n[UNK]\r\n[CLS]\r\n[SEP]\r\na\r\n", {"a": 4}),
        (b"[PAD]\n[UNK]\n\n[CLS]\n[SEP]\na\n", {"[CLS]": 3, "a": 5}),
        (b"[PAD]\n[UNK]\r\n\r\n[CLS]\n[SEP]\n", {"[SEP]": 4}),
        (b"[PAD]\n[UNK]\n[CLS]\n[SEP]\na\n\n\n", {"a": 4}),
        (b"[PAD]\n[UNK]\n[CLS]\n[SEP]\na\nb\na\nc\n", {"a": 6, "b": 5, "c": 7}),  # the last line counts
    ],
)
def test_vocabularies_of_real_releases_have_line_numbers_as_ids(
    tmp_path: Path, data: bytes, ids: dict[str, int]
) -> None:
    path = tmp_path / "vocab.txt"
    path.write_bytes(data)
    vocab = load_vocab(path)
    assert {token: vocab[token] for token in ids} == ids
    assert list(vocab.values()) == list(range(len(vocab)))
    tokenizer = Tokenizer(vocab)
    assert tokenizer.encode("a")[0] == [vocab["[CLS]"], vocab.get("a", vocab["[UNK]"]), vocab["[SEP]"]]
    # Equal entries are equal bytes, which read back as the same vocabulary.
    path.write_bytes(vocab_content(vocab))
    assert load_vocab(path) == vocab


def test_a_vocabulary_can_be_a_tokenizer_json(tmp_path: Path) -> None:
    tokens = [*SPECIAL, "中", "国"]
    ids = {token: number for number, token in reversed(list(enumerate(tokens)))}
    path = tmp_path / "tokenizer.json"
    content = {
        "model": {"type": "WordPiece", "vocab": ids},
        "normalizer": {"type": "BertNormalizer", "lowercase": False},
    }
    path.write_text(json.dumps(content))
    assert load_vocab(path) == as_vocab(tokens)
    assert read_vocab_file(path) == VocabFile(content="".join(f"{t}\n" for t in tokens).encode(), cased=True)
    (tmp_path / "tokenizer_config.json").write_text('{"do_lower_case": true}')
    assert read_vocab_file(path).cased is False


@pytest.mark.parametrize(
    "content",
    [
        "{",
        "[]",
        '{"model": {"type": "BPE"}}',
        '{"model": {"vocab": [["a", 0.5]]}}',
        '{"model": {"vocab": {"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 4}}}',
        '{"model": {"vocab": {"a": 0}}}',
    ],
)
def test_other_tokenizer_jsons_are_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(InputFormatError, match=r"expected the tokenizer\.json of a BERT"):
        load_vocab(tmp_path / "tokenizer.json")


def test_what_letter_case_makes_of_a_vocabulary() -> None:
    cased, lower = as_vocab([*SPECIAL, "<S>", "NBA", "中"]), as_vocab([*SPECIAL, "<S>", "nba", "中"])
    for vocab, keeps_case, is_case_given, expected in (
        (cased, False, False, "1 entries have capitals (NBA, …)"),
        (cased, False, True, None),
        (cased, True, False, None),
        (lower, False, False, None),
        (lower, True, False, "no entry has a capital"),
    ):
        warnings = vocab_warnings(vocab, cased=keeps_case, is_case_given=is_case_given)
        assert [warning.startswith(expected or "?") for warning in warnings] == ([True] if expected else [])
    assert vocab_warnings({**lower, "[line 8: unused]": 7}, cased=False, is_case_given=True)[0].startswith(
        "1 lines are"
    )


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "none of its 0 lines"),
        (b"\n", r"none of its 0 lines is \[PAD\] or \[UNK\] or \[CLS\] or \[SEP\]"),
        (b'{"a": 1,\n\n"b": 2}\n', "none of its 3 lines .* expected the vocab.txt of a BERT directory"),
        (b"[PAD]\n[UNK]\n[SEP]\na\n", r"none of its 4 lines is \[CLS\]"),
        (b"a\n[PAD]\n[UNK]\n[CLS]\n[SEP]\n", r"line 2: expected \[PAD\] on line 1"),
        (b"[PAD]\n[UNK]\n[CLS]\n\xd6\xd0\n[SEP]\n", "line 4: byte 0xD6 is not UTF-8"),
    ],
)
def test_load_vocab_refuses_what_is_none(tmp_path: Path, data: bytes, message: str) -> None:
    path = tmp_path / "vocab.txt"
    path.write_bytes(data)
    with pytest.raises(InputFormatError, match=message) as caught:
        load_vocab(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_load_vocab_without_a_file(tmp_path: Path) -> None:
    for path in (tmp_path / "none.txt", tmp_path, tmp_path / "none" / "vocab.txt"):
        with pytest.raises(MissingInputError, match=re.escape(str(path))):
            load_vocab(path)


# From here on with the real vocabulary and real texts.


@pytest.fixture(scope="module")
def chinese() -> dict[str, int]:
    return load_vocab(real_data("bert_base_chinese", "vocab.txt"))


def real_texts(*parts: str) -> Iterator[str]:
    """All texts of a file or, for the original layout, of a directory; columns of a table one by one."""
    path = real_data(*parts)
    if path.is_dir():
        yield from (file.read_text("utf-8") for file in sorted(path.glob("*/*.txt")))
    else:
        for line in path.read_text("utf-8").split("\n"):
            yield from line.split("\t")


def test_real_vocabularies(chinese: dict[str, int]) -> None:
    assert len(chinese) == 21128
    assert (chinese["[UNK]"], chinese["\u2028"], chinese["##\u2028"]) == (100, 343, 13502)
    tiny = load_vocab(real_data("tiny_checkpoint", "vocab.txt"))
    assert len(tiny) == 15
    assert Tokenizer(tiny).encode("All work, NO play")[0] == keras_bert_ids(tiny, "All work, NO play")


def test_docstring_example(chinese: dict[str, int]) -> None:
    indices, segments = Tokenizer(chinese).encode("BERT读新闻")
    assert f"({indices}, {segments})" in (tokenization.__doc__ or "")


@pytest.mark.parametrize("parts", TEXTS, ids="/".join)
def test_real_texts(chinese: dict[str, int], parts: tuple[str, ...]) -> None:
    texts = list(dict.fromkeys(real_texts(*parts)))
    reference = keras_bert.Tokenizer(chinese)
    expected = [reference.encode(text)[0] for text in texts]
    for max_len in (512, 10):
        assert_same(Tokenizer(chinese, max_len=max_len), texts, expected)


def test_real_articles_cased(chinese: dict[str, int]) -> None:
    texts = [*real_texts("fulltext", "THUCNews"), *itertools.islice(real_texts("thucnews_titles", "dev.txt"), 4000)]
    assert_same(Tokenizer(chinese, cased=True), texts, [keras_bert_ids(chinese, text, cased=True) for text in texts])
