"""The made-up corpus: counts, layout, determinism, lengths, how hard it is to learn, and what it refuses."""

import collections
import os
import re
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.svm import LinearSVC

from pipeline.errors import OptionError, OutputExistsError, OutputWriteError
from pipeline.sample_corpus import text as sample_text
from pipeline.sample_corpus import tree as sample_corpus
from pipeline.sample_corpus.__main__ import command as main
from pipeline.sample_corpus.text import sample_document
from pipeline.sample_corpus.topics import WORDS, read_grammar, read_sections, read_topics
from pipeline.sample_corpus.tree import apportion, write_sample_corpus
from tests.support.workshop import REPOSITORY

# THUCNews's own counts, typed in a second time on purpose.
THUCNEWS_COUNTS = {
    "体育": 131603,
    "娱乐": 92632,
    "家居": 32586,
    "彩票": 7588,
    "房产": 20050,
    "教育": 41936,
    "时尚": 13368,
    "时政": 63086,
    "星座": 3578,
    "游戏": 24373,
    "社会": 50849,
    "科技": 162929,
    "股票": 154398,
    "财经": 37098,
}


def read_tree(root: Path) -> dict[str, bytes]:
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*.txt")}


@pytest.fixture(scope="module")
def documents() -> list[tuple[str, str]]:
    """(category, text) of documents in THUCNews's class balance, shuffled by taking every category in turns."""
    index = 0
    found = []
    for category, count in apportion(2_400).items():
        for position in range(count):
            found.append(((position + 0.5) / count, category, sample_document(5, index, category)))
            index += 1
    return [(category, text) for _, category, text in sorted(found)]


def test_full_size_has_thucnews_counts_in_id_order() -> None:
    assert list(apportion(836_074).items()) == list(THUCNEWS_COUNTS.items())


@given(st.integers(1, 900_000))
def test_apportion_is_exact_and_near_the_quota(num_documents: int) -> None:
    counts = apportion(num_documents)
    assert sum(counts.values()) == num_documents
    assert set(counts) == set(THUCNEWS_COUNTS)
    quotas = {name: num_documents * count / 836_074 for name, count in THUCNEWS_COUNTS.items()}
    if num_documents >= 14:
        assert min(counts.values()) >= 1
    # From here on the smallest category's quota is above one, nothing is raised, and remainders decide the last one.
    if num_documents > 836_074 / 3_578:
        assert all(abs(counts[name] - quotas[name]) < 1 for name in counts)
    # Below, a small category is raised to one and the largest pays for it.
    else:
        assert all(counts[name] < max(1.1, quotas[name] + 1) for name in counts)


def test_written_tree(tmp_path: Path) -> None:
    output = tmp_path / "made" / "corpus"
    counts = write_sample_corpus(str(output), num_documents=300, seed=3)
    tree = read_tree(output)
    assert collections.Counter(name.split("/")[0] for name in tree) == counts == apportion(300)
    assert sorted(int(Path(name).stem) for name in tree) == list(range(300))
    # Nothing else lies there, and nothing is left beside it.
    assert sum(len(files) for _, _, files in os.walk(output)) == 300
    assert os.listdir(output.parent) == ["corpus"]
    for name, data in tree.items():
        category, file_name = name.split("/")
        assert data.decode() == sample_document(3, int(Path(file_name).stem), category)


def test_layout(documents: list[tuple[str, str]]) -> None:
    for _, text in documents:
        headline, *paragraphs = text.split("\n")
        assert 6 <= len(headline) <= 45
        assert headline == headline.strip()
        assert paragraphs[0].startswith("\u3000\u3000")
        # Only the last line may be page furniture, which is not indented.
        for paragraph in paragraphs[:-1]:
            assert re.match("\u3000\u3000[^\u3000\\s]", paragraph)
        assert not text.endswith("\n")
        assert "{" not in text
        assert "}" not in text


def test_oddities_come_now_and_then(documents: list[tuple[str, str]]) -> None:
    texts = [text for _, text in documents]

    def share(pattern: str) -> float:
        return sum(bool(re.search(pattern, text)) for text in texts) / len(texts)

    assert 0.08 < share("\xa0") < 0.2
    assert 0.01 < share("&nbsp;") < 0.08
    assert 0.01 < share("  ") < 0.08
    assert 0.001 < share("\ufffd") < 0.03
    assert 0.01 < share("[０-９]") < 0.06
    assert 0.05 < share("\n[^\u3000]") < 0.2  # page furniture
    assert 0.5 < share("“.*”") < 0.9
    assert share("[A-Za-z]{2}") > 0.3
    assert share(r"\d%") > 0.3
    assert share(r"\d月\d+日") > 0.3


def test_documents_do_not_repeat(documents: list[tuple[str, str]]) -> None:
    assert len({text for _, text in documents}) == len(documents)
    # Headlines are put together from halves: few may coincide.
    assert len({text.split("\n")[0] for _, text in documents}) > 0.98 * len(documents)


def test_lengths_are_thucnews_like() -> None:
    lengths = sorted(len(sample_document(11, index, "社会")) for index in range(4_000))
    # Four standard errors of the log-normal's mean, sd = 721; of its median, somewhat less.
    assert statistics.mean(lengths) == pytest.approx(939, abs=4 * 721 / 4_000**0.5)
    assert statistics.median(lengths) == pytest.approx(745, abs=45)
    assert lengths[int(0.95 * len(lengths))] == pytest.approx(2_300, abs=250)
    assert 20 <= lengths[0] < 130
    assert 4_500 < lengths[-1] < 9_400


def test_document_is_a_function_of_seed_index_and_category(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    write_sample_corpus(str(one), num_documents=400, seed=1, num_workers=1)
    # Several tasks for the large categories, so that both workers write to one directory.
    monkeypatch.setattr(sample_corpus, "DOCUMENTS_PER_TASK", 15)
    write_sample_corpus(str(two), num_documents=400, seed=1, num_workers=2)
    assert read_tree(one) == read_tree(two)

    # Document 5 is 体育 in a corpus of any size.
    smaller, other_seed = tmp_path / "smaller", tmp_path / "other"
    write_sample_corpus(str(smaller), num_documents=100, seed=1)
    write_sample_corpus(str(other_seed), num_documents=100, seed=2)
    assert (smaller / "体育" / "5.txt").read_bytes() == (one / "体育" / "5.txt").read_bytes()
    assert (smaller / "体育" / "5.txt").read_bytes() != (other_seed / "体育" / "5.txt").read_bytes()
    assert sample_document(1, 5, "体育") != sample_document(1, 6, "体育")


def test_document_does_not_depend_on_what_was_composed_before() -> None:
    first = sample_document(21, 8, "科技")
    sample_text._phrases.cache_clear()
    sample_document(21, 9, "星座")
    assert sample_document(21, 8, "科技") == first


@pytest.mark.parametrize(
    ("num_characters", "low", "high"),
    [
        # A whole document: learnable, and not trivially so.
        (None, 0.90, 0.98),
        # The beginning alone, which is all that a short BERT sees.
        (128, 0.85, 0.97),
    ],
)
def test_linear_classifier_learns_most(
    documents: list[tuple[str, str]], num_characters: int | None, low: float, high: float
) -> None:
    texts = [text[:num_characters] for _, text in documents]
    labels = [category for category, _ in documents]
    # Every third document is tested: the order takes the categories in turns, so all are on both sides.
    vectorizer = TfidfVectorizer(analyzer="char", min_df=2, sublinear_tf=True)
    features = vectorizer.fit_transform([text for number, text in enumerate(texts) if number % 3])
    classifier = LinearSVC(random_state=0).fit(features, [label for number, label in enumerate(labels) if number % 3])
    accuracy = classifier.score(vectorizer.transform(texts[::3]), labels[::3])
    assert low < accuracy < high


def test_every_symbol_of_the_grammar_has_alternatives() -> None:
    assert not set(WORDS) & set(read_sections()["forms"])
    for topic in (None, *read_topics()):
        grammar = read_grammar(topic)
        assert all(grammar.values())
        for alternatives in grammar.values():
            assert set(re.findall(r"\{(\w+)\}", " ".join(alternatives))) <= set(grammar)


def test_sections_and_neighbours_name_real_topics() -> None:
    topics = read_topics()
    for name, topic in topics.items():
        assert set(topic.neighbours) <= set(topics) - {name}
    for section in read_sections().keys() - {"forms", "small talk"}:
        assert set(section.split()) <= set(topics)


@pytest.mark.parametrize("options", [{"num_documents": 0}, {"num_documents": 5, "seed": -1}, {"num_workers": 0}])
def test_bad_numbers_are_refused(tmp_path: Path, options: dict[str, Any]) -> None:
    with pytest.raises(OptionError, match="expected a number of at least"):
        write_sample_corpus(str(tmp_path / "corpus"), **{"num_documents": 5, **options})
    assert os.listdir(tmp_path) == []


def test_remote_output_is_refused() -> None:
    with pytest.raises(OptionError, match="local"):
        write_sample_corpus("gs://bucket/corpus", num_documents=5)


def test_existing_output_is_refused_and_kept(tmp_path: Path) -> None:
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus" / "mine.txt").write_text("mine")
    (tmp_path / "file").write_text("mine")
    for name in ("corpus", "file"):
        with pytest.raises(OutputExistsError, match=name):
            write_sample_corpus(str(tmp_path / name), num_documents=5)
    assert (tmp_path / "corpus" / "mine.txt").read_text() == "mine"
    assert sorted(os.listdir(tmp_path)) == ["corpus", "file"]


def test_empty_output_directory_is_used_also_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "corpus").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "corpus")
    write_sample_corpus(str(tmp_path / "link"), num_documents=20)
    assert len(read_tree(tmp_path / "corpus")) == 20


def test_leftover_of_a_killed_run_is_replaced_and_a_strangers_directory_is_not(tmp_path: Path) -> None:
    leftover = tmp_path / "corpus.partial"
    (leftover / "体育").mkdir(parents=True)
    (leftover / "体育" / "999.txt").write_text("half a doc")
    write_sample_corpus(str(tmp_path / "corpus"), num_documents=20)
    assert sorted(os.listdir(tmp_path)) == ["corpus"]
    assert len(read_tree(tmp_path / "corpus")) == 20

    stranger = tmp_path / "other.partial"
    stranger.mkdir()
    (stranger / "mine.txt").write_text("mine")
    with pytest.raises(OutputExistsError, match=r"other\.partial"):
        write_sample_corpus(str(tmp_path / "other"), num_documents=20)
    assert (stranger / "mine.txt").read_text() == "mine"


def test_failed_run_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fill_disk(seed: int, index: int, category: str) -> str:
        if index > 10:
            raise OSError(28, "No space left on device")
        return sample_document(seed, index, category)

    monkeypatch.setattr(sample_corpus, "sample_document", fill_disk)
    with pytest.raises(OutputWriteError, match="No space left"):
        write_sample_corpus(str(tmp_path / "corpus"), num_documents=50)
    assert os.listdir(tmp_path) == []


def test_interrupted_run_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(seed: int, index: int, category: str) -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr(sample_corpus, "sample_document", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_sample_corpus(str(tmp_path / "corpus"), num_documents=50)
    assert os.listdir(tmp_path) == []


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture) -> None:
    output = str(tmp_path / "corpus")
    assert main(["--output", output, "--documents", "30", "--seed", "4", "--workers", "1"]) == 0
    assert "30 documents in 14 categories" in capsys.readouterr().out
    assert (tmp_path / "corpus" / "体育" / "0.txt").read_bytes().decode() == sample_document(4, 0, "体育")

    before = read_tree(tmp_path / "corpus")
    assert main(["--output", output, "--documents", "30"]) == 2
    assert "holds something" in caplog.text
    assert main(["--output", str(tmp_path / "x"), "--documents", "many"]) == 2
    assert read_tree(tmp_path / "corpus") == before
    assert os.listdir(tmp_path) == ["corpus"]


def test_command_with_several_workers(tmp_path: Path) -> None:
    """As a process of its own, whose workers must find what they run."""
    command = [sys.executable, "-m", "pipeline.sample_corpus", "--output", str(tmp_path / "corpus")]
    subprocess.run([*command, "--documents", "30", "--workers", "2"], cwd=REPOSITORY, check=True)
    write_sample_corpus(str(tmp_path / "alone"), num_documents=30)
    assert read_tree(tmp_path / "corpus") == read_tree(tmp_path / "alone")
