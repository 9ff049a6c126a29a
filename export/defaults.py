"""Defaults that a checkpoint states for itself, in an optional mutoscope_defaults.json.

A small or distilled model wants another guidance scale or number of steps than its family does, and
diffusers has no place to say so. The file is a JSON object with some of the fields of
`DefaultsRecord`, all but `scheduler`, and `few_step` where the checkpoint has a second denoiser.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

from mutoscope.export.checkpoint import load_json_object
from mutoscope.export.errors import CheckpointError
from mutoscope.export.scheduler_tables import check_step_counts
from mutoscope.runtime.errors import BundleError, ParameterError
from mutoscope.runtime.json_records import read_record, write_record
from mutoscope.runtime.manifest import DefaultsRecord

DEFAULTS_NAME = "mutoscope_defaults.json"
# The scheduler is what the checkpoint's scheduler folder says.
STATEABLE = tuple(field.name for field in fields(DefaultsRecord) if field.name != "scheduler")
FEW_STEP = "few_step"


@dataclass(frozen=True)
class FewStepSettings:
    """How the second denoiser of a checkpoint is sampled.

    Attributes:
        scheduler: Class name of diffusers or alias, as `ALIASES` has them.
        num_inference_steps: The numbers of steps that it was made for, in order.
        default_num_inference_steps: One of them.
        reused_rows: The steps of that number, from 0, in which it was made to run its last layer
            alone, on the deep features of the last step that ran it whole; none if absent.
    """

    scheduler: str = "lcm"
    num_inference_steps: tuple[int, ...] = (1, 2, 4)
    default_num_inference_steps: int = 4
    reused_rows: tuple[int, ...] = ()


def apply_checkpoint_defaults(folder: Path, defaults: DefaultsRecord) -> DefaultsRecord:
    """Return `defaults` with what the checkpoint's own file says in their place.

    Raises:
        CheckpointError: The file has an unknown field or a value of the wrong type.
    """
    path = folder / DEFAULTS_NAME
    if not path.is_file():
        return defaults
    stated = load_json_object(path)
    stated.pop(FEW_STEP, None)  # of another reader
    _check_known(stated, STATEABLE, DEFAULTS_NAME)
    try:
        record = read_record(DefaultsRecord, {**write_record(defaults), **stated}, DEFAULTS_NAME)
    except BundleError as err:
        raise CheckpointError(str(err)) from err
    return replace(record, scheduler=defaults.scheduler)


def read_few_step_settings(folder: Path) -> FewStepSettings | None:
    """Return what the checkpoint's own file says of its second denoiser; None if nothing.

    Raises:
        CheckpointError: A field is absent, unknown, of the wrong type or out of range.
    """
    path = folder / DEFAULTS_NAME
    stated = load_json_object(path) if path.is_file() else {}
    if FEW_STEP not in stated:
        return None
    where, value = f"{DEFAULTS_NAME}: {FEW_STEP}", stated[FEW_STEP]
    known = tuple(field.name for field in fields(FewStepSettings))
    if isinstance(value, dict):
        _check_known(value, known, where)
        needed = [name for name in known if name != "reused_rows"]
        for name in needed:
            if name not in value:
                raise CheckpointError(f"{where} lacks {name}: it must have {', '.join(needed)}")
    try:
        settings = read_record(FewStepSettings, value, where)
        counts = check_step_counts(settings.num_inference_steps)
    except BundleError as err:
        raise CheckpointError(str(err)) from err
    except ParameterError as err:
        raise CheckpointError(f"{where}: {err}") from err
    default = settings.default_num_inference_steps
    if default not in counts:
        raise CheckpointError(
            f"{where}: default_num_inference_steps is {default}; it must be one of "
            f"num_inference_steps: use {counts[-1]}"
        )
    for row in settings.reused_rows:
        if not 1 <= row < default:
            raise CheckpointError(
                f"{where}: reused_rows has {row}; it must have rows from 1, which the features of "
                f"row 0 are there for, to {default - 1}, the last: use [{default - 1}]"
            )
    return replace(settings, num_inference_steps=counts)


def _check_known(stated: Iterable[str], known: Sequence[str], where: str) -> None:
    for name in stated:
        if name not in known:
            raise CheckpointError(
                f"{where} has {name!r}, which is not a default: use some of {', '.join(known)}"
            )
