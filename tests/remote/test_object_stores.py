"""The job from and to object stores: real Beam file systems against emulators of S3 and Google Cloud Storage.

Run by `make test-remote` in an environment that has them; TensorFlow is not in it, which this proves as well.
"""

import importlib.util
import os
from typing import Any

import pytest

from tests.remote.conftest import preprocess, upload

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not all(importlib.util.find_spec(name) for name in ("moto", "gcp_storage_emulator")),
        reason="the emulators are not installed; `make test-remote` installs and uses them",
    ),
    # Beam and the emulators are full of other people's deprecations.
    pytest.mark.filterwarnings("ignore"),
]


def test_s3_gives_the_same_bytes_as_local_disk(s3: Any, local_dataset: Any) -> None:
    client, endpoint = s3
    corpus, vocab, expected = local_dataset
    upload(corpus, vocab, lambda key, data: client.put_object(Bucket="bucket", Key=key, Body=data))
    status = preprocess("s3://bucket/corpus", "s3://bucket/vocab.txt", "s3://bucket/out", "--s3_endpoint_url", endpoint)
    assert status == 0
    keys = [item["Key"] for item in client.list_objects_v2(Bucket="bucket", Prefix="out/")["Contents"]]
    found = {key.removeprefix("out/"): client.get_object(Bucket="bucket", Key=key)["Body"].read() for key in keys}
    assert found == expected


def test_google_cloud_storage_gives_the_same_bytes_as_local_disk(gcs: Any, local_dataset: Any) -> None:
    corpus, vocab, expected = local_dataset
    upload(corpus, vocab, lambda key, data: gcs.blob(key).upload_from_string(data))
    options = ("--no_auth", "--project", "offline-test")
    status = preprocess("gs://test-bucket/corpus", "gs://test-bucket/vocab.txt", "gs://test-bucket/out", *options)
    assert status == 0
    blobs = gcs.client.list_blobs("test-bucket", prefix="out/")
    found = {os.path.basename(blob.name): blob.download_as_bytes() for blob in blobs}
    assert found == expected
