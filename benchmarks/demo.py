"""`make demo`: the whole chain on made-up documents, with the commands a user would type, and one table at the end."""

import argparse
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

from model.run.directory import RunDir
from pipeline.dataset.info import read_dataset_info
from pipeline.dataset.summary import format_table

TEXT = "国足在主场以2比1战胜对手，主教练在赛后发布会上说，球员们的表现让人满意。"
DOCUMENTS = 6_000
MAX_LEN = 128


def main() -> int:
    """Run the chain and print what it gave."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("demo"), help="replaced by every run")
    parser.add_argument("--documents", type=int, default=DOCUMENTS)
    args = parser.parse_args()
    shutil.rmtree(args.output, ignore_errors=True)
    args.output.mkdir(parents=True)
    corpus, bert, data, run = (str(args.output / name) for name in ("corpus", "bert", "dataset", "run"))
    python = sys.executable
    started = time.perf_counter()
    _run(python, "-m", "pipeline.sample_corpus", "--output", corpus, "--documents", str(args.documents))
    _run(python, "-m", "model.sample_bert", "--corpus", corpus, "--output", bert)
    seconds = _run(
        *(python, "run_preprocess.py", "--input", corpus, "--vocab", f"{bert}/vocab.txt", "--output", data),
        *("--max_len", str(MAX_LEN)),
    )
    # A BERT without pre-training learns with a rate that would ruin a pre-trained one.
    _run(
        *(python, "run_train.py", "--data", data, "--bert", bert, "--output", run),
        *("--learning_rate", "5e-4", "--schedule", "linear", "--epochs", "3", "--batch_size", "32"),
    )
    print(_result_table(data, run, args.documents / seconds))
    _run(python, "-m", "model.predict", "--run", run, text=f"{TEXT}\n")
    print(f"\nall of it took {time.perf_counter() - started:.0f} s")
    print(f"report: {Path(run, 'report.html')}")
    return 0


def _run(*command: str, text: str | None = None) -> float:
    """Run a command, with `text` typed into it, and return how many seconds it took."""
    shown = shlex.join(["python" if part == sys.executable else part for part in command])
    typed = "" if text is None else f"echo {text.rstrip()} | "
    print(f"\n$ {typed}{shown}", flush=True)
    started = time.perf_counter()
    subprocess.run(command, check=True, input=text, encoding="utf-8")
    return time.perf_counter() - started


def _result_table(data: str, run: str, preprocess_rate: float) -> str:
    info = read_dataset_info(data)
    report = RunDir(Path(run)).read_report()
    rows = [(f"examples, {name}", f"{split.num_examples:,}") for name, split in info.splits.items()]
    for head, measures in report.evaluation.heads.items():
        rows.append((f"{head}, test accuracy", f"{measures.accuracy:.1%}"))
        rows.append((f"{head}, test macro-F1", f"{measures.macro_f1:.1%}"))
    rows += [
        *(
            (f"both heads right, test, {name}", f"{v.exact_match:.1%}")
            for name, v in (report.evaluation.decoding or {}).items()
        ),
        ("preprocessing, documents/s, start-up included", f"{preprocess_rate:,.0f}"),
        ("training, examples/s", f"{report.training.examples_per_second:,.0f}"),
    ]
    return "\n".join(["", *format_table(("result", ""), rows)])


if __name__ == "__main__":
    sys.exit(main())
