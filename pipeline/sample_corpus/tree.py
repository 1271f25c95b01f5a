"""Write a made-up corpus shaped like THUCNews, so that everything can be tried without the real one.

    python -m pipeline.sample_corpus --output corpus --documents 5000 --seed 1

The tree is THUCNews's: `corpus/<category>/<id>.txt`, UTF-8 without a final newline, 14 categories with THUCNews's class
balance, ids running through the corpus in the code-point order of the categories.

Document i is a pure function of (seed, i, category): any number of workers writes the same bytes. Its category follows
from i and the number of documents, as each category takes one run of ids.
"""

import concurrent.futures
import dataclasses
import itertools
import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence

from tqdm import tqdm

from pipeline import filesystem
from pipeline.errors import OptionError, OutputExistsError, OutputWriteError
from pipeline.sample_corpus.text import sample_document
from pipeline.sample_corpus.topics import read_topics

NUM_THUCNEWS_DOCUMENTS = 836_074
DOCUMENTS_PER_TASK = 1_000


def apportion(num_documents: int) -> dict[str, int]:
    """Split documents over the categories in THUCNews's proportions, by largest remainders.

    Args:
        num_documents: documents in all, at least 1.

    Returns:
        Category → documents, in the code-point order of the categories; they sum to `num_documents`. From 14
        documents on no category is empty, and 836,074 give THUCNews's own counts.
    """
    topics = read_topics()
    categories = sorted(topics)
    quotas = {name: divmod(num_documents * topics[name].num_documents, NUM_THUCNEWS_DOCUMENTS) for name in categories}
    counts = {name: whole for name, (whole, _) in quotas.items()}
    by_remainder = sorted(categories, key=lambda name: -quotas[name][1])
    for name in by_remainder[: num_documents - sum(counts.values())]:
        counts[name] += 1
    if num_documents >= len(categories):
        for name in categories:
            if counts[name] == 0:
                counts[max(counts, key=lambda other: counts[other])] -= 1
                counts[name] = 1
    return counts


def write_sample_corpus(
    output_dir: str, *, num_documents: int, seed: int = 0, num_workers: int = 1, show_progress: bool = False
) -> dict[str, int]:
    """Write a corpus of made-up documents, `output_dir/<category>/<id>.txt`.

    The documents are written to `output_dir` + ".partial", which is renamed when it is complete. The next run deletes
    what a killed run left.

    Args:
        output_dir: a local directory; it must not exist or be empty.
        num_documents: how many documents to write, at least 1.
        seed: another seed gives another corpus, from 0.
        num_workers: processes; above 1 they are spawned, so a script that calls this must be importable.
        show_progress: show a progress bar on stderr.

    Returns:
        Category → number of documents.

    Raises:
        OptionError: a number that cannot be used, or a remote `output_dir`.
        OutputExistsError: `output_dir` holds something or is a file, or another directory has the temporary name.
        OutputWriteError: the disk is full or read-only.
    """
    for name, value, least in (("documents", num_documents, 1), ("seed", seed, 0), ("workers", num_workers, 1)):
        if value < least:
            raise OptionError(f"--{name} {value}: expected a number of at least {least}")
    if filesystem.is_remote(output_dir):
        raise OptionError(f"--output {output_dir}: a sample corpus is written to a local directory; give a local path")
    output_dir = os.path.realpath(output_dir)
    if os.path.lexists(output_dir) and not (os.path.isdir(output_dir) and not os.listdir(output_dir)):
        raise OutputExistsError(
            f"{output_dir}: expected a new or empty directory, and it holds something; "
            "give another --output or delete it first"
        )
    partial_dir = f"{output_dir}.partial"
    # Only what an earlier run left is deleted.
    if os.path.lexists(partial_dir) and not (
        os.path.isdir(partial_dir) and set(os.listdir(partial_dir)) <= read_topics().keys()
    ):
        raise OutputExistsError(f"{partial_dir}: is in the way and no earlier run's; move it or give another --output")
    filesystem.make_directory(os.path.dirname(output_dir))
    filesystem.delete_directory(partial_dir)

    counts = apportion(num_documents)
    try:
        for category, count in counts.items():
            if count:
                os.makedirs(os.path.join(partial_dir, category))
        tasks = list(_plan_tasks(partial_dir, seed, counts))
        with tqdm(total=num_documents, unit=" documents", unit_scale=True, disable=not show_progress) as progress:
            _run_tasks(tasks, num_workers, report_fn=progress.update)
        os.rename(partial_dir, output_dir)
    except OSError as error:
        raise OutputWriteError(
            f"{output_dir}: cannot write the corpus: {error.strerror}; free some space or fix it, then run again"
        ) from error
    finally:
        # After the rename there is nothing left to delete.
        filesystem.delete_directory(partial_dir)
    return counts


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Task:
    """Documents of one category with the ids `start` to `stop` - 1."""

    category_dir: str
    category: str
    seed: int
    start: int
    stop: int


def _plan_tasks(partial_dir: str, seed: int, counts: dict[str, int]) -> Iterator[_Task]:
    # Categories take turns, because workers that make files in the same directory wait for each other.
    firsts = dict(zip(counts, itertools.accumulate(counts.values(), initial=0), strict=False))
    for offset in range(0, max(counts.values()), DOCUMENTS_PER_TASK):
        for category, count in counts.items():
            if offset < count:
                yield _Task(
                    category_dir=os.path.join(partial_dir, category),
                    category=category,
                    seed=seed,
                    start=firsts[category] + offset,
                    stop=firsts[category] + min(offset + DOCUMENTS_PER_TASK, count),
                )


def _run_tasks(tasks: Sequence[_Task], num_workers: int, report_fn: Callable[[int], object]) -> None:
    """Write all documents; call `report_fn` with the number of documents of each finished task."""
    num_workers = min(num_workers, len(tasks))
    if num_workers == 1:
        for task in tasks:
            report_fn(_write_documents(task))
        return
    # Spawned, not forked: the caller may have loaded TensorFlow, whose threads do not survive a fork.
    spawn = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(num_workers, mp_context=spawn) as executor:
        futures = [executor.submit(_write_documents, task) for task in tasks]
        try:
            for future in concurrent.futures.as_completed(futures):
                report_fn(future.result())
        finally:
            # Wait for running tasks: the caller deletes the directory in which they write.
            executor.shutdown(cancel_futures=True)


def _write_documents(task: _Task) -> int:
    for index in range(task.start, task.stop):
        with open(os.path.join(task.category_dir, f"{index}.txt"), "xb") as stream:
            stream.write(sample_document(task.seed, index, task.category).encode())
    return task.stop - task.start
