"""What a TensorFlow function asks of its device: its operations outside and inside of XLA's programs."""

import collections
import dataclasses
from collections.abc import Iterator
from typing import Any

# They compute nothing, or nothing but shapes, which the host knows.
FREE_OPS = frozenset(
    {"_Arg", "_Retval", "Placeholder", "Const", "NoOp", "Identity", "IdentityN", "ReadVariableOp", "StopGradient"}
    | {"Shape", "ShapeN", "Reshape", "ExpandDims", "Squeeze", "BroadcastGradientArgs", "VarHandleOp", "ConcatOffset"}
)
CALLS = ("StatefulPartitionedCall", "PartitionedCall")
XLA_PROGRAM = "XLA program"


@dataclasses.dataclass(frozen=True)
class Operation:
    """One node of a function, or of a function it calls.

    Attributes:
        node: its `NodeDef`.
        compiled: whether it is part of an XLA program.
    """

    node: Any
    compiled: bool


def operations(concrete_function: Any) -> Iterator[Operation]:
    """Yield every operation of a function and of all that it calls; a branch or a loop's body counts once."""
    graph = concrete_function.graph.as_graph_def()
    functions = {function.signature.name: function for function in graph.library.function}

    def walk(nodes: Any, compiled: bool) -> Iterator[Operation]:
        for node in nodes:
            yield Operation(node, compiled)
            for value in node.attr.values():
                for called in [value.func.name, *(function.name for function in value.list.func)]:
                    if called in functions:
                        function = functions[called]
                        yield from walk(function.node_def, compiled or function.attr["_XlaMustCompile"].b)

    yield from walk(graph.node, False)


def launches_outside_xla(concrete_function: Any) -> collections.Counter[str]:
    """Count what is launched one by one: kernels that compute, by operation, and XLA programs as one each."""
    graph = concrete_function.graph.as_graph_def()
    compiled = {function.signature.name for function in graph.library.function if function.attr["_XlaMustCompile"].b}
    counts: collections.Counter[str] = collections.Counter()
    for operation in operations(concrete_function):
        node = operation.node
        if operation.compiled or node.op in FREE_OPS:
            continue
        if node.op not in CALLS:
            counts[node.op] += 1
        elif node.attr["f"].func.name in compiled:
            counts[XLA_PROGRAM] += 1
    return counts
