"""From the linear program to rows of register updates."""

from __future__ import annotations

from mutoscope.export.schedules.program import (
    START_NOISE,
    ProgramRow,
    Symbol,
    find_live,
)
from mutoscope.export.schedules.simplify import share_work
from mutoscope.runtime.schedule import ScheduleRow, ScheduleUpdate, Source

LATENTS_REGISTER = 0


def allocate_registers(rows: list[ProgramRow]) -> tuple[int, tuple[ScheduleRow, ...]]:
    """Return the number of registers and the rows of the schedule table.

    Registers are given by lifetime: a value takes the place of one that nobody reads any more, and
    stays where it is until then. Nothing is moved, save latents that outlive their row.
    """
    places = {START_NOISE: LATENTS_REGISTER}
    result: list[ScheduleRow] = []
    num_registers = 1
    for row, live in zip(rows, find_live(rows), strict=True):
        emitter = _RowEmitter(row, live, places)
        updates = emitter.run()
        places = {value: emitter.places[value] for value in live}
        num_registers = max([num_registers, *(update.into + 1 for update in updates)])
        result.append(ScheduleRow(row.timestep, row.input_scale, row.noise_draws, tuple(updates)))
    return num_registers, tuple(result)


class _RowEmitter:
    """Order and place the definitions of one row."""

    def __init__(self, row: ProgramRow, live: set[int], places: dict[int, int]) -> None:
        self.row = row
        self.live = live
        self.places = dict(places)
        self.pending = share_work(row)
        # New latents go to register 0, so old ones that are needed later must leave it.
        self.moved = row.latents_in if row.latents_in in live else None
        if self.moved is not None:
            self.pending[self.moved] = {row.latents_in: 1.0}

    def run(self) -> list[ScheduleUpdate]:
        """The updates of the row."""
        updates: list[ScheduleUpdate] = []
        new_places: dict[int, int] = {}
        while self.pending:
            value, register = self._choose(new_places)
            terms = tuple(
                (self._locate(symbol, new_places), coefficient)
                for symbol, coefficient in self.pending.pop(value).items()
            )
            updates.append(ScheduleUpdate(register, terms))
            new_places[value] = register
        self.places.update(new_places)
        return updates

    def _locate(self, symbol: Symbol, new_places: dict[int, int]) -> Source:
        """Where a symbol stands now; moved latents are read where they were."""
        if not isinstance(symbol, int):
            return symbol
        return self.places[symbol] if symbol in self.places else new_places[symbol]

    def _choose(self, new_places: dict[int, int]) -> tuple[int, int]:
        """The next definition and its register: the one that needs no new register, if any."""
        ready = [
            value
            for value, meaning in self.pending.items()
            if not any(symbol in self.pending and symbol != self.moved for symbol in meaning)
        ]
        latents = self.row.latents_out
        if latents in ready and self._is_free(LATENTS_REGISTER, latents, new_places):
            return latents, LATENTS_REGISTER
        others = [value for value in ready if value != latents]
        used = {*self.places.values(), *new_places.values()}
        for value in others:
            for register in sorted(used - {LATENTS_REGISTER}):
                if self._is_free(register, value, new_places):
                    return value, register
        fresh = next(r for r in range(1, len(used) + 2) if r not in used)
        return others[0], fresh

    def _is_free(self, register: int, value: int, new_places: dict[int, int]) -> bool:
        """Whether a definition may write a register now; it may read the old content itself."""
        if register in new_places.values():
            return False
        for old, place in self.places.items():
            if place != register:
                continue
            if old in self.live and old != self.moved:
                return False
            readers = [v for v, meaning in self.pending.items() if old in meaning]
            if any(reader != value for reader in readers):
                return False
        return True
