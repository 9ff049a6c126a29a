"""A stand-in for the builder of `tensorrt`, which needs a GPU: it notes what it is asked for."""

from __future__ import annotations

import enum
import sys
from types import ModuleType, SimpleNamespace

CACHE = b"TIMINGS"


class ILogger:
    ERROR = "error"
    INTERNAL_ERROR = "internal error"


class IProgressMonitor:
    pass


class BuilderFlag(enum.Enum):
    REFIT = 1
    STRIP_PLAN = 2
    WEIGHT_STREAMING = 3
    VERSION_COMPATIBLE = 4
    REFIT_IDENTICAL = 5


class Config:
    """What a build was asked for; setting anything that TensorRT 10.3 has not is an error."""

    __slots__ = (
        "builder_optimization_level",
        "cache",
        "flags",
        "hardware_compatibility_level",
        "limits",
        "profiles",
        "progress_monitor",
    )

    def __init__(self):
        self.flags, self.limits, self.profiles, self.cache = set(), {}, [], None

    def set_flag(self, flag):
        self.flags.add(flag)

    def set_memory_pool_limit(self, pool, size):
        self.limits[pool] = size

    def add_optimization_profile(self, profile):
        self.profiles.append(profile.shapes)
        return len(self.profiles) - 1

    def create_timing_cache(self, data):
        return SimpleNamespace(data=data, serialize=lambda: data + b" and more")

    def set_timing_cache(self, cache, ignore_mismatch):
        assert not ignore_mismatch
        is_taken = not cache.data or cache.data.startswith(CACHE)
        self.cache = cache if is_taken else self.cache
        return is_taken


class Profile:
    def __init__(self):
        self.shapes = {}

    def set_shape(self, name, *shapes):
        self.shapes[name] = shapes


class Builder:
    def __init__(self, log):
        pass

    def create_network(self, flags):
        assert flags == 1 << EmulatedBuilder.NetworkDefinitionCreationFlag.STRONGLY_TYPED
        tensor = SimpleNamespace(name="x", is_shape_tensor=False)
        return SimpleNamespace(num_inputs=1, get_input=lambda index: tensor)

    def create_builder_config(self):
        EmulatedBuilder.config = Config()
        return EmulatedBuilder.config

    def create_optimization_profile(self):
        return Profile()

    def build_serialized_network(self, network, config):
        return memoryview(b"PLAN")


class OnnxParser:
    num_errors = 0

    def __init__(self, network, log):
        pass

    def parse_from_file(self, path):
        return True


class EmulatedBuilder(ModuleType):
    """The module `tensorrt`; `config` is that of the last build."""

    __version__ = "10.3.0"
    ILogger = ILogger
    IProgressMonitor = IProgressMonitor
    Builder = Builder
    BuilderFlag = BuilderFlag
    OnnxParser = OnnxParser
    NetworkDefinitionCreationFlag = enum.IntEnum(
        "NetworkDefinitionCreationFlag", {"EXPLICIT_BATCH": 0, "STRONGLY_TYPED": 1}
    )
    MemoryPoolType = SimpleNamespace(WORKSPACE="workspace")
    HardwareCompatibilityLevel = SimpleNamespace(AMPERE_PLUS="ampere and newer")
    config: Config

    def install(self, monkeypatch) -> None:
        monkeypatch.setitem(sys.modules, "tensorrt", self)
