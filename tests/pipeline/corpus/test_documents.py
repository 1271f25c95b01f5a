"""Normalization of texts, decoding of bytes, and keys."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.corpus.documents import DocumentRejectedError, decode_text, key_from_path, normalize_text

# Texts for the rule of the write-up, which knows neither carriage returns nor byte-order marks.
PLAIN = st.text(st.one_of(st.sampled_from("\n\t\u3000 。山水"), st.characters(exclude_categories=["Cs"])))


@pytest.mark.parametrize(
    ("text", "normalized"),
    [
        ("  标题\n\u3000\u3000一段。\n\u3000\u3000二段。\n", "标题。一段。二段。"),
        ("一\n\n\n二", "一。二"),
        ("一。。。二", "一。二"),
        ("一。\n。二", "一。二"),
        ("一\u3000。\n\t。二", "一。二"),  # runs are collapsed after tabs and U+3000 are gone
        ("一\t二\u3000三", "一二三"),
        ("\u3000\n\t ", ""),
        ("", ""),
        ("a  b", "a  b"),  # other white space inside stays for the tokenizer
        ("一\r\n二\r三\n四", "一。二。三。四"),  # all three line ends are one kind
        ("一\r\n\r\n二", "一。二"),
        ("\ufeff题\n文", "题。文"),
        ("题\ufeff文", "题\ufeff文"),  # only the first character can be a byte-order mark
        ("一\u2028二\x85三", "一\u2028二\x85三"),  # no line ends in THUCNews, and none in the write-up's rule
        ("。", "。"),
    ],
)
def test_normalization(text: str, normalized: str) -> None:
    assert normalize_text(text) == normalized


@given(PLAIN.filter(lambda text: "\r" not in text and not text.startswith("\ufeff")))
def test_normalization_is_the_write_ups(text: str) -> None:
    expected = re.sub("。+", "。", re.sub("[\t\u3000]", "", re.sub("\n", "。", text.strip())))
    assert normalize_text(text) == expected


@given(st.text())
def test_normalized_texts_hold_nothing_that_is_to_be_removed(text: str) -> None:
    normalized = normalize_text(text)
    assert not set(normalized) & set("\r\n\t\u3000")
    assert "。。" not in normalized


@pytest.mark.parametrize(
    ("content", "encoding", "reason", "detail"),
    [
        (b"\xe5\xb1", "utf-8", "not_utf-8", "byte 0xe5 at position 0: unexpected end of data"),
        ("体育".encode("gb18030"), "utf-8", "not_utf-8", "byte 0xcc at position 0"),
        (b"ok \xed\xa0\x80", "utf-8", "not_utf-8", "byte 0xed at position 3"),  # a surrogate is no text
        ("山水".encode(), "ascii", "not_ascii", "byte 0xe5"),
        (b"\x81\xff", "gb18030", "not_gb18030", "byte 0x81"),
        (b"", "utf-8", "empty", "nothing is left of 0 bytes"),
        ("\ufeff \n\t\u3000".encode(), "utf-8", "empty", "nothing is left of 9 bytes"),
    ],
)
def test_what_is_no_text_is_rejected(content: bytes, encoding: str, reason: str, detail: str) -> None:
    with pytest.raises(DocumentRejectedError) as caught:
        decode_text(content, encoding)
    assert caught.value.reason == reason
    assert detail in caught.value.detail


@given(st.binary(max_size=50), st.sampled_from(["utf-8", "gb18030", "big5", "latin-1"]))
def test_any_bytes_are_text_or_rejected(content: bytes, encoding: str) -> None:
    try:
        text = decode_text(content, encoding)
    except DocumentRejectedError as error:
        assert error.reason in (f"not_{encoding}", "empty")  # noqa: PT017
    else:
        assert text == normalize_text(content.decode(encoding))


def test_keys_are_text_whatever_the_path_is() -> None:
    assert key_from_path("体育/1.txt".encode()) == "体育/1.txt"
    assert key_from_path("体育/1.txt".encode("gb18030")) == "\\xcc\\xe5\\xd3\\xfd/1.txt"
    assert key_from_path(b"a\nb") == "a\nb"
