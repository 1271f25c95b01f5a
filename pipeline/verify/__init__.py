"""A dataset read back and checked: `python -m pipeline.verify DIR`.

`verify` checks a whole dataset, `check_shard` one shard. Each `Fault` is one thing that is wrong. May import
`pipeline.dataset`, `pipeline.tokenization`, `pipeline.corpus` and the base modules; neither TensorFlow nor Beam.
"""

from pipeline.verify.dataset import Findings, verify
from pipeline.verify.shards import Fault, check_shard

__all__ = ["Fault", "Findings", "check_shard", "verify"]
