"""The same corpus on every engine that is here, by one and two workers: `python -m benchmarks.engines`.

To be run by .venv-engines's Python, once `make test-engines`, `make test-flink` and `make test-others` have got the
engines. Each is one or more processes of this machine; clusters are up before the clock starts, and the wall time is
that of the whole command, its start included. All directories must have one digest, or this fails.
"""

import argparse
import dataclasses
import functools
import importlib.metadata
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from benchmarks.clusters import flink as flink_cluster
from benchmarks.clusters import processes as clusters
from benchmarks.clusters.processes import PRISM, SPARK_JAR, Cluster, Task
from benchmarks.measure import describe_machine
from pipeline.dataset.files import digest_directory
from pipeline.dataset.summary import format_table
from pipeline.sample_corpus.tree import write_sample_corpus

_BEAM = f"Beam {importlib.metadata.version('apache-beam')}"


@dataclasses.dataclass(frozen=True)
class Engine:
    """One way to run the job.

    Attributes:
        name: of the engine.
        version: what ran.
        processes: who did the work.
        num_workers: how many at a time.
        start: starts what is needed and returns the job's options.
    """

    name: str
    version: str
    processes: str
    num_workers: int
    start: Callable[[Cluster], list[str]]


def _needs_no_start(options: list[str]) -> Callable[[Cluster], list[str]]:
    return lambda _: options


def engines(commands: Path, site: Path) -> Iterator[Engine]:
    """Yield every engine that is here; say on stderr which is not."""
    for number in (1, 2):
        local = [f"--direct_num_workers={number}"]
        yield Engine("DirectRunner (ours)", _BEAM, f"{number} local", number, _needs_no_start(local))
    yield Engine(
        "PortableRunner", _BEAM, "job service, pool", 1, functools.partial(clusters.start_portable, commands=commands)
    )
    dask = f"Dask {importlib.metadata.version('distributed')}"
    for number in (1, 2):
        yield Engine(
            *("Dask", dask, f"scheduler, workers: {number}", number),
            functools.partial(clusters.start_dask, site=site, num_workers=number),
        )
    if flink_cluster.JOB_SERVER_JAR.exists():
        flink = flink_cluster.version()
        for number in (1, 2):
            options = [*flink_cluster.flink_options("[local]", number), "--environment_type=LOOPBACK"]
            yield Engine("Flink, embedded", flink, "job server", number, _needs_no_start(options))
        for number in (1, 2):
            yield Engine(
                *("Flink, cluster", flink, f"JobManager, TaskManagers and pools: {number}", number),
                functools.partial(flink_cluster.start_flink, commands=commands, num_workers=number),
            )
    else:
        print("no Flink: `make test-flink` gets it", file=sys.stderr)
    if SPARK_JAR.exists():
        for number in (1, 2):
            options = clusters.spark_options(number)
            version = "Spark 3.5.0, job server of Beam 2.62.0"
            yield Engine("Spark, local", version, "job server", number, _needs_no_start(options))
    if PRISM.exists():
        yield Engine("Prism", _BEAM, "prism", 1, _needs_no_start(clusters.prism_options()))


def main() -> int:
    """Run the job everywhere and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", type=int, default=20_000)
    parser.add_argument("--vocab", type=Path, default=Path("../shared/data/bert_base_chinese/vocab.txt"))
    parser.add_argument("--only", default="", help="engines whose name contains this")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        root = Path(directory)
        corpus = root / "corpus"
        write_sample_corpus(str(corpus), num_documents=args.documents, num_workers=2)
        for name in ("installed", "site"):
            (root / name).mkdir()
        commands, site = clusters.install(root / "installed"), clusters.unpack(root / "site")
        rows: list[tuple[str, ...]] = []
        digests: set[str] = set()
        alone: dict[str, float] = {}
        for number, engine in enumerate(engines(commands, site)):
            if args.only not in engine.name:
                continue
            (root / str(number)).mkdir()
            task = Task(corpus, args.vocab.resolve(), root / str(number) / "dataset")
            with clusters.cluster(root / str(number) / "processes") as up:
                options = engine.start(up)
                started = time.perf_counter()
                task.run(*options)
                seconds = time.perf_counter() - started
            digest = digest_directory(str(task.output))
            digests.add(digest)
            alone.setdefault(engine.name, seconds)
            ratio = f"{alone[engine.name] / seconds:.2f}x" if engine.num_workers > 1 else ""
            rows.append(
                (
                    engine.name,
                    engine.version,
                    engine.processes,
                    str(engine.num_workers),
                    f"{args.documents:,}",
                    f"{seconds:.1f} s",
                    ratio,
                    digest[:12],
                )
            )
            print(f"{engine.name}, {engine.num_workers}: {seconds:.1f} s", file=sys.stderr)
    header = ("engine", "version", "processes", "workers", "documents", "wall", "1 worker / 2", "digest")
    print("\n".join([describe_machine(), "", *format_table(header, rows)]))
    if len(digests) > 1:
        print(f"{len(digests)} different digests", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
