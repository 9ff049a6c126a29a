"""A stand-in for what runs plans in `tensorrt` and `tensorrt_rtx`, on `EmulatedCuda`.

A plan is an ONNX graph with a head; onnxruntime computes it, on the emulated memory. It refuses
what TensorRT refuses, and what would be undefined there raises `Misuse`.
"""

from __future__ import annotations

import enum
import io
import math
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import onnx
import onnx.numpy_helper
import onnxruntime

from tests.engines.emulated_cuda import EmulatedCuda, Misuse

HEAD = b"EMULATED PLAN\n"
STREAMABLE_BYTES = 1000
WEIGHTS_BYTES = 1200


def save_plan(path: Path, model: onnx.ModelProto, *, minimum: int = 1, maximum: int = 8) -> Path:
    """Write a plan that takes these lengths of every axis that has a name."""
    model = onnx.ModelProto.FromString(model.SerializeToString())
    onnx.helper.set_model_props(model, {"minimum": str(minimum), "maximum": str(maximum)})
    path.write_bytes(HEAD + model.SerializeToString())
    return path


class Enum(enum.Enum):
    def __int__(self) -> int:
        return self.value


class ILogger:
    ERROR = "error"
    INTERNAL_ERROR = "internal error"
    WARNING = "warning"

    def __init__(self):
        self.is_made = True


class Engine:
    """A plan whose weights are there; one without weights must be refitted."""

    def __init__(self, trt: EmulatedTensorrt, log, model: onnx.ModelProto) -> None:
        self.trt, self.log, self.model = trt, log, model
        props = {prop.key: int(prop.value) for prop in model.metadata_props}
        self.limits = props["minimum"], props["maximum"]
        self.streamable_weights_size = STREAMABLE_BYTES if trt.can_stream else 0
        self.weight_streaming_budget_v2 = self.streamable_weights_size
        self.tensors = {t.name: t for t in (*model.graph.input, *model.graph.output)}
        self.session = onnxruntime.InferenceSession(model.SerializeToString())

    @property
    def num_io_tensors(self):
        return len(self.tensors)

    def get_tensor_name(self, index):
        return list(self.tensors)[index]

    def get_tensor_mode(self, name):
        is_input = name in {tensor.name for tensor in self.model.graph.input}
        return TensorIOMode.INPUT if is_input else TensorIOMode.OUTPUT

    def get_tensor_location(self, name):
        return self.trt.location

    def get_tensor_dtype(self, name):
        return self.tensors[name].type.tensor_type.elem_type

    def get_tensor_shape(self, name):
        axes = self.tensors[name].type.tensor_type.shape.dim
        return [axis.dim_value if axis.HasField("dim_value") else -1 for axis in axes]

    def get_tensor_profile_shape(self, name, profile):
        assert profile == 0
        least, most = self.limits
        shape = self.get_tensor_shape(name)
        return [[n if n >= 0 else limit for n in shape] for limit in (least, most, most)]

    def get_engine_stat(self, stat):
        return WEIGHTS_BYTES

    def create_runtime_config(self):
        self.trt.config = RuntimeConfig(self.trt)
        return self.trt.config

    def create_execution_context(self, how):
        config = how if isinstance(how, RuntimeConfig) else None
        strategy = config.strategy if config else how
        if strategy is not ExecutionContextAllocationStrategy.USER_MANAGED:
            raise Misuse("memory is given, so TensorRT must not take it too")
        return Context(self)


class RuntimeConfig:
    def __init__(self, trt) -> None:
        self.trt = trt
        self.strategy = self.cache = None
        self.cuda_graph_strategy = CudaGraphStrategy.DISABLED
        self.dynamic_shapes_kernel_specialization_strategy = None

    def set_execution_context_allocation_strategy(self, strategy):
        self.strategy = strategy

    def create_runtime_cache(self):
        return RuntimeCache()

    def set_runtime_cache(self, cache):
        self.cache = cache
        cache.kernels = cache.kernels or b"KERNELS compiled"
        return True


class RuntimeCache:
    def __init__(self):
        self.kernels = b""

    def deserialize(self, blob):
        is_taken = bytes(blob).startswith(b"KERNELS")
        self.kernels = bytes(blob) if is_taken else self.kernels
        return is_taken

    def serialize(self):
        return self.kernels


class Context:
    """What runs a plan; it keeps the shapes and addresses that it was told."""

    def __init__(self, engine: Engine) -> None:
        self.engine, self.cuda = engine, engine.trt.cuda
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.addresses: dict[str, int] = {}
        self.memory = 0, 0
        self.is_new = True

    def set_input_shape(self, name, shape):
        low, _, high = self.engine.get_tensor_profile_shape(name, 0)
        if not all(a <= n <= b for a, n, b in zip(low, shape, high, strict=True)):
            self.engine.log.log(ILogger.ERROR, f"{name} is out of\n  the profile")
            return False
        self.shapes[name], self.is_new = tuple(shape), True
        self.memory = 0, 0
        return True

    def infer_shapes(self):
        return [
            value.name
            for value in self.engine.session.get_inputs()
            if value.name not in self.shapes
        ]

    def get_tensor_shape(self, name):
        if self.engine.trt.is_data_dependent:
            return [-1]
        zeros = {
            value.name: np.zeros(self.shapes[value.name], self.find_dtype(value.name))
            for value in self.engine.session.get_inputs()
        }
        return list(self.engine.session.run([name], zeros)[0].shape)

    def update_device_memory_size_for_shapes(self):
        if self.engine.trt.memory_failure:
            self.engine.log.log(ILogger.ERROR, self.engine.trt.memory_failure)
            return 0
        return 4 * sum(math.prod(shape) for shape in self.shapes.values())

    def set_device_memory(self, address, size):
        if size < self.update_device_memory_size_for_shapes():
            raise Misuse("too little working memory")
        self.cuda.find(address, size)
        self.memory = address, size

    def set_tensor_address(self, name, address):
        self.cuda.find(address, 1)
        self.addresses[name] = address
        return True

    def execute_async_v3(self, stream):
        if self.engine.trt.failure:
            self.engine.log.log(ILogger.WARNING, "not this")
            self.engine.log.log(ILogger.ERROR, self.engine.trt.failure)
            return False
        if self.cuda.recording is not None and self.is_new:
            # TensorRT finishes for new shapes what cannot be recorded.
            self.cuda.is_invalidated = True
        self.is_new = False
        if not self.memory[1]:
            raise Misuse("there is no working memory for these shapes")
        # What is recorded goes on with the shapes and addresses of now.
        shapes, addresses, memory = dict(self.shapes), dict(self.addresses), self.memory
        self.cuda.enqueue(stream, lambda: self.compute(shapes, addresses, memory))
        return True

    def compute(self, shapes, addresses, memory):
        self.cuda.find(*memory).fill(0x5A)
        feeds = {name: self.read(name, addresses[name], shape) for name, shape in shapes.items()}
        names = [value.name for value in self.engine.session.get_outputs()]
        results = self.engine.session.run(names, feeds)
        for name, array in zip(names, results, strict=True):
            data = np.frombuffer(array.tobytes(), np.uint8)
            np.copyto(self.cuda.find(addresses[name], array.nbytes), data)

    def read(self, name, address, shape):
        dtype = self.find_dtype(name)
        data = self.cuda.find(address, math.prod(shape) * dtype.itemsize)
        return data.view(dtype).reshape(shape).copy()

    def find_dtype(self, name):
        return np.dtype(self.engine.trt.nptype(self.engine.get_tensor_dtype(name)))


class Refitter:
    def __init__(self, engine, log):
        self.engine = engine

    def refit_cuda_engine(self):
        return self.engine.trt.can_refit


class OnnxParserRefitter:
    num_errors = 0

    def __init__(self, refitter, log):
        self.engine, self.log = refitter.engine, log

    def refit_from_file(self, path):
        weights = {tensor.name: tensor for tensor in onnx.load(path).graph.initializer}
        model = self.engine.model
        names = [tensor.name for tensor in model.graph.initializer]
        if set(names) != set(weights):
            self.log.log(ILogger.ERROR, f"other weights: {', '.join(weights)}")
            return False
        del model.graph.initializer[:]
        model.graph.initializer.extend(weights[name] for name in names)
        self.engine.session = onnxruntime.InferenceSession(model.SerializeToString())
        return True


TensorIOMode = Enum("TensorIOMode", ["INPUT", "OUTPUT"])
TensorLocation = Enum("TensorLocation", ["DEVICE", "HOST"])
ExecutionContextAllocationStrategy = Enum(
    "ExecutionContextAllocationStrategy", ["STATIC", "USER_MANAGED"]
)
CudaGraphStrategy = Enum("CudaGraphStrategy", ["DISABLED", "WHOLE_GRAPH_CAPTURE"])
KernelStrategy = Enum("DynamicShapesKernelSpecializationStrategy", ["LAZY", "EAGER"])


class EmulatedTensorrt(ModuleType):
    """The module, as "tensorrt" or as "tensorrt_rtx".

    Attributes:
        cuda: The GPU that it runs on.
        failure: What is logged when a run fails; empty if runs do not fail.
        start_failure: What is logged when the module cannot use the driver.
        memory_failure: What is logged when it cannot find how much memory shapes need.
        host_code_allowed: What the last runtime was told.
        config: The last runtime config, of "tensorrt_rtx".
    """

    __version__ = "10.3.0"
    ILogger = ILogger
    Refitter = Refitter
    OnnxParserRefitter = OnnxParserRefitter
    TensorIOMode = TensorIOMode
    TensorLocation = TensorLocation
    ExecutionContextAllocationStrategy = ExecutionContextAllocationStrategy

    def __init__(self, cuda: EmulatedCuda, name: str = "tensorrt") -> None:
        super().__init__(name)
        self.cuda = cuda
        self.failure = self.start_failure = self.memory_failure = ""
        self.location = TensorLocation.DEVICE
        self.can_stream = self.is_data_dependent = False
        self.can_refit = True
        self.runtime = self.config = None
        if name == "tensorrt_rtx":
            self.CudaGraphStrategy = CudaGraphStrategy
            self.DynamicShapesKernelSpecializationStrategy = KernelStrategy
            self.EngineStat = SimpleNamespace(TOTAL_WEIGHTS_SIZE=0)

    def install(self, monkeypatch) -> None:
        monkeypatch.setitem(sys.modules, self.__name__, self)

    def nptype(self, dtype):
        return onnx.helper.tensor_dtype_to_np_dtype(dtype).type

    def Runtime(self, log):  # noqa: N802
        assert log.is_made
        if self.start_failure:
            log.log(ILogger.ERROR, self.start_failure)
            # As TensorRT 11.4 does; whatever is done with it crashes.
            return None

        def deserialize(data):
            data = io.BytesIO(data).read()
            if not data.startswith(HEAD):
                log.log(ILogger.ERROR, "the magic\n tag does not match")
                return None
            return Engine(self, log, onnx.ModelProto.FromString(data[len(HEAD) :]))

        self.runtime = SimpleNamespace(
            engine_host_code_allowed=False, deserialize_cuda_engine=deserialize
        )
        return self.runtime
