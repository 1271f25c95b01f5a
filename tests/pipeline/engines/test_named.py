"""Engines by name: what is refused before any document is read, and what workers elsewhere need."""

import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest
from apache_beam.options.pipeline_options import DirectOptions, PipelineOptions, TypeOptions

from pipeline.engines.named import BeamOptions, EngineOptions, fix_num_partitions, make_named_runner
from pipeline.errors import OptionError, OutputWriteError
from pipeline.filesystem import is_installed
from pipeline.job.preprocess import beam_errors_as_ours, run, with_absolute_paths
from pipeline.job.publish import publish_dataset
from tests.support import corpora


def test_an_unknown_runner_is_refused_before_the_output_is_touched(tmp_path: Path) -> None:
    config = corpora.make_config(tmp_path, corpora.write_tree(tmp_path / "tree", corpora.made_up_documents(3)))
    with pytest.raises(OptionError, match="--runner FlinkRuner: Unexpected pipeline runner: FlinkRuner"):
        run(config, EngineOptions(runner="FlinkRuner"))
    assert not Path(config.output_dir).exists()


@pytest.mark.parametrize("option", [{"num_workers": 7}, {"running_mode": "in_memory"}])
def test_options_of_this_machines_engine_are_refused_for_others(option: dict[str, Any]) -> None:
    (name,) = option
    message = f"--direct_{name}: only used with --runner DirectRunner, which is 'FlinkRunner'"
    with pytest.raises(OptionError, match=message):
        EngineOptions(runner="FlinkRunner", **option)


@pytest.mark.parametrize(
    ("runner", "module", "extra"),
    [("DaskRunner", "distributed", "dask"), ("DataflowRunner", "google.cloud.storage", "gcp")],
)
def test_an_engine_that_is_not_installed_says_what_to_install(runner: str, module: str, extra: str) -> None:
    if is_installed(module):
        pytest.skip(f"{module} is installed here")
    expected = f"--runner {runner}: this installation has no {module}; pip install 'apache-beam[{extra}]'"
    with pytest.raises(OptionError, match=re.escape(expected)):
        make_named_runner(EngineOptions(runner=runner))


class DataflowRuntimeException(Exception):  # noqa: N818
    """Has the name of Beam's, which can be imported only where Dataflow's client is installed."""


@pytest.mark.parametrize(
    ("error", "kind", "message"),
    [
        (
            RuntimeError(
                "Unable to fetch remote job server jar at https://example.org/x.jar: HTTP Error 404: Not "
                "Found. Also failed to fetch from a mirror. If no Internet access, stage it"
            ),
            OptionError,
            "--runner FlinkRunner: Beam cannot fetch its job server: Unable to fetch remote job server jar at "
            "https://example.org/x.jar: HTTP Error 404: Not Found; give the path of its jar with "
            "--flink_job_server_jar or --spark_job_server_jar",
        ),
        (
            ModuleNotFoundError("No module named 'pipeline'"),
            OptionError,
            "--runner FlinkRunner: its workers lack this package (No module named 'pipeline'); install it where they "
            "run, or send it along with --setup_file setup.py",
        ),
        (
            DataflowRuntimeException("Dataflow pipeline failed. State: FAILED, Error:\nquota"),
            OutputWriteError,
            "Dataflow pipeline failed. State: FAILED, Error: quota; the job's page in the console says more",
        ),
    ],
)
def test_what_engines_fail_with_is_one_line(error: Exception, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind) as caught, beam_errors_as_ours("FlinkRunner"):
        raise error
    assert str(caught.value) == message


def test_other_errors_keep_their_traceback() -> None:
    with pytest.raises(ModuleNotFoundError, match="pipelines"), beam_errors_as_ours("FlinkRunner"):
        raise ModuleNotFoundError("No module named 'pipelines'")


def test_views_of_beams_options_are_made_once_and_share_their_values() -> None:
    flags = ["--direct_num_workers=3", "--no_pipeline_type_check", "--profile_cpu"]
    options, expected = BeamOptions(flags, job_name="kept"), PipelineOptions(flags, job_name="kept")
    view = options.view_as(DirectOptions)
    assert view is options.view_as(DirectOptions)
    assert isinstance(view, DirectOptions)
    assert options.view_as(TypeOptions).pipeline_type_check is False
    assert options.get_all_options() == expected.get_all_options()
    view.direct_num_workers = 5
    assert options.get_all_options()["direct_num_workers"] == 5
    assert BeamOptions(flags).view_as(DirectOptions).direct_num_workers == 3


def test_engines_that_spread_elements_themselves_get_no_partitions() -> None:
    assert fix_num_partitions(EngineOptions(runner="FlinkRunner"), PipelineOptions([])) == 0


def test_workers_elsewhere_get_absolute_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    corpora.write_tree(tmp_path / "tree", corpora.made_up_documents(3))
    job = corpora.make_job(corpora.make_config(tmp_path, "tree", output_dir="dataset"))
    moved = with_absolute_paths(job)
    assert [source.path for source in moved.sources] == [str(tmp_path / "tree")]
    assert moved.config.output_dir == str(tmp_path / "dataset")
    remote = dataclasses.replace(job, config=dataclasses.replace(job.config, output_dir="gs://bucket/out"), sources=())
    assert with_absolute_paths(remote).config.output_dir == "gs://bucket/out"


@pytest.mark.parametrize("num_partitions", [1, 3, 40])
def test_a_job_that_cuts_its_work_itself_gives_the_same_bytes(tmp_path: Path, num_partitions: int) -> None:
    """Fewer partitions than sources, as many, and more than chunks."""
    import apache_beam as beam

    from pipeline.engines.local_runner import make_local_runner
    from pipeline.job.preprocess import build

    documents = corpora.made_up_documents(1_200)
    inputs = [corpora.write_tree(tmp_path / "tree", documents)]
    inputs += [corpora.write_lines(tmp_path / f"{name}.tsv", [f"{name}新闻\t体育"] * 3) for name in ("山", "水")]
    config = corpora.make_config(tmp_path, *inputs, num_shards=2)
    corpora.run_quickly(config)
    expected = corpora.digest_files(Path(config.output_dir))
    again = dataclasses.replace(config, output_dir=str(tmp_path / "again"))
    (tmp_path / "again").mkdir()
    job = dataclasses.replace(corpora.make_job(again), num_partitions=num_partitions)
    runner = make_local_runner(PipelineOptions([]), num_workers=1, mode="in_memory", log_path=None, process_ids_path="")
    with beam.Pipeline(runner=runner) as pipeline:
        build(pipeline, job)
    assert corpora.digest_files(tmp_path / "again") == expected


@pytest.mark.parametrize(("change", "arrived"), [("lost", 9), ("doubled", 11)])
def test_what_an_engine_lost_or_doubled_is_not_published(tmp_path: Path, change: str, arrived: int) -> None:
    config = corpora.make_config(
        tmp_path, corpora.write_tree(tmp_path / "tree", corpora.made_up_documents(10)), num_shards=1
    )
    Path(config.output_dir).mkdir()
    job = corpora.make_job(config)
    (batch,) = corpora.first_pass(job)
    plan = corpora.make_plan([batch], job)
    references = batch.by_split["train"]
    batch.by_split["train"] = references[1:] if change == "lost" else [*references, references[0]]
    reports = corpora.second_pass([batch], plan, job)
    with pytest.raises(OutputWriteError, match=rf"lost documents or made them twice: 10 were read, {arrived} arrived"):
        publish_dataset(reports, plan, job)
    assert not (Path(config.output_dir) / "dataset.json").exists()
