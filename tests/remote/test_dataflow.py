"""The job on Dataflow, as far as one gets without it: translated, and submitted to a stand-in for its service."""

import importlib.util
import os
import re
from pathlib import Path
from typing import Any

import pytest

from benchmarks.clusters.processes import copy_sources
from tests.remote.conftest import upload
from tests.remote.dataflow_service import dataflow_service
from tests.support import corpora

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not importlib.util.find_spec("gcp_storage_emulator"),
        reason="Dataflow's client is not installed; `make test-remote` installs and uses it",
    ),
    pytest.mark.filterwarnings("ignore"),
]

OPTIONS = (
    "--runner=DataflowRunner",
    "--project=offline-test",
    "--region=us-central1",
    "--temp_location=gs://test-bucket/tmp",
    "--staging_location=gs://test-bucket/staging",
    "--no_auth",
)


def test_a_dry_run_translates_the_job_and_submits_nothing(gcs: Any, local_dataset: Any) -> None:
    corpus, vocab, _ = local_dataset
    upload(corpus, vocab, lambda key, data: gcs.blob(key).upload_from_string(data))
    before = {blob.name for blob in gcs.client.list_blobs("test-bucket")}
    arguments = ["--input", "gs://test-bucket/corpus", "--vocab", vocab, "--output", "gs://test-bucket/elsewhere"]
    outcome = corpora.run_command_line(*arguments, *OPTIONS, "--dry_run")
    assert outcome.status == 0, outcome.stderr  # in which the emulator speaks, too
    assert re.fullmatch(r"Dataflow takes this job: \d+ transforms; nothing was submitted\n", outcome.stdout)
    assert {blob.name for blob in gcs.client.list_blobs("test-bucket")} == before


def test_a_submitted_job_runs_from_what_was_staged_and_gives_the_same_bytes(
    gcs: Any, local_dataset: Any, tmp_path: Path
) -> None:
    corpus, vocab, expected = local_dataset
    upload(corpus, vocab, lambda key, data: gcs.blob(key).upload_from_string(data))
    paths = ["--input", "gs://test-bucket/corpus", "--vocab", "gs://test-bucket/vocab.txt", "--num_shards", "2"]
    setup = copy_sources(tmp_path / "sources") / "setup.py"
    with dataflow_service(
        tmp_path / "service", lambda url: gcs.blob(url.split("/", 3)[3]).download_as_bytes()
    ) as service:
        outcome = corpora.run_command_line(
            *paths,
            *("--output", "gs://test-bucket/out", f"--setup_file={setup}", *OPTIONS),
            f"--dataflow_endpoint=http://localhost:{service.port}",
        )
    worker_log = (tmp_path / "service" / "worker.log").read_text()
    assert outcome.status == 0, f"{outcome.stderr}\n{worker_log}"
    assert "16 documents in" in outcome.stdout
    found = {
        os.path.basename(blob.name): blob.download_as_bytes()
        for blob in gcs.client.list_blobs("test-bucket", prefix="out/")
    }
    assert found == expected
    # The package that ran is the one that was staged.
    package = re.search(r"running \d+ transforms with (\S+)", worker_log)
    assert package
    assert package[1].startswith(str(tmp_path / "service" / "container"))
