"""Emulators of S3 and Google Cloud Storage, a corpus, and what this machine makes of it."""

import json
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import run_preprocess
from tests.support import corpora


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


@pytest.fixture
def gcs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[object]:
    from gcp_storage_emulator.server import create_server
    from google.auth.credentials import AnonymousCredentials
    from google.cloud import storage

    port = free_port()
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", f"http://127.0.0.1:{port}")
    monkeypatch.setenv("GOOGLE_CLOUD_PROJECT", "offline-test")
    monkeypatch.setenv("NO_GCE_CHECK", "true")
    # Without credentials Beam tries to find some for half a minute; these are good for nothing and never expire.
    names = ("client_id", "client_secret", "refresh_token", "token")
    credentials = dict.fromkeys(names, "none") | {"type": "authorized_user", "expiry": "2999-01-01T00:00:00Z"}
    (tmp_path / "credentials.json").write_text(json.dumps(credentials))
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "credentials.json"))
    server = create_server("127.0.0.1", port, in_memory=True, default_bucket="test-bucket")
    server.start()
    yield storage.Client(project="offline-test", credentials=AnonymousCredentials()).bucket("test-bucket")
    server.stop()
