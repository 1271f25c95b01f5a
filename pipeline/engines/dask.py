"""Beam's Dask runner, corrected: each partition gets its own list for its output.

Beam gives all partitions of a step one list to write to. Where Dask runs several partitions in one task, the second
finds the elements of the first in it and passes them on again, without an error (seen with Beam 2.77 and Dask 2026.8).
"""

import copy
from collections.abc import Callable, Sequence
from typing import Any

import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.runners.dask import transform_evaluator
from apache_beam.runners.dask.dask_runner import DaskOptions, DaskRunner

# By default Beam puts everything into one partition, so that one worker does all the work.
_NUM_PARTITIONS = 64


def run_isolated(items: Any, function: Callable[..., list[Any]], *shared: Any) -> list[Any]:
    """Run a step on one partition with copies of the arguments that Beam shares between partitions."""
    # One copy of all, because one argument holds the list from which the function reads its result.
    return function(items, *copy.deepcopy(shared))


class _IsolatingBag:
    """The part of a Dask bag's interface that Beam's translation of a step uses."""

    def __init__(self, bag: Any):
        self._bag = bag

    def map(self, function: Callable[..., Any], *args: Any) -> "_IsolatingBag":
        return _IsolatingBag(self._bag.map(function, *args))

    def map_partitions(self, function: Callable[..., list[Any]], *shared: Any) -> Any:
        return self._bag.map_partitions(run_isolated, function, *shared)


class _IsolatedParDo(transform_evaluator.ParDo):
    def apply(self, input_bag: Any, side_inputs: Sequence[Any] | None = None) -> Any:
        return super().apply(_IsolatingBag(input_bag), side_inputs)


def make_dask_runner() -> DaskRunner:
    """Make the runner."""
    transform_evaluator.TRANSLATIONS[beam.ParDo] = _IsolatedParDo
    return DaskRunner()


def fix_num_partitions(options: PipelineOptions) -> int:
    """Return the number of partitions of the first step, which every step keeps; set it unless the user did."""
    dask_options = options.view_as(DaskOptions)
    if not dask_options.npartitions and not dask_options.partition_size:
        dask_options.npartitions = _NUM_PARTITIONS
    return int(dask_options.npartitions or _NUM_PARTITIONS)
