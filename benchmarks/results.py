"""What a benchmark found, in a form that `benchmarks.summary` can put into one table: a line of JSON per comparison."""

import argparse
import dataclasses
import json
from collections.abc import Iterable
from pathlib import Path


@dataclasses.dataclass(frozen=True, kw_only=True)
class Comparison:
    """Ours against one peer, both measured in the same run.

    Attributes:
        benchmark: which one, such as `tokenizer`.
        subject: on what, such as `articles`.
        unit: of both rates, such as `texts/s`; more is better.
        ours, peer: what was compared.
        our_rate, peer_rate: medians over the rounds, or of all rounds together where these differ in work.
        rounds: how many.
    """

    benchmark: str
    subject: str
    unit: str
    ours: str
    our_rate: float
    peer: str
    peer_rate: float
    rounds: int

    @property
    def ratio(self) -> float:
        """How many times the peer's rate ours is."""
        return self.our_rate / self.peer_rate


def add_results_option(parser: argparse.ArgumentParser) -> None:
    """Add `--results FILE`, which `record` takes."""
    parser.add_argument("--results", type=Path, metavar="FILE", help="append the comparisons to this file, as JSON")


def record(path: Path | None, comparisons: Iterable[Comparison]) -> None:
    """Append comparisons to a file, if there is one."""
    if path is not None:
        with path.open("a", encoding="utf-8") as stream:
            stream.writelines(json.dumps(dataclasses.asdict(one)) + "\n" for one in comparisons)


def read_results(path: Path) -> list[Comparison]:
    """Read what `record` appended."""
    return [Comparison(**json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()]
