"""Compose the documents of the made-up corpus from the words and forms of `words.ini`.

A document is a headline, a newline, and paragraphs indented by two U+3000 (here shown as ▢), as in THUCNews:

    宁川队拿下关键进球 主教练状态火热
    ▢▢据黛湾晚报消息，前锋在下半场错失点球，不过大家关注变化。
    ▢▢主队和客队都争夺积分榜，……

Lengths are THUCNews's as well, and so are its oddities in small doses: no-break spaces, HTML entities, full-width
digits, replacement characters, leftovers of the page. A document mixes sentences on its topic with sentences on one
neighbouring topic and small talk; most documents are clearly about their topic, some hardly, some lean towards the
neighbour. No classifier reaches 100 %.
"""

import dataclasses
import functools
import hashlib
import itertools
import math
import random
import re
import statistics
import string
from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeVar

from pipeline.sample_corpus.topics import read_grammar, read_topics

# Lengths in characters are log-normal. THUCNews's articles have median 745 and mean 939; a log-normal with these two
# has mu = ln(median) and sigma = sqrt(2 ln(mean / median)) = 0.68, which also gives the long tail: one in twenty above
# 2,280 (THUCNews: 2,495), one in ten thousand above 9,000. The limits are the shortest and longest articles seen.
MEDIAN_LENGTH = 745
MEAN_LENGTH = 939
SHORTEST, LONGEST = 30, 9_200
LOG_LENGTH = statistics.NormalDist(math.log(MEDIAN_LENGTH), math.sqrt(2 * math.log(MEAN_LENGTH / MEDIAN_LENGTH)))

# Sentences are composed once per seed and topic and then drawn at random: composing each afresh takes far longer.
NUM_CLAUSES = 2_000
NUM_SENTENCES = 6_000
NUM_OTHER_PHRASES = 500
SENTENCE_ENDS = ("。",) * 19 + ("！", "？", "……")
# A document that lacks fewer characters than the first goes on with single clauses, than the second, ends.
LONG_SENTENCE = 36
SHORT_SENTENCE = 12

# After a sentence; THUCNews's paragraphs have about five.
PARAGRAPH_RATE = 0.2
HEADLINE_JOINTS = (" ", " ", " ", "：", "，")
HEADLINE_ENDS = ("",) * 15 + ("(图)",)
INDENT = "\u3000\u3000"
# The page furniture that crawled pages leave at the end, not indented and the same in every category.
FURNITURE = (
    "点这里写下您的看法",
    "说说我的想法\xa0\xa0看看大家的想法",
    "把这页寄给好友&nbsp;&nbsp;存下这页",
    "字号 大 中 小  返回栏目首页",
    "更多同类文章请看专题",
)


class Clarity(NamedTuple):
    """How much of a document is about its topic."""

    share: float  # of the documents
    topic: float  # fraction of sentences on the document's own topic
    neighbour: float  # fraction on one neighbouring topic; the rest is small talk


# Tuned so that character TF-IDF (1-2-grams) with a linear SVM reaches about 95 % from a few thousand documents.
CLARITIES = (
    Clarity(share=0.90, topic=0.45, neighbour=0.12),
    Clarity(share=0.05, topic=0.08, neighbour=0.08),
    Clarity(share=0.05, topic=0.22, neighbour=0.28),
)
# As in news, headline and lead have more sentences on the topic than the rest of the text, by this factor.
LEAD_FOCUS = 2.0
NUM_LEAD_SENTENCES = 2

# The fraction of documents with each oddity. THUCNews: no-break spaces in 16 %, double spaces in 1 %, entities and
# replacement characters in less; the rare ones are raised so that a small corpus shows them.
DATELINE_RATE = 0.25
SIGNATURE_RATE = 0.12
FURNITURE_RATE = 0.12
NO_BREAK_SPACE_RATE = 0.12
DOUBLE_SPACE_RATE = 0.02
ENTITY_RATE = 0.02
REPLACEMENT_CHARACTER_RATE = 0.01
FULL_WIDTH_RATE = 0.03
FULL_WIDTH = {code: code + 0xFEE0 for code in map(ord, "%" + string.digits + string.ascii_letters)}

Choice = TypeVar("Choice")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Phrases:
    """Phrases of one topic, composed from the grammar, to be drawn from."""

    sentences: Sequence[str]
    short_sentences: Sequence[str]
    headline_heads: Sequence[str]
    headline_tails: Sequence[str]
    datelines: Sequence[str]
    signatures: Sequence[str]


def sample_document(seed: int, index: int, category: str) -> str:
    """Compose one document.

    Args:
        seed: of the corpus.
        index: the document's number in the corpus, which is also its file's name.
        category: one of THUCNews's 14.

    Returns:
        A headline, a newline, and paragraphs indented by two U+3000; sometimes page furniture at the end.
    """
    draw = _uniform_source(f"{seed}:document:{index}")
    topic = _phrases(seed, category)
    neighbour = _phrases(seed, _pick(read_topics()[category].neighbours, draw))
    small_talk = _phrases(seed, None)
    clarity = _pick_clarity(draw)

    def pick_phrases(focus: float) -> Phrases:
        chance = draw() / focus
        return topic if chance < clarity.topic else neighbour if chance < topic_or_neighbour else small_talk

    topic_or_neighbour = clarity.topic + clarity.neighbour
    head = _pick(pick_phrases(LEAD_FOCUS).headline_heads, draw)
    tail = _pick(pick_phrases(LEAD_FOCUS).headline_tails, draw)
    pieces = [head, _pick(HEADLINE_JOINTS, draw), tail, _pick(HEADLINE_ENDS, draw), "\n", INDENT]
    if draw() < DATELINE_RATE:
        pieces.append(_pick(small_talk.datelines, draw))

    missing = _pick_length(draw) - sum(map(len, pieces))
    for number in itertools.count():
        phrases = pick_phrases(LEAD_FOCUS if number < NUM_LEAD_SENTENCES else 1.0)
        sentence = _pick(phrases.short_sentences if missing < LONG_SENTENCE else phrases.sentences, draw)
        pieces.append(sentence)
        missing -= len(sentence)
        if missing < SHORT_SENTENCE:
            break
        if draw() < PARAGRAPH_RATE:
            pieces.append("\n" + INDENT)
            missing -= 1 + len(INDENT)

    if draw() < SIGNATURE_RATE:
        pieces += ["\n", INDENT, _pick(small_talk.signatures, draw)]
    if draw() < FURNITURE_RATE:
        pieces += ["\n", _pick(FURNITURE, draw)]
    return _add_oddities("".join(pieces), draw)


def _uniform_source(name: str) -> Callable[[], float]:
    """Return a stream of uniform numbers in [0, 1) that depends on the name alone.

    Everything is drawn with `random()`, the one method whose sequence Python keeps the same in all versions.
    """
    return random.Random(int.from_bytes(hashlib.blake2b(name.encode(), digest_size=16).digest(), "big")).random


def _pick(choices: Sequence[Choice], draw: Callable[[], float]) -> Choice:
    return choices[int(draw() * len(choices))]


def _pick_clarity(draw: Callable[[], float]) -> Clarity:
    chance = draw()
    for clarity in CLARITIES:
        chance -= clarity.share
        if chance < 0:
            return clarity
    return CLARITIES[0]


def _pick_length(draw: Callable[[], float]) -> int:
    # inv_cdf has no value at 0.
    length = math.exp(LOG_LENGTH.inv_cdf(max(draw(), 1e-12)))
    return min(max(int(length), SHORTEST), LONGEST)


def _add_oddities(text: str, draw: Callable[[], float]) -> str:
    if draw() < FULL_WIDTH_RATE:
        text = text.translate(FULL_WIDTH)
    for rate, oddity in (
        (NO_BREAK_SPACE_RATE, "\xa0\xa0"),
        (DOUBLE_SPACE_RATE, "  "),
        (ENTITY_RATE, "&nbsp;"),
        (REPLACEMENT_CHARACTER_RATE, "\ufffd"),
    ):
        if draw() < rate:
            position = text.find("，", int(draw() * len(text))) + 1
            if position:
                text = text[:position] + oddity + text[position:]
    return text


@functools.lru_cache(maxsize=60)  # of four corpora
def _phrases(seed: int, topic: str | None) -> Phrases:
    """Compose the phrases of one topic, or (None) those of small talk."""
    draw = _uniform_source(f"{seed}:phrases:{topic or ''}")
    grammar = read_grammar(topic)

    def compose(symbol: str, count: int) -> tuple[str, ...]:
        return tuple(_expand(_pick(grammar[symbol], draw), grammar, draw) for _ in range(count))

    clauses = compose("clause", NUM_CLAUSES)

    def join_clauses(count: int) -> str:
        return "，".join([_pick(clauses, draw) for _ in range(count)]) + _pick(SENTENCE_ENDS, draw)

    return Phrases(
        sentences=tuple(join_clauses(_pick((1, 2, 3), draw)) for _ in range(NUM_SENTENCES)),
        short_sentences=tuple(join_clauses(1) for _ in range(NUM_CLAUSES)),
        headline_heads=compose("headline_head", NUM_OTHER_PHRASES),
        headline_tails=compose("headline_tail", NUM_OTHER_PHRASES),
        datelines=compose("dateline", NUM_OTHER_PHRASES),
        signatures=compose("signature", NUM_OTHER_PHRASES),
    )


def _expand(phrase: str, grammar: dict[str, tuple[str, ...]], draw: Callable[[], float]) -> str:
    return re.sub(r"\{(\w+)\}", lambda slot: _expand(_pick(grammar[slot[1]], draw), grammar, draw), phrase)
