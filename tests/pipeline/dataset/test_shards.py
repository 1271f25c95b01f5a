"""Where documents go: pure, uniform, independent, and pinned by golden values."""

import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.dataset.shards import (
    BYTES_PER_TOKEN,
    MAX_SHARD_BYTES,
    SHARD_NAME,
    Placement,
    auto_num_shards,
    place,
    shard_name,
)
from pipeline.dataset.tfexample import RECORD_OVERHEAD_BYTES
from tests.support.tiny_dataset import TinyExample, serialize

SPLITS = (("train", 0.8), ("dev", 0.1), ("test", 0.1))
seeds = st.integers(0, 2**63 - 1)
texts = st.text(st.characters(exclude_categories=["Cs"]))


@pytest.mark.parametrize(
    ("text", "seed", "digest", "split", "shard", "choice"),
    [
        # Another value here means that every dataset ever written would come out differently.
        ("山水", 0, "98dfb8df5f0438e4c1a64b2f19a7331b4c02540f2a89348fd8f06f7d8511fd64", "train", 48, 0),
        ("山水", 1, "e9e37823007f29293f6beb89c6c23595da7b9bf8bb4c57cb411c463eb6925c71", "test", 15, 2),
        ("", 0, "7cfc53ce95be8bcb285787e4a18f27e5d563af9f36bd625872f6ec77b7e6ddd7", "train", 10, 2),
        ("a" * 10_000, 2**63 - 1, "1eba70caa380cd083141ec5337bc10d9d1ebc448af829c22f4c1605849d39cd5", "train", 12, 2),
    ],
)
def test_golden_placements(text: str, seed: int, digest: str, split: str, shard: int, choice: int) -> None:
    placement = place(text, seed)
    assert placement.digest.hex() == digest
    assert placement.split(SPLITS) == split
    assert placement.shard(64) == shard
    assert placement.choice(3) == choice
    assert placement.order.hex() == digest[-16:]


@given(texts, seeds, st.integers(1, 99_999), st.integers(2, 50))
def test_placement_is_a_pure_function_and_in_range(text: str, seed: int, num_shards: int, num_choices: int) -> None:
    placement, again = place(text, seed), place(text, seed)
    assert placement == again == Placement(placement.digest)
    assert len(placement.digest) == 32
    assert placement.split(SPLITS) == again.split(SPLITS)
    assert 0 <= placement.shard(num_shards) < num_shards
    assert 0 <= placement.choice(num_choices) < num_choices
    assert len(placement.order) == 8


@given(texts, texts, seeds)
def test_equal_texts_and_only_they_share_a_digest(one: str, other: str, seed: int) -> None:
    assert (place(one, seed) == place(other, seed)) == (one == other)


@pytest.mark.parametrize("digest", [b"\x00" * 32, b"\xff" * 32])
@pytest.mark.parametrize(
    "weights",
    [
        SPLITS,
        (("a", 0.1),) * 9 + (("last", 0.1),),  # ten tenths add up to a hair below 1
        (("only", 1.0),),
        (("never", 0.0), ("always", 1.0), ("nor_this", 0.0)),
    ],
)
def test_the_ends_of_the_range_fall_into_splits_with_a_share(
    digest: bytes, weights: tuple[tuple[str, float], ...]
) -> None:
    split = Placement(digest).split(weights)
    with_share = [name for name, share in weights if share]
    assert split == (with_share[0] if digest[0] == 0 else with_share[-1])
    assert Placement(digest).shard(7) == (0 if digest[0] == 0 else 6)
    assert Placement(digest).choice(3) == (0 if digest[0] == 0 else 2)


def chi_squared(counts: list[float], expected: list[float]) -> float:
    return math.fsum((count - mean) ** 2 / mean for count, mean in zip(counts, expected, strict=True))


def test_split_shard_and_choice_are_uniform_and_independent() -> None:
    """Chi-squared far below what any visible bias would give; deterministic, because the texts are fixed."""
    num_texts, num_shards, num_choices = 20_000, 8, 3
    placements = [place(f"文{index}", 5) for index in range(num_texts)]
    cells = dict.fromkeys(
        [(split, shard, choice) for split, _ in SPLITS for shard in range(num_shards) for choice in range(num_choices)],
        0,
    )
    for placement in placements:
        cells[placement.split(SPLITS), placement.shard(num_shards), placement.choice(num_choices)] += 1
    expected = [num_texts * dict(SPLITS)[split] / num_shards / num_choices for split, _, _ in cells]
    # 71 degrees of freedom: mean 71, standard deviation 12.
    assert chi_squared([float(count) for count in cells.values()], expected) < 71 + 4 * 12
    # The order inside a shard knows nothing of the shard: the first byte of the sort key is uniform in each.
    first = [placement.order[0] for placement in placements if placement.shard(num_shards) == 0]
    halves = [sum(value < 128 for value in first), sum(value >= 128 for value in first)]
    assert chi_squared([float(half) for half in halves], [len(first) / 2] * 2) < 16


def test_another_seed_is_an_independent_shuffle() -> None:
    moved = sum(place(f"文{index}", 0).shard(4) != place(f"文{index}", 1).shard(4) for index in range(4_000))
    assert 2_850 < moved < 3_150  # three in four, give or take 5 standard deviations


@pytest.mark.parametrize(
    ("num_examples", "num_shards"),
    [
        (0, 1),
        (1, 1),
        (999, 1),
        (1_000, 2),  # 500 a shard at least
        (3_999, 7),
        (4_000, 8),
        (80_000, 8),  # 10,000 a shard at most
        (80_001, 9),
        (668_859, 67),  # THUCNews's training split
        (836_074, 84),
    ],
)
def test_auto_num_shards(num_examples: int, num_shards: int) -> None:
    """Up to 1,677 tokens, 10,000 examples stay below 64 MiB whatever they are."""
    for max_len in (3, 512, 1_677):
        assert auto_num_shards(num_examples, max_len) == num_shards


@pytest.mark.parametrize(
    ("num_examples", "max_len", "num_shards"),
    [
        (10_000, 1_678, 8),  # 64.01 MiB, in no more shards than without a limit
        (80_000, 1_678, 9),
        (836_074, 2_048, 103),
        (836_074, 65_535, 3_266),
        (256, 65_535, 1),
        (257, 65_535, 2),
        (10**9, 65_535, 99_999),  # the most that a name can hold
    ],
)
def test_shards_of_long_examples_are_more(num_examples: int, max_len: int, num_shards: int) -> None:
    assert auto_num_shards(num_examples, max_len) == num_shards


@given(st.integers(0, 3_000_000), st.integers(0, 3_000_000), st.integers(3, 65_535), st.integers(3, 65_535))
def test_more_or_longer_examples_never_make_fewer_or_too_large_shards(
    one: int, other: int, one_len: int, other_len: int
) -> None:
    (less, more), (shorter, longer) = sorted([one, other]), sorted([one_len, other_len])
    assert 1 <= auto_num_shards(less, shorter) <= auto_num_shards(more, shorter) <= auto_num_shards(more, longer)
    assert more * longer * BYTES_PER_TOKEN / auto_num_shards(more, longer) <= MAX_SHARD_BYTES


def test_no_token_takes_more_bytes_than_are_counted_on() -> None:
    """The largest ids of a vocabulary of two million; an example's other features take a hundred bytes or so."""
    num_tokens = 10_000
    (record,) = serialize([TinyExample(indices=[2**21 - 1] * num_tokens, key="体育/1234567.txt")])
    assert num_tokens * BYTES_PER_TOKEN <= len(record) + RECORD_OVERHEAD_BYTES < num_tokens * BYTES_PER_TOKEN + 200


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        (("train", 3, 64, "none"), "train-00003-of-00064.tfrecord"),
        (("held_out", 0, 1, "gzip"), "held_out-00000-of-00001.tfrecord.gz"),
        (("dev", 99_998, 99_999, "none"), "dev-99998-of-99999.tfrecord"),
    ],
)
def test_shard_names(arguments: tuple[str, int, int, str], name: str) -> None:
    split, index, num_shards, compression = arguments
    assert shard_name(split, index, num_shards, compression) == name
    found = SHARD_NAME.match(name)
    assert found is not None
    assert (found["split"], int(found["index"]), int(found["num_shards"])) == (split, index, num_shards)
    assert bool(found["gz"]) == (compression == "gzip")


@pytest.mark.parametrize(
    "name",
    ["train-0003-of-00064.tfrecord", "train-00003-of-00064.tfrecord.tmp", "a/b-00000-of-00001.tfrecord", "x.tfrecord"],
)
def test_other_names_are_no_shards(name: str) -> None:
    assert not SHARD_NAME.match(name)
    assert not re.fullmatch(SHARD_NAME, name)
