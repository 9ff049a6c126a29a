"""What is checked and read before the long work on a bundle."""

from __future__ import annotations

import os
from pathlib import Path

from mutoscope.calibration.samples import load_default_prompts, load_tokenizers, read_prompts
from mutoscope.runtime.baked_prompts import load_baked_prompts
from mutoscope.runtime.bundle import Bundle
from mutoscope.runtime.errors import OutputError
from mutoscope.runtime.schedule import ScheduleTable

# Of a table's provenance: what a plan is and how it was found.
PLAN = "plan"


def check_writable(bundle: Bundle) -> None:
    """Raise `OutputError` if the bundle cannot be replaced."""
    path = bundle.path.resolve()
    for folder in (path.parent, path):
        if not os.access(folder, os.W_OK | os.X_OK):
            raise OutputError(
                f"{path} cannot be replaced: no permission in {folder}: work on a copy of the "
                "bundle"
            )


def load_prompts(bundle: Bundle, path: Path | None) -> list[str]:
    """Return the prompts of a file, else the bundle's, baked or built-in ones.

    Raises:
        BundleError: A file of the bundle is damaged.
        CalibrationError: The file cannot be read, or there is a prompt that the bundle cannot take.
    """
    if path is None:
        return load_default_prompts(bundle)
    return read_prompts(path, load_tokenizers(bundle), load_baked_prompts(bundle))


def explain_plan(name: str, table: ScheduleTable, task: str) -> str | None:
    """Return why a schedule cannot be worked on, and what can; None if it is no plan.

    Args:
        name: Its scheduler.
        table: Its table. That of a plan names denoisers in its rows, or the graph that they were
            chosen for, or has guidance in some of them only.
        task: What cannot be done with a plan: "tune".
    """
    is_mixed = table.takes_guidance and not all(row.guidance for row in table.rows)
    if table.graph_sha256 is None and not is_mixed and not table.mixes_denoisers:
        return None
    base = table.provenance.get(PLAN, {}).get("scheduler")
    return (
        f"{name} with {table.num_inference_steps} steps is a plan already: {task} the schedule "
        "that it was made of" + (f": use --scheduler {base}" if base else "")
    )
