"""What a Dataflow worker does with a staged job, in an environment that has the staged package: run its graph.

    python dataflow_worker.py PIPELINE.pb OPTIONS.json

It runs as a script from elsewhere, so that nothing of the repository can be imported but what was staged.
"""

import json
import sys

from apache_beam.io.filesystems import FileSystems
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.portability.api import beam_runner_api_pb2
from apache_beam.runners.portability.fn_api_runner import fn_runner

import pipeline


def main(graph_path: str, options_path: str) -> None:
    """Run a staged graph to its end; raise what it raises."""
    with open(graph_path, "rb") as stream:
        graph = beam_runner_api_pb2.Pipeline.FromString(stream.read())
    with open(options_path, encoding="utf-8") as stream:
        options = PipelineOptions.from_dictionary(json.load(stream))
    FileSystems.set_options(options)
    for environment in graph.components.environments.values():
        # This process is the container.
        environment.urn, environment.payload = "beam:env:embedded_python:v1", b""
        del environment.dependencies[:]
    sys.stdout.write(f"running {len(graph.components.transforms)} transforms with {pipeline.__file__}\n")
    fn_runner.FnApiRunner().run_via_runner_api(graph, options).wait_until_finish()


if __name__ == "__main__":
    main(*sys.argv[1:])
