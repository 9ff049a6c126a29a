"""Run the contestants of a benchmark in turn, so that a busy machine is busy for all of them."""

from __future__ import annotations

import functools
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from mutoscope.engines.engine import Array, Tensors
from mutoscope.runtime.benchmarks.contestants import REFERENCES, Contestant, make_peers
from mutoscope.runtime.benchmarks.memory import read_status, watch_memory
from mutoscope.runtime.benchmarks.records import Failure, GuidanceRow, Row, Seconds
from mutoscope.runtime.benchmarks.worker import save_arrays
from mutoscope.runtime.benchmarks.worker_process import WorkerError, WorkerProcess, make_command

# Threads of a library spin for a while after a run, in case that there is more to do.
SETTLE_SECONDS = 0.1

Report = Callable[[str], None]
Turn = Callable[[], float]
Measured = tuple[tuple[Row, ...], tuple[GuidanceRow, ...], tuple[Failure, ...]]


def summarize(seconds: list[float]) -> Seconds:
    """Return the median, the minimum and the count."""
    return Seconds(statistics.median(seconds), min(seconds), len(seconds))


def take_turns(
    turns: Mapping[str, Turn],
    *,
    warm_ups: int,
    count: int,
    on_failure: Callable[[str, WorkerError], None],
) -> dict[str, list[float]]:
    """Return the seconds of `count` runs of each, all running once in every round.

    Args:
        turns: What runs once and returns its seconds, by name.
        warm_ups: Rounds before those that count.
        count: Rounds that count.
        on_failure: Told of who fails; that one runs no more, and is not in what is returned.
    """
    seconds: dict[str, list[float]] = {name: [] for name in turns}
    for round_index in range(warm_ups + count):
        for name in list(seconds):
            time.sleep(SETTLE_SECONDS)
            try:
                spent = turns[name]()
            except WorkerError as err:
                on_failure(name, err)
                del seconds[name]
                continue
            if round_index >= warm_ups:
                seconds[name].append(spent)
    return seconds


def compute_error(outputs: Mapping[str, Array], reference: Mapping[str, Array]) -> float:
    """Return the distance of outputs from a reference, relative to its length; the largest."""
    errors = []
    for name, wanted in reference.items():
        expected = wanted.astype(np.float64).ravel()
        difference = outputs[name].astype(np.float64).ravel() - expected
        errors.append(float(np.linalg.norm(difference) / (np.linalg.norm(expected) or 1.0)))
    return max(errors)


def _make_turn(worker: WorkerProcess, **command: Any) -> Turn:
    return lambda: float(worker.ask(**command)["seconds"])


class ComponentBenchmark:
    """The contestants of one component, each a worker in a process of its own."""

    def __init__(
        self,
        component: str,
        contestants: list[Contestant],
        feeds: Tensors,
        batch_of_two: Tensors | None,
        folder: Path,
        report: Report,
    ) -> None:
        """Prepare; nothing is started yet.

        Args:
            component: Its name in the bundle.
            contestants: In the order of the table.
            feeds: The inputs that all of them get.
            batch_of_two: The same twice as one batch, to compare the ways of guidance; None if it
                does not matter.
            folder: An empty one for files.
            report: Told what goes on.
        """
        self._component = component
        self._contestants = {contestant.name: contestant for contestant in contestants}
        self._folder = folder
        self._report = report
        self._workers: dict[str, WorkerProcess] = {}
        self._first_runs: dict[str, float] = {}
        self._properties: dict[str, dict[str, str]] = {}
        self._failures: dict[str, str] = {}
        self._feeds = self._save("feeds", feeds)
        self._batch = None if batch_of_two is None else self._save("batch", batch_of_two)

    def run(self, *, warm_ups: int, count: int) -> Measured:
        """Measure all of them; those that fail are among the failures.

        Args:
            warm_ups: Runs of each before those that count, 1 or more.
            count: Runs of each that count.
        """
        with ExitStack() as stack:
            names = list(self._contestants)
            extra = self._find_reference()
            if extra is not None:
                names.insert(0, extra.name)
                self._contestants[extra.name] = extra
            for name in names:
                self._start(name, stack)
            if extra is not None:
                del self._contestants[extra.name]
                worker = self._workers.pop(extra.name, None)
                if worker is not None:
                    worker.close()
            errors = self._compare_outputs()
            runs = self._take_turns("run", warm_ups - 1, count)
            for worker in self._workers.values():
                worker.memory.add_sample(read_status(worker.pid))
            guidance = tuple(self._measure_guidance(warm_ups, count))
            loads = self._take_turns("load", 0, count)
        rows = self._make_rows(runs, loads, errors)
        failures = (Failure(self._component, name, error) for name, error in self._failures.items())
        return rows, guidance, tuple(failures)

    def _find_reference(self) -> Contestant | None:
        """Who must run for its outputs alone; None if one of those that run will do."""
        if len(self._contestants) < 2 or any(name in self._contestants for name in REFERENCES):
            return None
        settings = next(iter(self._contestants.values())).settings
        (plain,) = make_peers(
            REFERENCES[-1:], settings["bundle"], num_threads=settings["num_threads"]
        )
        return plain

    def _start(self, name: str, stack: ExitStack) -> None:
        """Load, and run once: it warms up, shows the memory and saves the outputs."""
        contestant = self._contestants[name]
        command = make_command(
            contestant.module, {**contestant.settings, "component": self._component}
        )
        log = self._path(name, "log")
        worker = stack.enter_context(WorkerProcess(name, command, log))
        try:
            with watch_memory(worker.pid, worker.memory):
                self._report(f"{self._component}: {name}: loading")
                answer = worker.ask(do="load", feeds=str(self._feeds))
                self._report(f"{self._component}: {name}: first run")
                outputs = str(self._path(name, "npz"))
                first = worker.ask(do="run", feeds=str(self._feeds), times=1, outputs=outputs)
        except WorkerError as err:
            self._fail(name, err)
            return
        self._properties[name] = answer["properties"]
        self._first_runs[name] = first["seconds"]
        self._workers[name] = worker

    def _take_turns(self, do: str, warm_ups: int, count: int) -> dict[str, list[float]]:
        self._report(f"{self._component}: {do}, {warm_ups + count} rounds")
        rest = {"times": 1, "outputs": None} if do == "run" else {}
        turns = {
            name: _make_turn(worker, do=do, feeds=str(self._feeds), **rest)
            for name, worker in self._workers.items()
        }
        return take_turns(turns, warm_ups=warm_ups, count=count, on_failure=self._fail)

    def _measure_guidance(self, warm_ups: int, count: int) -> Iterator[GuidanceRow]:
        """Compare both ways in each of ours, one after the other."""
        own = [name for name in self._workers if not self._contestants[name].is_peer]
        for name in own if self._batch is not None else ():
            self._report(f"{self._component}: {name}: guidance, {warm_ups + count} rounds")
            worker, do = self._workers[name], {"do": "run", "outputs": None}
            turns = {
                "separate": _make_turn(worker, feeds=str(self._feeds), times=2, **do),
                "batched": _make_turn(worker, feeds=str(self._batch), times=1, **do),
            }
            seconds = take_turns(
                turns,
                warm_ups=warm_ups,
                count=count,
                on_failure=functools.partial(self._fail_way, name),
            )
            if len(seconds) == len(turns):
                yield GuidanceRow(
                    self._component, name, *(summarize(seconds[way]) for way in turns)
                )

    def _compare_outputs(self) -> dict[str, float]:
        """The error of each against the reference, which itself has none."""
        reference = next((name for name in REFERENCES if self._path(name, "npz").exists()), None)
        if reference is None:
            return {}
        errors = {}
        with np.load(self._path(reference, "npz")) as wanted:
            for name in set(self._workers) - {reference}:
                with np.load(self._path(name, "npz")) as outputs:
                    error = compute_error(outputs, wanted)
                if np.isfinite(error):
                    errors[name] = error
                else:
                    self._fail(name, WorkerError(f"{name} returned values that are not finite"))
        return errors

    def _make_rows(
        self,
        runs: dict[str, list[float]],
        loads: dict[str, list[float]],
        errors: dict[str, float],
    ) -> tuple[Row, ...]:
        peers = [name for name, contestant in self._contestants.items() if contestant.is_peer]
        # Without the first peer, if it failed, there is nothing to measure by.
        base = statistics.median(runs[peers[0]]) if peers and peers[0] in runs else None
        rows = []
        for name in loads:
            memory, summary = self._workers[name].memory, summarize(runs[name])
            rows.append(
                Row(
                    self._component,
                    name,
                    self._properties[name],
                    summarize(loads[name]),
                    self._first_runs[name],
                    summary,
                    memory.peak_rss_bytes,
                    memory.peak_anonymous_bytes,
                    errors.get(name),
                    None if base is None else base / summary.median,
                )
            )
        return tuple(rows)

    def _fail(self, name: str, err: WorkerError) -> None:
        self._failures[name] = str(err)
        self._report(f"{self._component}: {err}")
        self._workers.pop(name, None)

    def _fail_way(self, name: str, way: str, err: WorkerError) -> None:
        self._fail(name, err)

    def _save(self, name: str, arrays: Tensors) -> Path:
        path = self._path(name, "npz")
        save_arrays(path, arrays)
        return path

    def _path(self, name: str, ending: str) -> Path:
        file_name = "".join(letter if letter.isalnum() else "-" for letter in name)
        return self._folder / f"{file_name}.{ending}"
