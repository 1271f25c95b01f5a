"""Where the job runs: this machine's cores, or an engine that Beam knows by name.

Imports Beam, but no TensorFlow, and of `pipeline` only the base modules. Re-exports nothing: a worker process starts in
`local_workers`, before Beam is imported.
"""
