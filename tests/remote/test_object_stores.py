"""The job from and to object stores: real Beam file systems against emulators of S3 and Google Cloud Storage.

Run by `make test-remote` in an environment that has them; TensorFlow is not in it, which this proves as well.
"""

import importlib.util
import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import run_preprocess
from tests.pipeline import corpora

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not all(importlib.util.find_spec(name) for name in ("moto", "gcp_storage_emulator")),
        reason="the emulators are not installed; `make test-remote` installs and uses them",
    ),
    # Beam and the emulators are full of other people's deprecations.
    pytest.mark.filterwarnings("ignore"),
]


@pytest.fixture
def local_dataset(tmp_path: Path) -> tuple[Path, Path, dict[str, bytes]]:
    """Return a corpus, a vocabulary, and the files of the dataset that comes of them on local disk."""
    corpus = corpora.write_tree(tmp_path / "corpus", corpora.made_up_documents(16))
    vocab = corpora.write_vocab(tmp_path / "vocab.txt")
    output = tmp_path / "dataset"
    assert preprocess(corpus, vocab, output) == 0
    return corpus, vocab, {path.name: path.read_bytes() for path in output.iterdir()}


def preprocess(corpus: object, vocab: object, output: object, *options: str) -> int:
    arguments = ["--input", str(corpus), "--vocab", str(vocab), "--output", str(output), "--num_shards", "2"]
    return run_preprocess.main([*arguments, *corpora.QUICK, *options])


def upload(corpus: Path, vocab: Path, put: Callable[[str, bytes], None]) -> None:
    for path in corpus.rglob("*.txt"):
        put(f"corpus/{path.relative_to(corpus)}", path.read_bytes())
    put("vocab.txt", vocab.read_bytes())


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[object, str]]:
    import boto3
    from moto.server import ThreadedMotoServer

    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    endpoint = f"http://{host}:{port}"
    client = boto3.client("s3", endpoint_url=endpoint)
    client.create_bucket(Bucket="bucket")
    yield client, endpoint
    server.stop()


def test_s3_gives_the_same_bytes_as_local_disk(s3, local_dataset) -> None:
    client, endpoint = s3
    corpus, vocab, expected = local_dataset
    upload(corpus, vocab, lambda key, data: client.put_object(Bucket="bucket", Key=key, Body=data))
    status = preprocess("s3://bucket/corpus", "s3://bucket/vocab.txt", "s3://bucket/out", "--s3_endpoint_url", endpoint)
    assert status == 0
    keys = [item["Key"] for item in client.list_objects_v2(Bucket="bucket", Prefix="out/")["Contents"]]
    found = {key.removeprefix("out/"): client.get_object(Bucket="bucket", Key=key)["Body"].read() for key in keys}
    assert found == expected


@pytest.fixture
def gcs(monkeypatch: pytest.MonkeyPatch) -> Iterator[object]:
    from gcp_storage_emulator.server import create_server
    from google.auth.credentials import AnonymousCredentials
    from google.cloud import storage

    port = free_port()
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", f"http://127.0.0.1:{port}")
    monkeypatch.setenv("GOOGLE_CLOUD_PROJECT", "offline-test")
    monkeypatch.setenv("NO_GCE_CHECK", "true")
    server = create_server("127.0.0.1", port, in_memory=True, default_bucket="test-bucket")
    server.start()
    yield storage.Client(project="offline-test", credentials=AnonymousCredentials()).bucket("test-bucket")
    server.stop()


def test_google_cloud_storage_gives_the_same_bytes_as_local_disk(gcs, local_dataset) -> None:
    corpus, vocab, expected = local_dataset
    upload(corpus, vocab, lambda key, data: gcs.blob(key).upload_from_string(data))
    options = ("--no_auth", "--project", "offline-test")
    status = preprocess("gs://test-bucket/corpus", "gs://test-bucket/vocab.txt", "gs://test-bucket/out", *options)
    assert status == 0
    blobs = gcs.client.list_blobs("test-bucket", prefix="out/")
    found = {os.path.basename(blob.name): blob.download_as_bytes() for blob in blobs}
    assert found == expected
