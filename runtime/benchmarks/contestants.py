"""Who takes part in a benchmark: our engines, and what people would use instead."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from mutoscope.engines.opening import check_available
from mutoscope.engines.options import DEFAULT_ENGINE, DEFAULT_EXECUTION_PROVIDER, EngineOptions
from mutoscope.runtime.errors import MissingExtraError, ParameterError
from mutoscope.runtime.manifest import ComponentRecord

WORKER = "mutoscope.runtime.benchmarks.worker"
# By name: the runtime may not depend on the export, which may not be installed.
TORCH_WORKER = "mutoscope.export.peers"
TORCH_PACKAGES = ("torch", "diffusers", "transformers")

# By the name that people type: who answers, and what it is told beside bundle and component.
_PLAIN = {"kind": "plain", "engine": "onnxruntime", "execution_provider": "cpu", "memory": "normal"}
PEERS: dict[str, tuple[str, dict[str, Any]]] = {
    "diffusers": (TORCH_WORKER, {"dtype": "float32", "compiled": False}),
    "diffusers-bf16": (TORCH_WORKER, {"dtype": "bfloat16", "compiled": False}),
    "diffusers-compile": (TORCH_WORKER, {"dtype": "float32", "compiled": True}),
    "diffusers-compile-bf16": (TORCH_WORKER, {"dtype": "bfloat16", "compiled": True}),
    "onnxruntime-plain": (WORKER, _PLAIN),
    "openvino": (WORKER, {"kind": "openvino", "precision": "f32"}),
    "openvino:bf16": (WORKER, {"kind": "openvino", "precision": "bf16"}),
}
# Those whose outputs the others are compared with, the best first.
REFERENCES = ("diffusers", "onnxruntime-plain")


@dataclass(frozen=True)
class Contestant:
    """One that takes part.

    Attributes:
        name: As the table calls it.
        module: Its worker, a module that is run.
        settings: What the worker is told beside the component, as JSON can hold it.
        is_peer: It is not ours.
        variant: What it is to compute in, where a component has that; None for the default.
    """

    name: str
    module: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    is_peer: bool = False
    variant: str | None = None


def make_own(bundle: Path, options: EngineOptions, variant: str | None = None) -> Contestant:
    """Return us with an engine and a variant; raises `EngineError` if that is not on this machine.

    See `choose_variants` for what a component without the variant does.
    """
    check_available(options)
    provider = options.execution_provider
    engine = options.name
    if engine != DEFAULT_ENGINE:
        engine += f":{options.precision}"
    where = "" if provider == DEFAULT_EXECUTION_PROVIDER else f" ({provider})"
    settings = {
        "kind": "own",
        "bundle": str(bundle),
        "engine": engine,
        "execution_provider": provider,
        "num_threads": options.num_threads,
        "memory": options.memory,
    }
    return Contestant(f"mutoscope {engine}{where}", WORKER, settings, variant=variant)


def choose_variants(contestants: Iterable[Contestant], record: ComponentRecord) -> list[Contestant]:
    """Return who takes part for one component, named after the variant that it runs.

    Those that would run the same one again, since the component lacks theirs, are left out.
    """
    chosen: dict[str, Contestant] = {}
    for contestant in contestants:
        if contestant.variant is not None:
            variant = record.choose_variant(contestant.variant)
            contestant = replace(
                contestant,
                name=f"{contestant.name} {variant}",
                settings={**contestant.settings, "variant": variant},
                variant=variant,
            )
        chosen.setdefault(contestant.name, contestant)
    return list(chosen.values())


def make_peers(
    names: Sequence[str],
    bundle: Path,
    *,
    num_threads: int | None = None,
    checkpoint: str | None = None,
    checkpoint_options: Mapping[str, Any] | None = None,
) -> list[Contestant]:
    """Return the peers of these names, once each, in their order.

    Args:
        names: Keys of PEERS.
        bundle: The bundle's folder.
        num_threads: Threads for each; None leaves it to each library.
        checkpoint: What the bundle was made of; for peers that run it.
        checkpoint_options: What the export was given with it.

    Raises:
        EngineError: OpenVINO is not installed, or the processor lacks a precision.
        MissingExtraError: A package is not installed.
        ParameterError: A name is unknown, or the checkpoint is missing.
    """
    for name in names:
        if name not in PEERS:
            raise ParameterError(f"peer {name!r} is unknown: use {', '.join(PEERS)}")
        if PEERS[name][0] == TORCH_WORKER:
            _check_torch(name, checkpoint)
        elif name.startswith("openvino"):
            check_available(EngineOptions(name))
    common = {"bundle": str(bundle), "num_threads": num_threads}
    torch_only = {"checkpoint": checkpoint, "options": dict(checkpoint_options or {})}
    return [
        Contestant(
            name,
            PEERS[name][0],
            {**common, **PEERS[name][1], **(torch_only if PEERS[name][0] == TORCH_WORKER else {})},
            is_peer=True,
        )
        for name in dict.fromkeys(names)
    ]


def runs_checkpoint(names: Sequence[str]) -> bool:
    """Return whether one of these peers runs the checkpoint, not the bundle."""
    return any(PEERS[name][0] == TORCH_WORKER for name in names if name in PEERS)


def _check_torch(name: str, checkpoint: str | None) -> None:
    if checkpoint is None:
        raise ParameterError(
            f"peer {name!r} runs the checkpoint that the bundle was made of: add --checkpoint DIR"
        )
    if not Path(checkpoint).exists():
        raise ParameterError(
            f"checkpoint {checkpoint} does not exist: give the folder that was exported"
        )
    for package in TORCH_PACKAGES:
        if importlib.util.find_spec(package) is None:
            raise MissingExtraError(
                f"peer {name!r} needs {package}, which is not installed: "
                "pip install 'mutoscope[export]'"
            )
