"""The graphs of a bundle, loaded when they are first used."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Mapping

from mutoscope.engines.engine import Array, Engine
from mutoscope.engines.opening import open_engine
from mutoscope.engines.options import DEFAULT_ENGINE, TENSORRT_MODULES, EngineOptions
from mutoscope.runtime.bundle import Bundle
from mutoscope.runtime.engine_choice import FoundGraph, GraphFinder, Shapes, open_found
from mutoscope.runtime.errors import EngineError
from mutoscope.runtime.manifest import LATENTS, is_denoiser
from mutoscope.runtime.row_plan import find_first_denoiser
from mutoscope.runtime.timings import Timings

# The fields of Timings, which name the usual components.
TIMED_PARTS = {field.name for field in dataclasses.fields(Timings)}


class Components:
    """The engines of one bundle on one device.

    Graph inputs are fed by where the manifest says that their value comes from, in the type that
    the graph declares, so that inputs may have any name.
    """

    def __init__(
        self,
        bundle: Bundle,
        options: EngineOptions,
        variant: str | None = None,
    ) -> None:
        """Prepare to load the bundle's components; nothing is loaded yet.

        Args:
            bundle: The bundle.
            options: What runs its graphs.
            variant: What the graphs compute in, such as "int8": run by each component that has it,
                where the others run their default variant. None takes the default of each.

        Raises:
            ParameterError: No component has this variant.
        """
        self._bundle = bundle
        self._options = options
        self._graphs = GraphFinder(bundle, options, variant)
        self._engines: dict[str, Engine] = {}
        self._found: dict[str, FoundGraph] = {}
        self._properties: dict[str, str] = {}

    @property
    def denoiser(self) -> str:
        """The first component that denoises; raises `ParameterError`."""
        return find_first_denoiser(self._bundle.manifest)

    @property
    def loaded(self) -> tuple[str, ...]:
        """The names of the components in memory."""
        return tuple(self._engines)

    @property
    def engine_properties(self) -> dict[str, str]:
        """What runs the graphs, from `Engine.properties`; empty before the first is loaded."""
        return dict(self._properties)

    def find_variant(self, name: str) -> str:
        """Return the variant that a component runs; raises as `load`."""
        found = self._found.get(name)
        return found.variant if found else self._graphs.find_variant(name)

    def describe(self, name: str) -> str:
        """Return what runs a component, in words; raises as `load`."""
        found = self._found.get(name)
        return str(found) if found else self._graphs.describe(name)

    def check_latents(self, name: str, shape: tuple[int, ...]) -> None:
        """Raise `EngineError` unless something runs a component on latents of this shape.

        Nothing is loaded: it is for before the work.
        """
        inputs = self._bundle.find_component(name).inputs
        taking = (key for key, record in inputs.items() if record.source == LATENTS)
        self._graphs.check(name, dict.fromkeys(taking, shape))

    def load(self, name: str, timings: Timings, shapes: Shapes | None = None) -> Engine:
        """Return the engine of a component, loading it if need be.

        Args:
            name: The component.
            timings: Where the time of loading is added.
            shapes: Those of the inputs: another engine is loaded where the one in memory does not
                take them, and one that was built does. None for any.

        Raises:
            BundleError: A file of it is damaged.
            EngineError: Its graph does not load, or is not what the manifest says.
            ParameterError: The bundle has no such component.
        """
        engine = self._engines.get(name)
        if engine is not None and (shapes is None or _takes(engine, shapes)):
            return engine
        with timings.measure("seconds_load"):
            found = self._graphs.find(name, shapes)
            if engine is not None and found == self._found.get(name):
                return engine
            self.unload(name)
            engine = self._engines[name] = open_found(found)
            self._found[name] = found
        self._properties = dict(engine.properties)
        check_declaration(self._bundle, name, engine)
        return engine

    def replace(self, name: str, engine: Engine) -> None:
        """Let a component run on an engine that is open already, until it is unloaded.

        Raises:
            EngineError: It does not take and return what the manifest says of the component.
            ParameterError: The bundle has no such component.
        """
        check_declaration(self._bundle, name, engine)
        self.unload(name)
        self._found.pop(name, None)
        self._engines[name] = engine

    def is_replaced(self, name: str) -> bool:
        """Whether a component runs on an engine that the caller opened; see `replace`."""
        return name in self._engines and name not in self._found

    def check_tiles(self, name: str) -> None:
        """Raise `EngineError` unless a decoder can run in tiles."""
        if self._options.engine in TENSORRT_MODULES:
            raise EngineError(
                f"{name} in tiles is not built for {self._options.engine}: leave memory_limit out, "
                f"or use engine {DEFAULT_ENGINE!r}"
            )

    def make_opener(self, name: str) -> Callable[[str], Engine]:
        """Return what opens the tile graphs of a decoder, by their paths in the bundle.

        They are float32, whichever variant is asked for. Their engines are the caller's, to close.
        Weights are checked once, here; raises `BundleError`.
        """
        self.check_tiles(name)
        self._bundle.load_graph(name, self._bundle.find_component(name).choose_variant("float32"))

        def open_graph(path: str) -> Engine:
            return open_engine(self._bundle.load_file(path), self._graphs.graph_options)

        return open_graph

    def unload(self, name: str) -> None:
        """Free the memory of a component; it is loaded again when it is next used."""
        engine = self._engines.pop(name, None)
        if engine is not None:
            engine.close()

    def release(self, name: str) -> None:
        """Say that a component is not needed for a while: with low memory, it is freed."""
        if self._options.memory == "low":
            self.unload(name)

    def run(self, name: str, timings: Timings, sources: dict[str, Array]) -> Array:
        """Run a component and return its first output; see `run_all`."""
        outputs = self.run_all(name, timings, sources)
        return outputs[next(iter(self._bundle.manifest.components[name].outputs))]

    def run_all(self, name: str, timings: Timings, sources: dict[str, Array]) -> dict[str, Array]:
        """Run a component and return its outputs by name, as the graph made them.

        Args:
            name: The component.
            timings: Where the time is added, under `seconds_` and the part's name.
            sources: A value for each source that the manifest may name. Single numbers are
                given the one axis that the graph wants.
        """
        return self.run_feeds(name, timings, self.make_feeds(name, sources))

    def run_feeds(
        self,
        name: str,
        timings: Timings,
        feeds: Mapping[str, Array],
        outputs: Mapping[str, Array] | None = None,
        wanted: Collection[str] | None = None,
    ) -> dict[str, Array]:
        """Run a component on what `make_feeds` returned; see `run_all` and `Engine.run`."""
        shapes = {input_name: array.shape for input_name, array in feeds.items()}
        engine = self.load(name, timings, shapes)
        with timings.measure("seconds_load"):
            engine.prepare(shapes)
        part = f"seconds_{'denoiser' if is_denoiser(name) else name}"
        with timings.measure(part if part in TIMED_PARTS else "seconds_other"):
            return engine.run(feeds, outputs, wanted)

    def make_feeds(self, name: str, sources: dict[str, Array]) -> dict[str, Array]:
        """Return an array for each input of a component, of the type that its graph declares.

        An array is new only where type or layout differ from the source's.

        Raises:
            EngineError: An input comes from a source that is not in `sources`.
        """
        feeds: dict[str, Array] = {}
        for input_name, record in self._bundle.manifest.components[name].inputs.items():
            if record.source not in sources:
                raise EngineError(
                    f"{name} takes {input_name} from {record.source}, which it is not given here: "
                    "export the bundle again"
                )
            value = sources[record.source].astype(record.dtype, order="C", copy=False)
            feeds[input_name] = value.reshape(1) if value.ndim < len(record.shape) == 1 else value
        return feeds


def _takes(engine: Engine, shapes: Shapes) -> bool:
    """Whether an engine that has limits takes inputs of these shapes."""
    return all(
        least <= length <= greatest
        for name, spec in engine.inputs.items()
        if spec.minimum and spec.maximum and name in shapes
        for least, length, greatest in zip(spec.minimum, shapes[name], spec.maximum, strict=True)
    )


def check_declaration(bundle: Bundle, name: str, engine: Engine) -> None:
    """Raise `EngineError` unless a graph takes and returns what the manifest says of it."""
    component = bundle.find_component(name)
    for kind, records, specs in (
        ("input", component.inputs, engine.inputs),
        ("output", component.outputs, engine.outputs),
    ):
        if set(records) != set(specs):
            raise EngineError(
                f"{name}: the manifest lists the {kind}s {', '.join(records)}; the graph has "
                f"{', '.join(specs)}: export again"
            )
        for tensor_name, record in records.items():
            spec = specs[tensor_name]
            same_shape = len(record.shape) == len(spec.shape) and all(
                # What one of them calls variable, the other may know the length of.
                listed == actual or isinstance(listed, str) or isinstance(actual, str)
                for listed, actual in zip(record.shape, spec.shape, strict=True)
            )
            if record.dtype != spec.dtype or not same_shape:
                shape = ", ".join(str(length) for length in record.shape)
                raise EngineError(
                    f"{name}: the manifest lists {kind} {tensor_name} as {record.dtype}[{shape}]; "
                    f"the graph has {spec}: export again"
                )
