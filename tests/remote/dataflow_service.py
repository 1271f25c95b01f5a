"""A small stand-in for the Dataflow service on loopback: its REST API, and one worker in a clean environment.

It answers what Beam's client asks (create, get and list messages of a job), and does with a job what the service's
workers do: fetch what was staged, install the staged package without any download, and run the staged graph.
"""

import dataclasses
import http.server
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_JOB = re.compile(r"/v1b3/projects/[^/]+/locations/[^/]+/jobs(?:/(?P<id>[^/?]+)(?P<rest>/[^?]*)?)?(?:\?.*)?")
_WORKER = Path(__file__).with_name("dataflow_worker.py")


@dataclasses.dataclass
class Service:
    """The service's state.

    Attributes:
        directory: where the worker's environment, its files and its log are.
        fetch: returns the content of a `gs://` object.
        port: where it listens.
        jobs: id → the job as it was posted, with its `currentState`.
        threads: one per job.
    """

    directory: Path
    fetch: Callable[[str], bytes]
    port: int = 0
    jobs: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)
    threads: list[threading.Thread] = dataclasses.field(default_factory=list)

    def create(self, job: dict[str, Any]) -> dict[str, Any]:
        """Take a job and start to run it."""
        identifier = f"job-{len(self.jobs)}"
        job |= {"id": identifier, "currentState": "JOB_STATE_RUNNING", "projectId": "offline-test", "location": "here"}
        self.jobs[identifier] = job
        thread = threading.Thread(target=self._run, args=(job,))
        self.threads.append(thread)
        thread.start()
        return job

    def _run(self, job: dict[str, Any]) -> None:
        state = "JOB_STATE_FAILED"
        try:
            self._work(job)
            state = "JOB_STATE_DONE"
        finally:
            job["currentState"] = state

    def _work(self, job: dict[str, Any]) -> None:
        options = job["environment"]["sdkPipelineOptions"]["options"]
        graph_path, options_path = self.directory / "pipeline.pb", self.directory / "options.json"
        graph_path.write_bytes(self.fetch(options["pipelineUrl"]))
        # A worker is told everything but to submit a job; in JSON's way all numbers have become floating.
        passed = {
            key: int(value) if isinstance(value, float) else value
            for key, value in options.items()
            if key not in ("runner", "dataflow_endpoint", "setup_file")
        }
        options_path.write_text(json.dumps(passed))
        packages = job["environment"]["workerPools"][0]["packages"]
        (staged,) = [package for package in packages if package["name"].endswith(".tar.gz")]
        archive = self.directory / staged["name"]
        archive.write_bytes(self.fetch("gs://" + staged["location"].removeprefix("storage.googleapis.com/")))
        python = self._make_container()
        pip = [python, "-m", "pip", "--disable-pip-version-check", "install", "--no-index", "--no-build-isolation"]
        with open(self.directory / "worker.log", "wb") as log:
            for command in ([*pip, archive], [python, _WORKER, graph_path, options_path]):
                subprocess.run(command, check=True, cwd=self.directory, stdout=log, stderr=log, timeout=300)

    def _make_container(self) -> Path:
        """Make a new environment that has what Beam's container image has, and nothing of this project."""
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", self.directory / "container"], check=True)
        (image,) = [path for path in sys.path if path.startswith(sys.prefix) and path.endswith("site-packages")]
        (site,) = (self.directory / "container" / "lib").glob("python*/site-packages")
        (site / "image.pth").write_text(image + os.linesep)
        return self.directory / "container" / "bin" / "python"


def _handler(service: Service) -> type[http.server.BaseHTTPRequestHandler]:
    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            """Say nothing."""

        def _answer(self, content: dict[str, Any], status: int = 200) -> None:
            body = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            self._answer(service.create(body) if _JOB.fullmatch(self.path) else {}, 200)

        def do_GET(self) -> None:
            found = _JOB.fullmatch(self.path)
            job = service.jobs.get(found["id"] or "") if found else None
            if found is None or job is None:
                self._answer({"error": {"code": 404, "message": self.path, "status": "NOT_FOUND"}}, 404)
            elif found["rest"]:
                self._answer({})  # messages and metrics: there are none
            else:
                self._answer({key: job[key] for key in ("id", "currentState", "projectId", "location", "name", "type")})

    return Handler


@contextmanager
def dataflow_service(directory: Path, fetch: Callable[[str], bytes]) -> Iterator[Service]:
    """Run the service on a loopback port until the block ends."""
    directory.mkdir(parents=True, exist_ok=True)
    service = Service(directory, fetch)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _handler(service))
    service.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield service
    finally:
        for running in service.threads:
            running.join()
        server.shutdown()
        thread.join()
        server.server_close()
