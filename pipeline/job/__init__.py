"""The Beam job: documents → shards and `dataset.json`.

`preprocess.run` and `preprocess.dry_run` are its entry points, `transforms` the Beam steps; `references`,
`shard_writer` and `publish` do the work of those steps and know nothing of Beam. Imports no TensorFlow, and of
`pipeline` what is below.
"""
