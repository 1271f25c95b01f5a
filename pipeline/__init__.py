"""From documents to sharded TFRecords, and from TFRecords to batches."""
