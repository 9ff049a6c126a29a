"""Refuse a session that leaves work to the CPU, though another execution provider was asked for.

onnxruntime runs on the CPU whatever the execution provider does not take, and says nothing. Some
of it belongs there: the arithmetic of shapes, a few numbers that a device would only be waited for.
That is a node with an operator from SHAPE_OPERATORS, of which no input, output or weight has more
than MAX_SMALL_ELEMENTS elements. There are two looks: when the graph is loaded, at the operators,
which onnxruntime tells since version 1.24; and after the first run, in its profile, at the sizes.
"""

from __future__ import annotations

import json
import math
import shutil
import tempfile
import weakref
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mutoscope.engines.errors import ExecutionProviderError
from mutoscope.engines.onnxruntime_providers import (
    EXECUTION_PROVIDERS,
    ExecutionProvider,
    list_others,
)

# A choice: 8 KiB at most. It leaves room for what has no kernel for CUDA in a text encoder, the
# search for the end of a prompt, which reads 77 whole numbers.
MAX_SMALL_ELEMENTS = 1024
_MAX_WEIGHT_BYTES = 8 * MAX_SMALL_ELEMENTS

# What shapes, indices and masks are computed with; anything else is work.
_SHAPE_OPERATORS = (
    "Abs Add And ArgMax Cast Ceil Clip Concat Constant ConstantOfShape Div Equal Expand Floor "
    "Gather GatherElements GatherND Greater GreaterOrEqual Identity If Less LessOrEqual Loop Max "
    "Min Mod Mul Neg NonZero Not Or Range ReduceMax ReduceMin ReduceProd ReduceSum Reshape Round "
    "ScatterND Shape Sign Size Slice Split Sqrt Squeeze Sub Tile Transpose Unsqueeze Where"
)
SHAPE_OPERATORS = frozenset(_SHAPE_OPERATORS.split())

_CPU = EXECUTION_PROVIDERS["cpu"].full_name
_PROFILE_NAME_SUFFIX = "_kernel_time"
_NUM_NAMED = 3
_NUM_KINDS = 5


@dataclass(frozen=True)
class _Node:
    """Where a node is, and whether it may be shape arithmetic by its size."""

    name: str
    operator: str
    full_provider_name: str
    is_small: bool = True


class PlacementCheck:
    """The two looks at one session, from before it is made until after its first run."""

    def __init__(self, graph_name: str, provider: ExecutionProvider) -> None:
        """Make the check.

        Args:
            graph_name: What to call the graph in messages.
            provider: The execution provider that was asked for.
        """
        self._graph_name = graph_name
        self._provider = provider
        folder = tempfile.mkdtemp(prefix="mutoscope-")
        self._folder = Path(folder)
        self._remove = weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)

    def prepare(self, options: Any) -> None:
        """Set in the options of a session, before it is made, what both looks need."""
        # Unknown to versions before 1.24, which ignore it.
        options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
        options.enable_profiling = True
        options.profile_file_prefix = str(self._folder / "profile")

    def check_loaded(self, session: Any) -> bool:
        """Return whether nothing is on the CPU, so that the first run need not be looked at.

        Raises:
            ExecutionProviderError: There is work on the CPU.
        """
        if not hasattr(session, "get_provider_graph_assignment_info"):
            return False
        nodes = [
            _Node(node.name, node.op_type, part.ep_name)
            for part in session.get_provider_graph_assignment_info()
            for node in part.get_nodes()
        ]
        self._refuse_work(nodes)
        if any(node.full_provider_name == _CPU for node in nodes):
            return False
        self.close(session)
        return True

    def check_run(self, session: Any) -> None:
        """Look at the first run, and stop profiling.

        Raises:
            ExecutionProviderError: There was work on the CPU.
        """
        path = session.end_profiling()
        events = json.loads(Path(path).read_text(encoding="utf-8"))
        self._remove()
        # A node in a loop has an event for each turn.
        nodes: dict[str, _Node] = {}
        for event in events:
            ran = event.get("args", {})
            if event.get("cat") != "Node" or "provider" not in ran:
                continue
            name = event["name"].removesuffix(_PROFILE_NAME_SUFFIX)
            is_small = _is_small(ran) and (name not in nodes or nodes[name].is_small)
            nodes[name] = _Node(name, ran["op_name"], ran["provider"], is_small)
        self._refuse_work(list(nodes.values()))

    def close(self, session: Any) -> None:
        """Stop profiling, if it is still on, and remove what it wrote."""
        if self._remove.alive:
            session.end_profiling()
            self._remove()

    def _refuse_work(self, nodes: list[_Node]) -> None:
        """Raise if there are nodes on the CPU that are not shape arithmetic, or no others."""
        is_idle = all(node.full_provider_name != self._provider.full_name for node in nodes)
        work = [
            node
            for node in nodes
            if node.full_provider_name == _CPU
            and (is_idle or not node.is_small or node.operator not in SHAPE_OPERATORS)
        ]
        if not work:
            return
        kinds = Counter(node.operator for node in work).most_common()
        listed = ", ".join(f"{number} {operator}" for operator, number in kinds[:_NUM_KINDS])
        more = f" and {len(kinds) - _NUM_KINDS} other kinds" if len(kinds) > _NUM_KINDS else ""
        names = [node.name for node in work if node.name][:_NUM_NAMED]
        first = f"; the first: {', '.join(names)}" if names else ""
        raise ExecutionProviderError(
            f"{self._graph_name}: execution provider {self._provider.name!r} leaves {len(work)} of "
            f"{len(nodes)} nodes to the CPU ({listed}{more}{first}): accept that with "
            f"--allow-cpu-nodes (allow_cpu_nodes=True), or use {list_others(self._provider)}"
        )


def _is_small(node: dict[str, Any]) -> bool:
    """Whether what a node in a profile read and wrote is the size of shape arithmetic."""
    tensors = [*node.get("input_type_shape", ()), *node.get("output_type_shape", ())]
    shapes = (shape for tensor in tensors for shape in tensor.values())
    has_small_weights = int(node.get("parameter_size", 0)) <= _MAX_WEIGHT_BYTES
    return has_small_weights and all(math.prod(shape) <= MAX_SMALL_ELEMENTS for shape in shapes)
