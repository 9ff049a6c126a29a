"""Defaults that a checkpoint states for itself, in an optional mutoscope_defaults.json.

A small or distilled model wants another guidance scale or number of steps than its family does, and
diffusers has no place to say so. The file is a JSON object with some of the fields of
`DefaultsRecord`, all but `scheduler`.
"""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path

from mutoscope.export.checkpoint import load_json_object
from mutoscope.export.errors import CheckpointError
from mutoscope.runtime.errors import BundleError
from mutoscope.runtime.json_records import read_record, write_record
from mutoscope.runtime.manifest import DefaultsRecord

DEFAULTS_NAME = "mutoscope_defaults.json"
# The scheduler is what the checkpoint's scheduler folder says.
STATEABLE = tuple(field.name for field in fields(DefaultsRecord) if field.name != "scheduler")


def apply_checkpoint_defaults(folder: Path, defaults: DefaultsRecord) -> DefaultsRecord:
    """Return `defaults` with what the checkpoint's own file says in their place.

    Raises:
        CheckpointError: The file has an unknown field or a value of the wrong type.
    """
    path = folder / DEFAULTS_NAME
    if not path.is_file():
        return defaults
    stated = load_json_object(path)
    for name in stated:
        if name not in STATEABLE:
            raise CheckpointError(
                f"{DEFAULTS_NAME} has {name!r}, which is not a default: use some of "
                f"{', '.join(STATEABLE)}"
            )
    try:
        record = read_record(DefaultsRecord, {**write_record(defaults), **stated}, DEFAULTS_NAME)
    except BundleError as err:
        raise CheckpointError(str(err)) from err
    return replace(record, scheduler=defaults.scheduler)
