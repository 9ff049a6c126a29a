"""Schedule tables: a scheduler and a step count as data.

A table is a small register machine. Register 0 holds the latents, the other registers start at
zero. Each row is one denoiser call followed by a few linear updates:

    sample = input_scale * register[0]
    model_output = predict(sample, row)
    noise = the last of noise_draws standard normal draws
    for each update: register[into] = sum of coefficient * source

and, where a row has `denoised`, one estimate for people to look at, on which nothing depends:

    estimate = a * register[0] + b * model_output, with register[0] as it was before the updates

A source is a register, "model_output" or "noise". Updates run in order, and each sees what the ones
before it wrote. docs/schedule-tables.md describes the file format.
"""

from __future__ import annotations

import json
import math
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias, cast

import numpy as np
from numpy.typing import NDArray

from mutoscope.runtime.errors import BundleError, ScheduleError
from mutoscope.runtime.schedule_records import ScheduleReader, is_finite_number

FORMAT_VERSION: Final = 1
# Far above what any scheduler needs; it keeps a damaged file from asking for much memory.
MAX_REGISTERS: Final = 64
MAX_NOISE_DRAWS: Final = 16

MODEL_OUTPUT: Final = "model_output"
NOISE: Final = "noise"

Source: TypeAlias = int | Literal["model_output", "noise"]
Term: TypeAlias = tuple[Source, float]


@dataclass(frozen=True)
class ScheduleUpdate:
    """One assignment: register `into` becomes the sum of coefficient times source."""

    into: int
    terms: tuple[Term, ...]


@dataclass(frozen=True)
class ScheduleRow:
    """One denoiser call and the updates after it.

    Attributes:
        timestep: What the model sees as its time input; exact in float32.
        input_scale: The sample that the model sees is this times the latents.
        noise_draws: Standard normal draws of this row, 0 for most schedulers. Updates see the last
            one; the others are drawn too, since they move the random stream.
        updates: In the order in which they run.
        denoised: (a, b): a times the latents before the updates plus b times the model output is
            what the model takes the clean latents to be. None where the scheduler does not tell,
            and in tables of older versions. The sampling itself does not use it.
        denoiser: The component of the bundle that makes the model output; None for the table's. One
            that takes what another returned beside its model output gets that of the last row
            that ran it: so features are reused.
        guidance: Whether guidance may work in this row; without it the prompt's pass is all.
    """

    timestep: float
    input_scale: float
    noise_draws: int
    updates: tuple[ScheduleUpdate, ...]
    denoised: tuple[float, float] | None = None
    denoiser: str | None = None
    guidance: bool = True


@dataclass(frozen=True)
class ScheduleTable:
    """All that a sampler needs of a scheduler at one step count.

    Attributes:
        scheduler: Class name of the scheduler, for people.
        num_inference_steps: Steps as the user counts them.
        prediction_type: For people; the coefficients already hold it.
        init_noise_sigma: Standard normal noise times this is the start value of register 0.
        num_registers: Registers in use, at least 1.
        rows: One for each denoiser call; more than num_inference_steps for Heun and its like.
        denoiser: The component that runs the rows which name none; None for the bundle's first.
        graph_sha256: The denoiser's plain graph, as the manifest lists its digest, that the rows
            were chosen for; None if they fit any.
        provenance: Where the table came from (configuration, versions), for people.
    """

    scheduler: str
    num_inference_steps: int
    prediction_type: str
    init_noise_sigma: float
    num_registers: int
    rows: tuple[ScheduleRow, ...] = field(repr=False)
    denoiser: str | None = None
    graph_sha256: str | None = None
    provenance: dict[str, Any] = field(default_factory=dict, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Check the table, so that no sampler has to.

        Raises:
            ScheduleError: A register, a source, a count or a number is out of range.
        """
        check_schedule(self)

    @property
    def timesteps(self) -> NDArray[np.float32]:
        """The timestep of each row, a new float32 array [N]."""
        return np.array([row.timestep for row in self.rows], dtype=np.float32)

    @property
    def draws_noise(self) -> bool:
        """Whether any row needs random numbers besides the start noise."""
        return any(row.noise_draws for row in self.rows)

    @property
    def takes_guidance(self) -> bool:
        """Whether guidance works in any row."""
        return any(row.guidance for row in self.rows)

    @property
    def mixes_denoisers(self) -> bool:
        """Whether any row names its denoiser, as those that reuse features do."""
        return any(row.denoiser for row in self.rows)

    @property
    def has_denoised(self) -> bool:
        """Whether any row has coefficients for an estimate of the clean latents."""
        return any(row.denoised is not None for row in self.rows)

    @property
    def max_terms_per_row(self) -> int:
        """The largest number of multiply-adds per element in one row."""
        return max(sum(len(update.terms) for update in row.updates) for row in self.rows)

    def to_json(self) -> dict[str, Any]:
        """Return the table as a JSON object; from_json reads it back."""
        return {
            "format_version": FORMAT_VERSION,
            "scheduler": self.scheduler,
            "num_inference_steps": self.num_inference_steps,
            "prediction_type": self.prediction_type,
            "init_noise_sigma": self.init_noise_sigma,
            "num_registers": self.num_registers,
            **_leave_out_none(denoiser=self.denoiser, graph_sha256=self.graph_sha256),
            "rows": [_row_to_json(row) for row in self.rows],
            "provenance": self.provenance,
        }

    @classmethod
    def from_json(cls, data: Any, *, name: str = "schedule table") -> ScheduleTable:
        """Return the table of a JSON object.

        Args:
            data: What to_json returned or json.load read.
            name: What messages call it, for example the path of the file.

        Raises:
            BundleError: The format is a later one than this version reads.
            ScheduleError: A field is absent, has the wrong type or is out of range.
        """
        reader = ScheduleReader(data, name)
        version = reader.whole("format_version", 1)
        if version > FORMAT_VERSION:
            raise BundleError(
                f"{name} has format_version {version}; this version reads up to {FORMAT_VERSION}: "
                "upgrade mutoscope or export again"
            )
        provenance = reader.data.get("provenance", {})
        try:
            return cls(
                scheduler=reader.text("scheduler"),
                num_inference_steps=reader.whole("num_inference_steps", 1),
                prediction_type=reader.text("prediction_type"),
                init_noise_sigma=reader.number("init_noise_sigma"),
                num_registers=reader.whole("num_registers", 1),
                rows=tuple(_row_from_json(row) for row in reader.objects("rows", "row")),
                denoiser=reader.optional_text("denoiser"),
                graph_sha256=reader.optional_text("graph_sha256"),
                provenance=provenance if isinstance(provenance, dict) else {},
            )
        except ScheduleError as err:
            prefix = f"{name}: "
            raise ScheduleError(prefix + str(err).removeprefix(prefix)) from err

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> ScheduleTable:
        """Read a table from a file.

        Raises:
            BundleError: The file is absent, no JSON, or of a later format.
            ScheduleError: Its content is no valid table; the message names the file and the row.
        """
        try:
            data = json.loads(Path(path).read_text(encoding="utf-8"))
        except OSError as err:
            raise BundleError(f"{path} cannot be read ({err.strerror}): export again") from err
        except (ValueError, RecursionError) as err:
            raise BundleError(f"{path} is no JSON file ({err}): export again") from err
        return cls.from_json(data, name=str(path))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the table to a file, whole or not at all; an existing file is replaced."""
        path = Path(path)
        text = json.dumps(self.to_json(), indent=1, allow_nan=False) + "\n"
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            # mkstemp gives the file to its owner alone; a bundle is for everyone to read.
            Path(temporary).chmod(0o644)
            Path(temporary).replace(path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise

    def __repr__(self) -> str:
        """One line with what tells tables apart."""
        noise = ", draws noise" if self.draws_noise else ""
        return (
            f"<ScheduleTable {self.scheduler} {self.prediction_type}, "
            f"{self.num_inference_steps} steps, {len(self.rows)} rows, "
            f"{self.num_registers} registers, up to {self.max_terms_per_row} terms{noise}>"
        )


def check_schedule(table: ScheduleTable) -> None:
    """Raise unless every register, source, count and number of a table is in range.

    Raises:
        ScheduleError: The message names the row.
    """
    if not 1 <= table.num_registers <= MAX_REGISTERS:
        raise ScheduleError(
            f"num_registers is {table.num_registers}; it must lie within 1 and {MAX_REGISTERS}"
        )
    if not table.rows:
        raise ScheduleError("the table has no rows; it needs one for each denoiser call")
    if table.num_inference_steps < 1:
        raise ScheduleError(f"num_inference_steps is {table.num_inference_steps}; it must be >= 1")
    if not math.isfinite(table.init_noise_sigma):
        raise ScheduleError(f"init_noise_sigma is {table.init_noise_sigma}; it must be finite")
    for index, row in enumerate(table.rows):
        for problem in _find_problems(row, table.num_registers):
            raise ScheduleError(f"row {index}: {problem}")


def _find_problems(row: ScheduleRow, num_registers: int) -> Iterator[str]:
    """What is wrong with a row, in words."""
    for name, value in (("timestep", row.timestep), ("input_scale", row.input_scale)):
        if not math.isfinite(value):
            yield f"{name} is {value}; it must be finite"
    if row.denoised is not None and not all(map(math.isfinite, row.denoised)):
        yield f"denoised is {row.denoised}; both numbers must be finite"
    if not 0 <= row.noise_draws <= MAX_NOISE_DRAWS:
        yield f"noise_draws is {row.noise_draws}; it must lie within 0 and {MAX_NOISE_DRAWS}"
    for update in row.updates:
        if not 0 <= update.into < num_registers:
            yield f"an update writes register {update.into}; the table has {num_registers}"
        if len({source for source, _ in update.terms}) < len(update.terms):
            yield f"the update of register {update.into} names a source twice"
        for source, coefficient in update.terms:
            if not math.isfinite(coefficient):
                yield f"the coefficient of {source!r} is {coefficient}; it must be finite"
            if isinstance(source, str):
                if source not in (MODEL_OUTPUT, NOISE):
                    yield f"source {source!r} is unknown; use a register, model_output or noise"
                if source == NOISE and not row.noise_draws:
                    yield "an update reads noise, but noise_draws is 0"
            elif not 0 <= source < num_registers:
                yield f"an update reads register {source}; the table has {num_registers}"


def _row_to_json(row: ScheduleRow) -> dict[str, Any]:
    return {
        "timestep": row.timestep,
        "input_scale": row.input_scale,
        "noise_draws": row.noise_draws,
        **_leave_out_none(
            denoised=row.denoised and list(row.denoised),
            denoiser=row.denoiser,
            guidance=None if row.guidance else False,
        ),
        "updates": [
            {"into": update.into, "terms": [list(term) for term in update.terms]}
            for update in row.updates
        ],
    }


def _row_from_json(reader: ScheduleReader) -> ScheduleRow:
    return ScheduleRow(
        timestep=reader.number("timestep"),
        input_scale=reader.number("input_scale"),
        noise_draws=reader.whole("noise_draws", 0),
        updates=tuple(
            ScheduleUpdate(update.whole("into", 0), tuple(_read_terms(update, "terms")))
            for update in reader.objects("updates", "update")
        ),
        denoised=reader.optional_pair("denoised"),
        denoiser=reader.optional_text("denoiser"),
        guidance=reader.flag("guidance", default=True),
    )


def _read_terms(reader: ScheduleReader, key: str) -> Iterator[Term]:
    """The sources and coefficients of an update."""
    for term in reader.items(key):
        source, coefficient = term if isinstance(term, list) and len(term) == 2 else (None, 0)
        known = source in (MODEL_OUTPUT, NOISE) or type(source) is int
        if not known or not is_finite_number(coefficient):
            raise reader.fail(
                key, term, "pairs of a source (a register, model_output, noise) and a number"
            )
        yield cast(Source, source), float(coefficient)


def _leave_out_none(**fields: Any) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value is not None}
