"""What lies on disk: the stored example, label maps, records, shard names, `dataset.json`.

Imports neither TensorFlow nor Beam, and of `pipeline` only its base modules.
"""

from pipeline.dataset.info import DatasetInfo, read_dataset_info

__all__ = ["DatasetInfo", "read_dataset_info"]
