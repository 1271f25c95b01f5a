"""The engine: its options, that every way of running gives the same bytes, and errors that cross processes."""

import dataclasses
import gzip
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.engines.local_runner import choose_mode
from pipeline.errors import (
    InputFormatError,
    MissingInputError,
    OptionError,
    OutputExistsError,
    PipelineError,
    TooManyRejectedError,
)
from pipeline.job import preprocess
from pipeline.job.config import PreprocessConfig
from pipeline.job.output_dir import STAGING_PREFIX, staging_directory
from pipeline.job.preprocess import EngineOptions, dry_run, prepare, run
from tests.support.corpora import (
    digest_files,
    made_up_documents,
    make_config,
    run_by_hand,
    run_quickly,
    write_lines,
    write_tree,
    write_zip,
)


@pytest.mark.parametrize(
    ("beam_args", "message"),
    [
        (["--direct_num_worker=2"], r"unknown option --direct_num_worker=2; did you mean --direct_num_workers\?"),
        (["--projekt", "x"], r"unknown option --projekt; did you mean --project\?"),
        (["--inptu", "x"], "unknown option --inptu"),
        (["stray"], "unknown option stray"),
        (["--direct_runner_bundle_repeat", "twice"], "direct_runner_bundle_repeat: invalid int value: 'twice'"),
        (["--project"], "--project: expected one argument"),
    ],
)
def test_options_that_beam_would_ignore_are_refused(beam_args: list[str], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        EngineOptions(beam_args=tuple(beam_args))


def test_options_of_beam_are_taken() -> None:
    arguments = ("--project", "p", "--temp_location=gs://bucket/tmp", "--experiments=a", "--experiments=b")
    assert EngineOptions(beam_args=arguments).beam_args == arguments


def test_engine_options_are_checked() -> None:
    with pytest.raises(OptionError, match="--direct_num_workers: expected 0"):
        EngineOptions(num_workers=-1)
    with pytest.raises(OptionError, match="--direct_running_mode: expected one of in_memory, multi_threading"):
        EngineOptions(running_mode="threads")
    with pytest.raises(OptionError, match="in_memory has one worker, but --direct_num_workers is 2"):
        choose_mode("in_memory", 2)
    assert EngineOptions().is_local
    assert not EngineOptions(runner="DataflowRunner").is_local


def test_everything_is_checked_before_the_output_is_touched(tmp_path: Path) -> None:
    tree = write_tree(tmp_path / "tree", made_up_documents(3))
    good = make_config(tmp_path, tree)
    bad = [
        (dataclasses.replace(good, vocab_path=str(tmp_path / "none")), MissingInputError),
        (dataclasses.replace(good, vocab_path=str(tmp_path / "tree" / "体育" / "0.txt")), InputFormatError),
        (dataclasses.replace(good, taxonomy_path=str(tmp_path / "none")), MissingInputError),
        (dataclasses.replace(good, category_names_path=str(tmp_path / "none")), MissingInputError),
        (make_config(tmp_path, tmp_path / "none"), MissingInputError),
    ]
    for config, error in bad:
        with pytest.raises(error):
            run_quickly(config)
    assert not Path(good.output_dir).exists()
    job = prepare(good)
    assert job.vocab_size == len(Path(good.vocab_path).read_text().split("\n")) - 1


# Several chunks, so that workers really share them; odd documents, so that rejections travel too.
MANY_DOCUMENTS: dict[str, str | bytes] = {
    **made_up_documents(1_150),
    "体育/empty.txt": "",
    "体育/bad.txt": b"\xff",
    "科技/nothing.txt": "\u200b",
    "股票/a.txt": "山水",
    "股票/b.txt": "山水",
    "体育/c.txt": "山水",
}


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> tuple[PreprocessConfig, dict[str, str]]:
    """A configuration over many documents, and the digests of the dataset that the passes give without Beam."""
    directory = tmp_path_factory.mktemp("many")
    tree = write_tree(directory / "tree", MANY_DOCUMENTS)
    config = make_config(directory, tree, num_shards=4, duplicates="drop")
    info = run_by_hand(config)
    assert info.documents.rejected == {"duplicate": 2, "empty": 2, "not_utf-8": 1}
    return config, digest_files(Path(config.output_dir))


@pytest.mark.parametrize(
    ("num_workers", "mode", "beam_args"),
    [
        (1, None, ()),
        (1, None, ("--direct_runner_bundle_repeat", "1")),  # every bundle runs twice
        (2, "multi_threading", ()),
        (2, None, ()),
        pytest.param(3, None, ("--direct_runner_bundle_repeat", "1"), marks=pytest.mark.slow),
        pytest.param(1, "multi_processing", (), marks=pytest.mark.slow),
    ],
)
def test_every_way_of_running_gives_the_same_bytes(
    many: tuple[PreprocessConfig, dict[str, str]],
    tmp_path: Path,
    num_workers: int,
    mode: str | None,
    beam_args: tuple[str, ...],
) -> None:
    config, expected = many
    again = dataclasses.replace(config, output_dir=str(tmp_path / "dataset"))
    run(again, EngineOptions(num_workers=num_workers, running_mode=mode, beam_args=beam_args))
    assert digest_files(tmp_path / "dataset") == expected


def test_tree_and_archive_give_the_same_directory(
    many: tuple[PreprocessConfig, dict[str, str]], tmp_path: Path
) -> None:
    _, expected = many
    archive = write_zip(tmp_path / "corpus.zip", {f"corpus/{key}": text for key, text in MANY_DOCUMENTS.items()})
    run_quickly(make_config(tmp_path, archive, num_shards=4, duplicates="drop"))
    assert digest_files(tmp_path / "dataset") == expected


def test_tables_plain_and_compressed_give_the_same_shards_where_keys_agree(tmp_path: Path) -> None:
    lines = [f"{text.strip().replace(chr(10), '')}\t{key.split('/')[0]}" for key, text in made_up_documents(40).items()]
    plain = write_lines(tmp_path / "a" / "t.tsv", lines)
    packed = tmp_path / "b" / "t.tsv"
    packed.parent.mkdir()
    packed.write_bytes(gzip.compress(plain.read_bytes()))
    digests = []
    for path in (plain, packed):
        run_quickly(make_config(tmp_path, path, output_dir=str(path.parent / "dataset")))
        digests.append(digest_files(path.parent / "dataset"))
    assert digests[0] == digests[1]


@pytest.mark.parametrize("num_workers", [1, 2])
def test_errors_in_workers_are_ours_again(tmp_path: Path, num_workers: int) -> None:
    documents: dict[str, str | bytes] = {**made_up_documents(5), "体育/two\nlines.txt": b"\xff"}
    config = make_config(tmp_path, write_tree(tmp_path / "tree", documents))
    with pytest.raises(TooManyRejectedError) as caught:
        run(config, EngineOptions(num_workers=num_workers))
    message = str(caught.value)
    assert message.startswith(
        "1 of 6 documents rejected (16.7%), at most 1.0% allowed: 体育/two\\nlines.txt (not_utf-8"
    )
    assert message.endswith("correct them, or raise --max_rejected_fraction")
    assert not Path(config.output_dir).exists()


# Dry runs


def leave_unfinished(output: Path) -> None:
    """Make a dataset look as if its job had died just before the last rename."""
    (output / f"{STAGING_PREFIX}0badcafe").mkdir()
    (output / "dataset.json").rename(output / f"{STAGING_PREFIX}0badcafe" / "dataset.json")


def refusal(function: Callable[[PreprocessConfig, EngineOptions], object], *arguments: Any) -> tuple[type, str]:
    with pytest.raises(PipelineError) as caught:
        function(*arguments)
    return type(caught.value), str(caught.value)


@pytest.mark.parametrize("found", ["a dataset", "other files", "a file", "nothing that could be made"])
def test_a_dry_run_refuses_the_output_that_the_job_would(tmp_path: Path, found: str) -> None:
    config = make_config(tmp_path, write_tree(tmp_path / "tree", made_up_documents(12)))
    output = Path(config.output_dir)
    if found == "a dataset":
        run_quickly(config)
    elif found == "other files":
        write_tree(output, {"vocab.txt": "mine"})
    elif found == "a file":
        output.write_text("mine")
    else:
        config = dataclasses.replace(config, output_dir=str(tmp_path / "vocab.txt" / "below"))
    before = digest_files(tmp_path)
    engine = EngineOptions(num_workers=1)
    assert refusal(dry_run, config, engine) == refusal(run, config, engine)
    assert digest_files(tmp_path) == before


def test_a_dry_run_leaves_alone_what_other_jobs_left(tmp_path: Path) -> None:
    config = make_config(tmp_path, write_tree(tmp_path / "tree", made_up_documents(12)))
    with staging_directory(config):
        before = digest_files(tmp_path)
        assert refusal(dry_run, config, EngineOptions()) == refusal(run, config, EngineOptions())
        assert digest_files(tmp_path) == before
    run_quickly(config)
    leave_unfinished(Path(config.output_dir))
    before = digest_files(tmp_path)
    with pytest.raises(OutputExistsError, match="holds a dataset whose job died while publishing it; give another"):
        dry_run(config, EngineOptions())
    assert dry_run(dataclasses.replace(config, overwrite=True), EngineOptions()).startswith("dry run: 12 documents")
    assert digest_files(tmp_path) == before


def test_a_dry_run_refuses_the_engine_that_the_job_would(tmp_path: Path) -> None:
    config = make_config(tmp_path, write_tree(tmp_path / "tree", made_up_documents(12)))
    for engine in (EngineOptions(runner="FlinkRuner"), EngineOptions(num_workers=2, running_mode="in_memory")):
        assert refusal(dry_run, config, engine) == refusal(run, config, engine)


def test_a_dry_run_reads_with_the_options_of_the_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = make_config(tmp_path, write_tree(tmp_path / "tree", made_up_documents(12)))
    given: list[dict[str, Any]] = []
    monkeypatch.setattr(preprocess.FileSystems, "set_options", lambda options: given.append(options.get_all_options()))
    dry_run(config, EngineOptions(beam_args=("--s3_endpoint_url", "http://localhost:1")))
    assert [options["s3_endpoint_url"] for options in given] == ["http://localhost:1"]


@pytest.mark.parametrize("runner", ["DataflowRunner", "dataflowrunner", "Dataflow"])
def test_dataflow_takes_no_files_of_this_machine(tmp_path: Path, runner: str) -> None:
    tree = write_tree(tmp_path / "tree", made_up_documents(3))
    engine = EngineOptions(runner=runner)
    for inputs, output, told in (
        (["gs://b/corpus"], str(tmp_path / "dataset"), f"--output {tmp_path}/dataset"),
        (["gs://b/corpus", tree], "gs://b/dataset", f"--input {tree}"),
    ):
        config = make_config(tmp_path, *inputs, output_dir=output)
        expected = f"{told}: Dataflow's workers cannot reach the files of this machine; give a path in a bucket, gs://…"
        assert refusal(run, config, engine) == refusal(dry_run, config, engine) == (OptionError, expected)


def test_a_dry_run_on_dataflow_is_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = make_config(tmp_path, "gs://b/corpus", output_dir="gs://b/dataset")
    given: list[EngineOptions] = []

    def translate(_: PreprocessConfig, engine: EngineOptions) -> int:
        given.append(engine)
        return 42

    monkeypatch.setattr(preprocess, "_translate", translate)
    said = dry_run(config, EngineOptions(runner="DataflowRunner", beam_args=("--project", "p")))
    assert said == "Dataflow takes this job: 42 transforms; nothing was submitted"
    assert given == [EngineOptions(runner="DataflowRunner", beam_args=("--project", "p", "--dry_run=True"))]


@pytest.mark.parametrize("name", ["direct", "Direct", "directrunner", "fnapirunner"])
def test_this_machines_engine_is_found_however_it_is_spelt(name: str) -> None:
    """Beam would take these names for engines of its own."""
    assert EngineOptions(runner=name).is_local
