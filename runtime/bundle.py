"""A bundle on disk: which files it has, whether they are whole, and which table is which."""

from __future__ import annotations

import hashlib
import os
import re
from dataclasses import dataclass
from pathlib import Path

from mutoscope.runtime.errors import BundleError, ParameterError, ScheduleError
from mutoscope.runtime.manifest import MANIFEST_NAME, ComponentRecord, Manifest
from mutoscope.runtime.schedule import ScheduleTable

# Files up to this size are compared with their sha256 whenever they are loaded (0.2 s at most);
# larger ones only by `mutoscope verify`, since reading them twice would double the start.
CHECK_ON_LOAD_BYTES = 64 * 2**20
DEFAULT_BUNDLE_PATH = Path(__file__).resolve().parent / "default_bundle"

_READ_BYTES = 2**20


@dataclass(frozen=True)
class Bundle:
    """One bundle whose files are all there, with the sizes that its manifest lists.

    Attributes:
        path: The folder.
        manifest: What the bundle says of itself.
    """

    path: Path
    manifest: Manifest

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Bundle:
        """Return the bundle in the folder at `path`.

        Raises:
            BundleError: There is no bundle, it is from a later format, or a file of it is absent,
                has another size, or lies outside the folder.
        """
        path = Path(path)
        if not path.exists():
            raise BundleError(
                f"{path} does not exist: give the folder of a bundle, or make one with "
                "mutoscope export CHECKPOINT -o BUNDLE"
            )
        if not path.is_dir():
            raise BundleError(f"{path} is a file; a bundle is a folder with {MANIFEST_NAME}")
        bundle = cls(path, Manifest.load(path / MANIFEST_NAME))
        for name in bundle.manifest.files:
            bundle.check_size(name)
        return bundle

    @classmethod
    def default(cls) -> Bundle:
        """Return the bundle that ships with mutoscope; raises `BundleError`."""
        if not (DEFAULT_BUNDLE_PATH / MANIFEST_NAME).is_file():
            raise BundleError(
                "this installation carries no default bundle: name one with --bundle DIR "
                "(VideoPipeline.open(DIR) in Python)"
            )
        return cls.open(DEFAULT_BUNDLE_PATH)

    def find_file(self, name: str) -> Path:
        """Return where a file of the bundle lies; symlinks may not lead out of the bundle.

        Raises:
            BundleError: It is absent or outside the bundle.
        """
        root = self.path.resolve()
        try:
            found = (root / name).resolve(strict=True)
        except (OSError, RuntimeError) as err:
            raise BundleError(
                f"{self.path} has no {name}, which {MANIFEST_NAME} lists: copy or export it again"
            ) from err
        if not found.is_relative_to(root):
            raise BundleError(f"{name} in {self.path} is a link that leads outside the bundle")
        return found

    def check_size(self, name: str) -> None:
        """Raise `BundleError` unless a file has the size that the manifest lists."""
        size, listed = self.find_file(name).stat().st_size, self.manifest.files[name].size_bytes
        if size != listed:
            raise BundleError(
                f"{name} has {size} bytes; {MANIFEST_NAME} lists {listed} (the file was cut short "
                "or changed after export): copy or export it again"
            )

    def check_digest(self, name: str) -> None:
        """Raise `BundleError` unless a file has the size and the sha256 that the manifest lists."""
        self.check_size(name)
        digest = hashlib.sha256()
        try:
            with self.find_file(name).open("rb") as file:
                while block := file.read(_READ_BYTES):
                    digest.update(block)
        except OSError as err:
            raise BundleError(f"{name} in {self.path} cannot be read: {err.strerror}") from err
        if digest.hexdigest() != self.manifest.files[name].sha256.lower():
            raise BundleError(
                f"{name} does not match its sha256 in {MANIFEST_NAME} (the file changed after "
                "export): copy or export it again"
            )

    def load_file(self, name: str) -> Path:
        """Return the path of a file that is about to be loaded, checked unless it is large."""
        path = self.find_file(name)
        if self.manifest.files[name].size_bytes <= CHECK_ON_LOAD_BYTES:
            self.check_digest(name)
        return path

    def load_graph(
        self, component_name: str, variant: str | None = None, *, for_cpu: bool = False
    ) -> Path:
        """Return the path of a component's graph, checked together with its external data.

        Args:
            component_name: A key of the manifest's components.
            variant: A key of its variants; None takes its default variant.
            for_cpu: Take the graph for processors, if there is one.

        Raises:
            BundleError: A file is damaged.
            ParameterError: The bundle has no such component or variant.
        """
        component = self.find_component(component_name)
        variant = variant or component.default_variant
        graph = component.variants.get(variant)
        if graph is None:
            raise ParameterError(
                f"{component_name} has no variant {variant!r}: use {', '.join(component.variants)}"
            )
        if for_cpu:
            graph = component.find_cpu_graph(variant)
        for name in find_external_data(self.manifest, component, graph):
            self.load_file(name)
        return self.load_file(graph)

    def check_variant(self, variant: str | None) -> None:
        """Raise `ParameterError` unless a component has this variant; None is always allowed.

        Components without it run their default variant (`ComponentRecord.choose_variant`).
        """
        known = {name: None for c in self.manifest.components.values() for name in c.variants}
        if variant is not None and variant not in known:
            raise ParameterError(
                f"variant {variant!r} is not in this bundle: use {', '.join(known)}"
            )

    def find_component(self, name: str) -> ComponentRecord:
        """Return a component of the manifest; raises `ParameterError`."""
        if name not in self.manifest.components:
            raise ParameterError(
                f"this bundle has no {name}; it has {', '.join(self.manifest.components)}"
            )
        return self.manifest.components[name]

    def find_scheduler(self, name: str) -> str:
        """Return the scheduler's name in the manifest.

        Args:
            name: That name in any case, or the class name of diffusers where they are alike:
                "EulerAncestralDiscreteScheduler" for "euler-ancestral".

        Raises:
            ParameterError: There is none or more than one; the message lists what there is.
        """
        names = list(self.manifest.schedules)
        for normalize in (str.casefold, shorten_scheduler):
            found = [known for known in names if normalize(known) == normalize(name)]
            if len(found) == 1:
                return found[0]
        raise ParameterError(f"scheduler {name!r} is not in this bundle: use {', '.join(names)}")

    def find_schedule(self, scheduler: str, num_inference_steps: int) -> str:
        """Return the path in the bundle of a table; raises `ParameterError`."""
        name = self.find_scheduler(scheduler)
        tables = self.manifest.schedules[name]
        if str(num_inference_steps) in tables:
            return tables[str(num_inference_steps)]
        steps = sorted(int(count) for count in tables)
        if not steps:
            raise ParameterError(
                f"scheduler {name!r} has no tables in this bundle: use another one"
            )
        nearest = min(steps, key=lambda count: (abs(count - num_inference_steps), count))
        raise ParameterError(
            f"num_inference_steps is {num_inference_steps}; this bundle has tables of "
            f"{name} for {describe_counts(steps)} steps: use {nearest}"
        )

    def load_schedule(self, scheduler: str, num_inference_steps: int) -> ScheduleTable:
        """Return a table.

        Raises:
            BundleError: The file is damaged.
            ParameterError: The bundle has no such scheduler or number of steps.
            ScheduleError: It is not a valid table.
        """
        name = self.find_schedule(scheduler, num_inference_steps)
        table = ScheduleTable.load(self.load_file(name))
        if table.num_inference_steps != num_inference_steps:
            raise ScheduleError(
                f"{name} has {table.num_inference_steps} steps where {MANIFEST_NAME} lists it for "
                f"{num_inference_steps}: export again"
            )
        return table


def find_external_data(manifest: Manifest, component: ComponentRecord, graph: str) -> list[str]:
    """Return the files that a graph of a component may read beside itself.

    They are in its folder. One whose name is that of a graph with more behind it, as in
    model.onnx.data, is that graph's alone; a graph for processors without any reads those of the
    plain graph of its variant. One of another name may be read by every graph. What was cut out of
    another component (`weights_of`) reads what that one's graph of the same variant and kind does.

    Raises:
        BundleError: There is no such component, or it has no such graph.
    """
    if component.weights_of is not None:
        component, graph = _find_whole(manifest, component, graph)
    folder = graph.rpartition("/")[0]
    names = [name for name in manifest.files if name.rpartition("/")[0] == folder]
    graphs = [name for name in names if name.endswith(".onnx")]
    owners = {
        name: next((owner for owner in graphs if name.startswith(owner)), None)
        for name in names
        if not name.endswith((".onnx", ".json"))
    }
    if graph not in owners.values():
        variants = (v for v, cpu_graph in component.cpu_graphs.items() if cpu_graph == graph)
        graph = next((component.variants[variant] for variant in variants), graph)
    return [name for name, owner in owners.items() if owner in (graph, None)]


def _find_whole(
    manifest: Manifest, component: ComponentRecord, graph: str
) -> tuple[ComponentRecord, str]:
    """The component that a component was cut out of, and its graph that a graph was cut out of."""
    whole = manifest.components.get(str(component.weights_of))
    if whole is not None:
        for graphs, sources in (
            (component.variants, whole.variants),
            (component.cpu_graphs, whole.cpu_graphs),
        ):
            for variant, path in graphs.items():
                if path == graph and variant in sources:
                    return whole, sources[variant]
    raise BundleError(
        f"{MANIFEST_NAME}: {graph} has the weights of {component.weights_of}, which has no such "
        "graph: export again"
    )


def list_graph_files(manifest: Manifest, component: ComponentRecord, graph: str) -> list[str]:
    """Return a graph of a component and the files that it may read; see `find_external_data`."""
    return [graph, *find_external_data(manifest, component, graph)]


def describe_counts(counts: list[int]) -> str:
    """Return sorted whole numbers as ranges: "1-4, 8, 16"."""
    parts: list[list[int]] = []
    for count in counts:
        if parts and count == parts[-1][-1] + 1:
            parts[-1].append(count)
        else:
            parts.append([count])
    return ", ".join(f"{p[0]}-{p[-1]}" if len(p) > 1 else str(p[0]) for p in parts)


def shorten_scheduler(name: str) -> str:
    """Return what the short name of a scheduler and its class name in diffusers have in common."""
    return re.sub("scheduler|discrete|multistep|[^a-z0-9+]", "", name.casefold())
