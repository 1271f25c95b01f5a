"""From documents to sharded TFRecords, and from TFRecords to batches.

Packages, each of which imports only from those below it:

    input_pipeline   TFRecords → `tf.data` batches; the only TensorFlow in here
    verify           a dataset read back and checked
    job              the Beam job: documents → shards and `dataset.json`
    engines          where the job runs: this machine, or an engine that Beam knows
    corpus           where documents come from: trees, archives, tables
    tokenization     text → BERT ids
    dataset          what lies on disk: schema, labels, records, shards, `dataset.json`
    sample_corpus    a made-up corpus

`command_line`, `filesystem` and `errors` are below all of them; `pipeline` never imports `model`.
"""

VERSION = "0.1.0"
