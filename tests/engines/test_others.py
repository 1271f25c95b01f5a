"""The job on Prism and on Spark, where `make test-others` could get them."""

from pathlib import Path

import pytest

from benchmarks.clusters.processes import PRISM, SPARK_JAR, prism_options, spark_options
from pipeline.dataset.files import digest_directory
from tests.engines.conftest import Expected


def needs(path: Path) -> pytest.MarkDecorator:
    return pytest.mark.skipif(not path.exists(), reason=f"{path.name} is not here; `make test-others` gets and uses it")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "options"),
    [
        pytest.param("prism", prism_options(), marks=needs(PRISM)),
        pytest.param("spark", spark_options(2), marks=needs(SPARK_JAR)),
    ],
)
def test_the_same_bytes(small: Expected, name: str, options: list[str]) -> None:
    task = small.task(name)
    task.run(*options)
    assert digest_directory(str(task.output)) == small.digest
