"""What every engine's test needs: the package as it is installed, a corpus, and what this machine makes of it."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.clusters.processes import Cluster, Task, cluster, install, unpack
from pipeline.dataset.files import digest_directory
from pipeline.filesystem import is_installed
from pipeline.sample_corpus.tree import write_sample_corpus
from tests.support import corpora

NUM_DOCUMENTS = 600
_HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if is_installed("distributed"):
        return
    for item in items:
        if item.path.is_relative_to(_HERE):
            item.add_marker(pytest.mark.skip(reason="no engines here; `make test-engines` installs and uses them"))


@dataclasses.dataclass(frozen=True)
class Expected:
    """A corpus, and the digest of the dataset that comes of it on this machine's own engine.

    Attributes:
        corpus, vocab: what to read.
        digest: of the directory.
        root: where outputs go.
    """

    corpus: Path
    vocab: Path
    digest: str
    root: Path

    def task(self, name: str) -> Task:
        """Return a task with an output directory of its own."""
        (self.root / name).mkdir()
        return Task(self.corpus, self.vocab, self.root / name / "dataset")


@pytest.fixture(scope="session")
def commands(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the commands of a clean environment with this package, its pinned requirements and nothing else."""
    return install(tmp_path_factory.mktemp("installed"))


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a directory with this package alone, for workers that have an engine's own requirements."""
    return unpack(tmp_path_factory.mktemp("site"))


@pytest.fixture
def processes(tmp_path: Path) -> Iterator[Cluster]:
    """Return a place for an engine's processes, outside the repository."""
    with cluster(tmp_path / "processes") as running:
        yield running


def expect(root: Path, corpus: Path) -> Expected:
    vocab = corpora.write_vocab(root / "vocab.txt")
    (root / "local").mkdir()
    task = Task(corpus, vocab, root / "local" / "dataset")
    task.run("--direct_num_workers", "1")
    return Expected(corpus, vocab, digest_directory(str(task.output)), root)


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> Expected:
    """Return a few chunks of short documents, two of which cannot be used and one of which is repeated."""
    root = tmp_path_factory.mktemp("small")
    documents: dict[str, str | bytes] = {
        **corpora.made_up_documents(NUM_DOCUMENTS),
        "体育/empty.txt": "",
        "体育/bad.txt": b"\xff",
        "科技/again.txt": corpora.made_up_text(0),
    }
    return expect(root, corpora.write_tree(root / "corpus", documents))


@pytest.fixture(scope="session")
def large(tmp_path_factory: pytest.TempPathFactory) -> Expected:
    """Return enough articles for somebody to be killed while they are being written."""
    root = tmp_path_factory.mktemp("large")
    write_sample_corpus(str(root / "corpus"), num_documents=12_000, seed=0)
    return expect(root, root / "corpus")
