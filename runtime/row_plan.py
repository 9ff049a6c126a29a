"""Which component runs each row of a schedule table, and what rows hand on to later ones.

What a denoiser returns beside its first output, the model output, is carried: a later row whose
denoiser has an input of that source takes it. So features of one row are reused in the next ones.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from mutoscope.runtime.errors import ParameterError, ScheduleError
from mutoscope.runtime.manifest import DENOISERS, Manifest, is_denoiser
from mutoscope.runtime.schedule import ScheduleRow, ScheduleTable

# The variant whose graph a table was made for, where the denoiser has it.
_PLAIN_VARIANT = "float32"


@dataclass
class DenoiserUse:
    """How the rows of a table use one denoiser.

    Attributes:
        num_rows: The rows that run it.
        guided: Whether guidance may work in some of them.
        unguided: Whether some of them are without guidance.
        takes: The inputs that get what an earlier row made, with the name of that.
        returns: What it returns beside the model output and later rows take.
    """

    num_rows: int = 0
    guided: bool = False
    unguided: bool = False
    takes: dict[str, str] = field(default_factory=dict)
    returns: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class RowPlan:
    """The denoisers of a table.

    Attributes:
        default: The component that runs the rows which name none.
        uses: How the rows use each denoiser, in the order in which they first do.
    """

    default: str
    uses: dict[str, DenoiserUse]

    @property
    def num_rows(self) -> dict[str, int]:
        """How many rows each denoiser runs."""
        return {name: use.num_rows for name, use in self.uses.items()}

    @property
    def num_reused(self) -> int:
        """How many rows take what an earlier one made."""
        return sum(use.num_rows for use in self.uses.values() if use.takes)

    def find_denoiser(self, row: ScheduleRow) -> str:
        """Return the component that runs a row."""
        return row.denoiser or self.default


def find_first_denoiser(manifest: Manifest) -> str:
    """Return the denoiser that runs where nothing names one; raises `ParameterError`."""
    for name in manifest.components:
        if is_denoiser(name):
            return name
    raise ParameterError(f"this bundle has no denoiser: it needs {' or '.join(DENOISERS)}")


def find_denoiser(manifest: Manifest, table: ScheduleTable) -> str:
    """Return the denoiser of the rows of a table that name none; raises `ParameterError`."""
    return table.denoiser or find_first_denoiser(manifest)


def find_carried(manifest: Manifest) -> set[str]:
    """Return the names of what denoisers return beside the model output."""
    return {
        output
        for name, record in manifest.components.items()
        if is_denoiser(name)
        for output in list(record.outputs)[1:]
    }


def plan_rows(manifest: Manifest, table: ScheduleTable, name: str = "the table") -> RowPlan:
    """Return which component runs each row of a table, checked.

    Args:
        manifest: The bundle's.
        table: The schedule table.
        name: What messages call it, for example its path in the bundle.

    Raises:
        ParameterError: The bundle has no denoiser.
        ScheduleError: A row names what is no denoiser of the bundle, or takes what no earlier row
            made for all of its passes; or the table was made for another graph.
    """
    plan = RowPlan(find_denoiser(manifest, table), {})
    _check_denoiser(manifest, plan.default, name)
    _check_graph(manifest, table, plan.default, name)
    carried = find_carried(manifest)
    # By what it made, the last row that did: its denoiser, and whether guidance may work in it.
    makers: dict[str, tuple[str, bool]] = {}
    for index, row in enumerate(table.rows):
        where, denoiser = f"{name}: row {index}", plan.find_denoiser(row)
        _check_denoiser(manifest, denoiser, where)
        record, use = manifest.components[denoiser], plan.uses.setdefault(denoiser, DenoiserUse())
        use.num_rows += 1
        use.guided |= row.guidance
        use.unguided |= not row.guidance
        for input_name, tensor in record.inputs.items():
            if tensor.source is None or tensor.source not in carried:
                continue
            source = tensor.source
            problem = f"{where}: {denoiser} takes {source}, which no earlier row made"
            if source not in makers:
                raise ScheduleError(
                    f"{problem}: put a row of {_find_maker(manifest, source)} first"
                )
            maker, was_guided = makers[source]
            if row.guidance and not was_guided:
                raise ScheduleError(
                    f"{problem} with guidance: let guidance work in the row of {maker} before it"
                )
            use.takes[input_name] = source
            if source not in plan.uses[maker].returns:
                plan.uses[maker].returns.append(source)
        makers |= dict.fromkeys(list(record.outputs)[1:], (denoiser, row.guidance))
    return plan


def _check_denoiser(manifest: Manifest, denoiser: str, where: str) -> None:
    known = [name for name in manifest.components if is_denoiser(name)]
    if denoiser not in known:
        raise ScheduleError(
            f"{where}: denoiser is {denoiser!r}; it must be one of this bundle's, "
            f"{', '.join(known)}: export again"
        )


def _check_graph(manifest: Manifest, table: ScheduleTable, denoiser: str, name: str) -> None:
    record = manifest.components[denoiser]
    graph = record.variants[record.choose_variant(_PLAIN_VARIANT)]
    sha256 = manifest.files[graph].sha256
    if table.graph_sha256 is not None and table.graph_sha256.lower() != sha256.lower():
        raise ScheduleError(
            f"{name}: the plan was made for another graph of {denoiser} than {graph}: tune again"
        )


def _find_maker(manifest: Manifest, output: str) -> str:
    return next(
        name
        for name, record in manifest.components.items()
        if is_denoiser(name) and output in list(record.outputs)[1:]
    )
