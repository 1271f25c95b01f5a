"""Beam's pool of Python workers on one address; Beam's own command takes every address of the machine.

    python worker_pool.py HOST:PORT

A TaskManager numbers its workers from 1, and a pool knows them by that number alone: two TaskManagers that share a pool
stop each other's workers. So each has its own, on a loopback address of its own, as it would on a machine of its own.
"""

import sys
import threading

import grpc
from apache_beam.portability.api import beam_fn_api_pb2_grpc
from apache_beam.runners.worker.worker_pool_main import BeamFnExternalWorkerPoolServicer
from apache_beam.utils import thread_pool_executor


def main(address: str) -> None:
    """Serve until killed."""
    server = grpc.server(thread_pool_executor.shared_unbounded_instance())
    server.add_insecure_port(address)
    beam_fn_api_pb2_grpc.add_BeamFnExternalWorkerPoolServicer_to_server(
        BeamFnExternalWorkerPoolServicer(use_process=True), server
    )
    server.start()
    threading.Event().wait()


if __name__ == "__main__":
    main(*sys.argv[1:])
