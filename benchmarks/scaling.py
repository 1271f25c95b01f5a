"""What would limit the job on many machines: a calculation from costs measured here; `python -m benchmarks.scaling`.

Measured on one core, on a sample: listing a file, reading and hashing a document, carrying a reference, reading it
again, tokenizing and writing a document, and at the end what one process does per document and per shard. The rest is
arithmetic: what all workers share is divided by their number, what one process does alone is not. Network and storage
are taken from the command line; nothing here was run on more than this machine.
"""

import argparse
import dataclasses
import itertools
import pickle
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.measure import describe_machine
from pipeline.config import InputSpec, PreprocessConfig
from pipeline.corpus.reading import REMOTE_READERS
from pipeline.dataset.files import LENGTHS_DTYPE
from pipeline.dataset.shards import auto_num_shards
from pipeline.dataset.summary import format_table
from pipeline.job.preprocess import prepare
from pipeline.job.publish import publish_dataset
from pipeline.job.references import ReferenceBatch, ReferenceReader, Survey, plan_dataset
from pipeline.job.shard_writer import write_shard
from pipeline.job.transforms import assign_shards
from pipeline.sample_corpus.tree import NUM_THUCNEWS_DOCUMENTS, write_sample_corpus

_MANY_SHARDS = 50_000
_MAX_LEN = 512  # the default of --max_len


@dataclasses.dataclass(frozen=True)
class Costs:
    """Seconds of one core per document, unless it says otherwise.

    Attributes:
        list_seconds, read_seconds, write_seconds: of the three steps.
        publish_seconds: per shard, of the last step, which one process does.
        reference_bytes: of one reference when nearly every one goes to another shard.
        example_bytes: of one stored example.
    """

    list_seconds: float
    read_seconds: float
    write_seconds: float
    publish_seconds: float
    reference_bytes: float
    example_bytes: float


def measure(num_documents: int, vocab: str) -> Costs:
    """Run the job's steps one after the other on one core."""
    with tempfile.TemporaryDirectory() as directory:
        root = Path(directory)
        write_sample_corpus(str(root / "corpus"), num_documents=num_documents, num_workers=2)
        (root / "staging").mkdir()
        (root / "out").mkdir()
        config = PreprocessConfig(
            inputs=(InputSpec(str(root / "corpus")),), vocab_path=vocab, output_dir=str(root / "out"), num_shards=20
        )
        job, staging_dir = prepare(config), str(root / "staging")
        times = [time.perf_counter()]
        chunks = list(job.sources[0].chunks(0))
        times.append(time.perf_counter())
        reader = ReferenceReader(job)
        batches = [reader.read(chunk) for chunk in chunks]
        survey = Survey()
        for batch in batches:
            survey.add(batch)
        plan = plan_dataset(survey, job)
        groups: dict[tuple[str, int], list[ReferenceBatch]] = {}
        for batch in batches:
            for key, part in assign_shards(batch, plan):
                groups.setdefault(key, []).append(part)
        times.append(time.perf_counter())
        tokenizer = job.make_tokenizer()
        reports = [
            write_shard(
                (reference for part in parts for reference in part.by_split[split]),
                split=split,
                index=index,
                plan=plan,
                job=job,
                staging_dir=staging_dir,
                tokenizer=tokenizer,
            )
            for (split, index), parts in groups.items()
        ]
        times.append(time.perf_counter())
        num_bytes = sum(report.file.num_bytes for report in reports if report.file)
        publish_dataset(reports, plan=plan, job=job, staging_dir=staging_dir)
        times.append(time.perf_counter())
        spread = dataclasses.replace(plan, num_shards=dict.fromkeys(plan.num_shards, _MANY_SHARDS))
        elements = [element for batch in batches for element in assign_shards(batch, spread)]
    listing, reading, writing, publishing = (b - a for a, b in itertools.pairwise(times))
    return Costs(
        list_seconds=listing / num_documents,
        read_seconds=reading / num_documents,
        write_seconds=writing / num_documents,
        publish_seconds=publishing / len(reports),
        reference_bytes=sum(len(pickle.dumps(element)) for element in elements) / num_documents,
        example_bytes=num_bytes / num_documents,
    )


def main() -> int:
    """Measure, calculate, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", type=int, default=10_000, help="the sample that is measured")
    parser.add_argument("--times", type=int, default=1_000, help="how many times THUCNews")
    parser.add_argument(
        "--page_seconds", type=float, default=0.1, help="an object store's list request, of 1,000 names"
    )
    parser.add_argument("--move_seconds", type=float, default=0.1, help="an object store's rename (copy, then delete)")
    parser.add_argument("--fetch_seconds", type=float, default=0.03, help="latency of reading one small object")
    parser.add_argument("--vocab", default="../shared/data/bert_base_chinese/vocab.txt")
    args = parser.parse_args()
    costs = measure(args.documents, args.vocab)
    total = NUM_THUCNEWS_DOCUMENTS * args.times
    num_shards = sum(auto_num_shards(int(total * share), _MAX_LEN) for share in (0.8, 0.1, 0.1))
    print(describe_machine())
    print(
        f"listing {costs.list_seconds * 1e6:.1f} µs, reading {costs.read_seconds * 1e6:.0f} µs, writing "
        f"{costs.write_seconds * 1e6:.0f} µs a document; publishing {costs.publish_seconds * 1e3:.1f} ms a shard"
    )
    print(
        f"{total:,} documents, {num_shards:,} shards; shuffled {total * costs.reference_bytes / 1e9:,.0f} GB of "
        f"references ({costs.reference_bytes:.0f} bytes each), written {total * costs.example_bytes / 1e9:,.0f} GB"
    )
    # The reports of all shards go to the last step as one element, and gRPC carries 2 GiB at most.
    print(
        f"largest element: {total * LENGTHS_DTYPE.itemsize / 1e9:.1f} GB, the lengths of all examples; limit 2.1 GB\n"
    )
    on_disk, in_store = costs.publish_seconds * num_shards, args.move_seconds * num_shards
    waiting_in_store = args.fetch_seconds / REMOTE_READERS  # as many are asked for at a time
    listing_objects = args.page_seconds * total / 1_000
    # Layout → (listing, over how many inputs, waiting for one document in each pass, publishing).
    layouts = {
        "loose files, shared disk": (costs.list_seconds * total, 1, 0.0, on_disk),
        "1,000 archives, shared disk": (costs.list_seconds * total, 1_000, 0.0, on_disk),
        "loose objects, one --input": (listing_objects, 1, waiting_in_store, in_store),
        "loose objects, 1,000 --inputs": (listing_objects, 1_000, waiting_in_store, in_store),
    }
    rows = []
    for layout, (listing, num_inputs, waiting, publishing) in layouts.items():
        for num_workers in (10, 100, 1_000):
            parts = {
                "listing": listing / min(num_workers, num_inputs),
                "reading": total * (costs.read_seconds + waiting) / num_workers,
                "writing": total * (costs.write_seconds + waiting) / min(num_workers, num_shards),
                "publishing": publishing,
            }
            whole = sum(parts.values())
            first = max(parts, key=lambda part: parts[part])
            hours = [f"{part / 3_600:.2f}" for part in parts.values()]
            used = f"{whole * num_workers / 3_600:,.0f}"
            rows.append((layout, f"{num_workers:,}", *hours, f"{whole / 3_600:.1f}", used, first))
    header = (
        "corpus",
        "workers",
        "listing h",
        "reading h",
        "writing h",
        "publishing h",
        "all h",
        "core hours",
        "bottleneck",
    )
    print("\n".join(format_table(header, rows)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
