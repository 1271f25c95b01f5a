"""Where the job runs: this machine's cores, or an engine that Beam knows by name.

Imports Beam, but no TensorFlow, and of `pipeline` only the base modules. Nothing is re-exported: a worker process
starts in `local_worker`, before Beam is imported.
"""
