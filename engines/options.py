"""What runs the graphs: the choices that are the same for all graphs of a bundle."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from mutoscope.engines.errors import EngineError

Memory = Literal["normal", "low"]
MEMORY_MODES: tuple[Memory, ...] = ("normal", "low")

# What OpenVINO may compute in, and its name for a processor that can.
PRECISIONS = {"f32": "FP32", "bf16": "BF16"}
# As people type them; "openvino" alone is openvino:f32. "auto" takes for each component the engine
# that was measured to be the fastest here.
AUTO = "auto"
# These run what was built of a graph, with the module of this name.
TENSORRT_MODULES = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}
ENGINES = ("onnxruntime", "openvino:f32", "openvino:bf16", *TENSORRT_MODULES, AUTO)
DEFAULT_ENGINE = "onnxruntime"
DEFAULT_EXECUTION_PROVIDER = "cpu"
_CPU_FULL_NAME = "CPUExecutionProvider"


@dataclass(frozen=True)
class EngineOptions:
    """What runs a graph, and how.

    Attributes:
        engine: One of ENGINES, or "openvino", which is "openvino:f32".
        execution_provider: What onnxruntime runs on; "cpu" with every other engine.
        num_threads: Threads for one operator on the CPU; None leaves it to the engine, which takes
            one for each core.
        memory: "low" leaves weights in their file, where the operating system can drop them, and
            gives the memory of a run back after it.
        allow_cpu_nodes: Whether onnxruntime may run nodes on the CPU that another execution
            provider does not take.
        provider_options: onnxruntime's own options of the execution provider, as pairs of text,
            such as ("device_id", "1").
        cuda_graphs: Whether TensorRT records a run for each shape, and plays it again.
        weight_budget_bytes: How much of the weights TensorRT keeps on the device, of an engine that
            was built to stream them; None keeps all.
    """

    engine: str = DEFAULT_ENGINE
    execution_provider: str = DEFAULT_EXECUTION_PROVIDER
    num_threads: int | None = None
    memory: Memory = "normal"
    allow_cpu_nodes: bool = False
    provider_options: tuple[tuple[str, str], ...] = ()
    cuda_graphs: bool = False
    weight_budget_bytes: int | None = None

    def __post_init__(self) -> None:
        """Raise `EngineError` for what no machine could run."""
        if self.engine not in (*ENGINES, "openvino"):
            raise EngineError(f"engine is {self.engine!r}: use one of {', '.join(ENGINES)}")
        check_threads_and_memory(self.num_threads, self.memory)
        if self.execution_provider == _CPU_FULL_NAME:
            object.__setattr__(self, "execution_provider", DEFAULT_EXECUTION_PROVIDER)
        for name, is_default in (
            ("execution_provider", self.execution_provider == DEFAULT_EXECUTION_PROVIDER),
            ("allow_cpu_nodes", not self.allow_cpu_nodes),
            ("provider_options", not self.provider_options),
        ):
            if not is_default and self.name != DEFAULT_ENGINE:
                raise EngineError(
                    f"{name} is {getattr(self, name)!r}, which is onnxruntime's: leave it out with "
                    f"engine {self.engine!r}, or use engine {DEFAULT_ENGINE!r}"
                )
        for name, is_default in (
            ("cuda_graphs", not self.cuda_graphs),
            ("weight_budget_bytes", self.weight_budget_bytes is None),
        ):
            if not is_default and not self.runs_plans:
                raise EngineError(
                    f"{name} is {getattr(self, name)!r}, which is TensorRT's: leave it out with "
                    f"engine {self.engine!r}, or use engine {AUTO!r}"
                )

    @property
    def name(self) -> str:
        """The engine without its precision: "onnxruntime", "openvino", "tensorrt"."""
        return self.engine.partition(":")[0]

    @property
    def precision(self) -> str:
        """What an engine that can choose computes in: "f32" or "bf16"."""
        return self.engine.partition(":")[2] or "f32"

    @property
    def runs_plans(self) -> bool:
        """Whether what was built for TensorRT is run, if there is any."""
        return self.engine in (*TENSORRT_MODULES, AUTO)

    @property
    def uses_cpu_graphs(self) -> bool:
        """Whether graphs that were rewritten for processors run here, and are faster."""
        return self.execution_provider == DEFAULT_EXECUTION_PROVIDER and not self.runs_plans


def check_threads_and_memory(num_threads: int | None, memory: str) -> None:
    """Raise `EngineError` unless `num_threads` is None or 1 and more, and `memory` is a mode."""
    if num_threads is not None and num_threads < 1:
        raise EngineError(f"num_threads is {num_threads}; it must be at least 1: use 1")
    if memory not in MEMORY_MODES:
        raise EngineError(
            f"memory is {memory!r}; it must be one of {', '.join(MEMORY_MODES)}: use normal"
        )
