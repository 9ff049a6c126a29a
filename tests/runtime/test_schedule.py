"""Schedule tables: reading, writing and checking them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mutoscope.runtime.errors import BundleError, ScheduleError
from mutoscope.runtime.schedule import ScheduleRow, ScheduleTable, ScheduleUpdate


def make_table() -> ScheduleTable:
    keep = ScheduleUpdate(1, (("model_output", 1.0),))
    first = ScheduleUpdate(0, ((0, 0.1), (1, -0.5)))
    second = ScheduleUpdate(0, ((0, 1 / 3), (1, 2.0), ("noise", 0.25)))
    return ScheduleTable(
        scheduler="DDIMScheduler",
        num_inference_steps=2,
        prediction_type="epsilon",
        init_noise_sigma=14.5,
        num_registers=2,
        rows=(
            ScheduleRow(999.0, 0.5, 0, (keep, first)),
            ScheduleRow(499.0, 1.0, 2, (second,), (1.5, -0.25)),
        ),
        provenance={"diffusers": "0.0", "config": {"beta_start": 0.1}},
    )


def change(path: tuple[Any, ...], value: Any) -> dict[str, Any]:
    """The JSON of the table with one entry changed, or taken out if the value is `...`."""
    data: Any = json.loads(json.dumps(make_table().to_json()))
    owner = data
    for key in path[:-1]:
        owner = owner[key]
    if value is ...:
        del owner[path[-1]]
    else:
        owner[path[-1]] = value
    result: dict[str, Any] = data
    return result


def test_a_table_survives_its_file(tmp_path: Path) -> None:
    table = make_table()
    table.save(tmp_path / "ddim.json")
    loaded = ScheduleTable.load(tmp_path / "ddim.json")
    assert loaded == table
    assert loaded.provenance == table.provenance
    assert [path.name for path in tmp_path.iterdir()] == ["ddim.json"]


def test_save_replaces_an_old_file(tmp_path: Path) -> None:
    path = tmp_path / "ddim.json"
    path.write_text("old")
    make_table().save(path)
    assert ScheduleTable.load(path) == make_table()
    assert path.stat().st_mode & 0o777 == 0o644


def test_a_save_that_fails_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "ddim.json"
    path.write_text("old")

    def fail(*_: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(OSError, match="no space left"):
        make_table().save(path)
    assert path.read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["ddim.json"]


def test_timesteps_are_a_new_float32_array() -> None:
    timesteps = make_table().timesteps
    assert timesteps.dtype == np.float32
    np.testing.assert_array_equal(timesteps, [999.0, 499.0])


def test_a_table_tells_whether_it_draws_noise() -> None:
    table = make_table()
    assert table.draws_noise
    assert table.max_terms_per_row == 3


def test_a_table_tells_whether_any_row_has_an_estimate() -> None:
    data = make_table().to_json()
    assert data["rows"][1]["denoised"] == [1.5, -0.25]
    assert "denoised" not in data["rows"][0]
    assert make_table().has_denoised
    assert not ScheduleTable.from_json(change(("rows", 1, "denoised"), ...)).has_denoised


def test_a_table_of_an_older_version_has_no_estimates() -> None:
    older = ScheduleTable.from_json(change(("rows", 1, "denoised"), ...))
    assert [row.denoised for row in older.rows] == [None, None]
    assert older.rows[1].updates == make_table().rows[1].updates


def test_repr_tells_tables_apart_in_one_line() -> None:
    assert repr(make_table()) == (
        "<ScheduleTable DDIMScheduler epsilon, 2 steps, 2 rows, 2 registers, up to 3 terms, "
        "draws noise>"
    )


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("rows", 1, "updates", 0, "into"), 2, r"row 1: an update writes register 2; the table"),
        (("rows", 0, "updates", 1, "terms", 1, 0), 7, "row 0: an update reads register 7"),
        (("rows", 0, "updates", 1, "terms", 1, 0), -1, "row 0: an update reads register -1"),
        (("rows", 0, "updates", 1, "terms", 1, 0), 0, "row 0: the update of register 0 names a"),
        (("rows", 0, "updates", 1, "terms", 1, 0), "noise", "row 0: an update reads noise, but"),
        (("rows", 0, "updates", 1, "terms", 1, 0), "sample", r"row 0: update 1: terms is \['sam"),
        (("rows", 0, "updates", 1, "terms", 1, 0), True, "row 0: update 1: terms is"),
        (("rows", 0, "updates", 1, "terms", 1, 1), float("nan"), "row 0: update 1: terms is"),
        (("rows", 0, "updates", 1, "terms", 1, 1), "1", "row 0: update 1: terms is"),
        (("rows", 0, "updates", 1, "terms", 1), [0], "row 0: update 1: terms is"),
        (("rows", 0, "updates", 1, "terms"), 3, "terms is 3; it must be a list"),
        (("rows", 0, "timestep"), float("inf"), "row 0: timestep is inf; it must be a finite"),
        (("rows", 0, "timestep"), 10**400, "row 0: timestep is a int; it must be a finite"),
        (("rows", 0, "timestep"), ..., "row 0: timestep is missing"),
        (("rows", 1, "denoised"), [1.0], r"row 1: denoised is \[1.0\]; it must be two finite numb"),
        (("rows", 1, "denoised"), [1.0, "2"], "row 1: denoised is .* must be two finite numbers"),
        (("rows", 1, "denoised"), [1.0, float("inf")], "row 1: denoised is .* two finite numbers"),
        (("rows", 1, "denoised"), 1.0, "row 1: denoised is 1.0; it must be two finite numbers"),
        (("rows", 0, "noise_draws"), -1, "row 0: noise_draws is -1; it must be a whole number"),
        (("rows", 0, "noise_draws"), 10**6, "row 0: noise_draws is 1000000; it must lie within"),
        (("rows", 1), 5, "row 1 is 5; it must be an object"),
        (("rows",), [], "the table has no rows"),
        (("num_registers",), 0, "num_registers is 0"),
        (("num_registers",), 10**9, "num_registers is 1000000000; it must lie within 1 and 64"),
        (("num_inference_steps",), 2.5, "num_inference_steps is 2.5; it must be a whole number"),
        (("scheduler",), 3, "scheduler is 3; it must be a string"),
        (("init_noise_sigma",), None, "init_noise_sigma is None; it must be a finite number"),
    ],
)
def test_load_refuses_a_damaged_table_and_says_where(
    tmp_path: Path, path: tuple[Any, ...], value: Any, message: str
) -> None:
    file = tmp_path / "damaged.json"
    file.write_text(json.dumps(change(path, value)))
    with pytest.raises(ScheduleError, match=f"damaged.json.*{message}") as caught:
        ScheduleTable.load(file)
    assert "\n" not in str(caught.value)
    assert str(caught.value).count("damaged.json") == 1


def test_load_refuses_a_table_from_the_future(tmp_path: Path) -> None:
    file = tmp_path / "new.json"
    file.write_text(json.dumps(change(("format_version",), 2)))
    with pytest.raises(BundleError, match=r"new.json has format_version 2; this version reads up"):
        ScheduleTable.load(file)


def test_load_ignores_fields_that_a_later_writer_adds(tmp_path: Path) -> None:
    file = tmp_path / "more.json"
    file.write_text(json.dumps(change(("comment",), "hello")))
    assert ScheduleTable.load(file) == make_table()


@pytest.mark.parametrize("content", [b"{", b"", b"\xff\xfe", b"[" * 100_000])
def test_load_names_a_file_that_is_no_json(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "broken.json"
    file.write_bytes(content)
    with pytest.raises(BundleError, match=r"broken.json is no JSON file .*: export again"):
        ScheduleTable.load(file)


def test_load_names_a_file_that_is_absent(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"absent.json cannot be read \(No such file"):
        ScheduleTable.load(tmp_path / "absent.json")


def test_a_table_made_by_hand_is_checked_too() -> None:
    row = ScheduleRow(1.0, 1.0, 0, (ScheduleUpdate(3, ((0, 1.0),)),))
    with pytest.raises(ScheduleError, match="row 0: an update writes register 3"):
        ScheduleTable("Mine", 1, "epsilon", 1.0, 1, (row,))
    row = ScheduleRow(1.0, 1.0, 0, (), (1.0, float("nan")))
    with pytest.raises(ScheduleError, match=r"row 0: denoised is .*both numbers must be finite"):
        ScheduleTable("Mine", 1, "epsilon", 1.0, 1, (row,))
