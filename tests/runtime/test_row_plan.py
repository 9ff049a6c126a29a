"""Which denoiser runs each row of a table, and the tables that are refused."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from mutoscope.runtime.bundle import Bundle
from mutoscope.runtime.errors import ParameterError, ScheduleError
from mutoscope.runtime.pipeline import VideoPipeline
from mutoscope.runtime.row_plan import RowPlan, plan_rows
from mutoscope.runtime.schedule import ScheduleTable
from tests.runtime.reuse_bundle import FEATURE, add_denoisers, add_schedule, make_rows


@pytest.fixture
def path(own_bundle: Path) -> Path:
    add_denoisers(own_bundle)
    return own_bundle


@pytest.fixture
def bundle(path: Path) -> Bundle:
    return Bundle.open(path)


def make_table(*denoisers: str | None, **fields: Any) -> ScheduleTable:
    rows = make_rows(*denoisers, unguided=fields.pop("unguided", ()))
    return ScheduleTable("made-up", len(rows), "epsilon", 1.0, 1, tuple(rows), **fields)


def plan(bundle: Bundle, *denoisers: str | None, **fields: Any) -> RowPlan:
    return plan_rows(bundle.manifest, make_table(*denoisers, **fields), "plan.json")


def test_rows_that_name_no_denoiser_run_the_first_of_the_bundle(bundle: Bundle) -> None:
    assert plan(bundle, None, None, "unet_few_step").num_rows == {"unet": 2, "unet_few_step": 1}


def test_rows_that_name_no_denoiser_run_the_one_of_the_table(bundle: Bundle) -> None:
    found = plan(bundle, None, "unet", denoiser="unet_few_step")
    assert found.num_rows == {"unet_few_step": 1, "unet": 1}
    assert found.find_denoiser(make_rows(None)[0]) == "unet_few_step"


def test_only_what_a_later_row_takes_is_returned(bundle: Bundle) -> None:
    found = plan(bundle, "unet", "unet_reuse", "unet_reuse")
    assert found.uses["unet"].returns == [FEATURE]
    assert found.uses["unet_reuse"].takes == {FEATURE: FEATURE}
    assert found.num_reused == 2
    assert plan(bundle, "unet", "unet").uses["unet"].returns == []
    assert plan(bundle, "unet", "unet").num_reused == 0


def test_a_plan_knows_with_and_without_guidance_each_denoiser_runs(bundle: Bundle) -> None:
    uses = plan(bundle, "unet", "unet", "unet_few_step", unguided=(1, 2)).uses
    assert (uses["unet"].guided, uses["unet"].unguided) == (True, True)
    assert (uses["unet_few_step"].guided, uses["unet_few_step"].unguided) == (False, True)


def test_a_row_without_guidance_takes_what_one_with_guidance_made(bundle: Bundle) -> None:
    assert plan(bundle, "unet", "unet_reuse", unguided=(1,)).num_reused == 1
    assert plan(bundle, "unet", "unet_reuse", unguided=(0, 1)).num_reused == 1


@pytest.mark.parametrize(
    ("denoisers", "fields", "message"),
    [
        (
            ["unet_reuse", "unet"],
            {},
            "plan.json: row 0: unet_reuse takes deep_feature, which no earlier row made: "
            "put a row of unet first",
        ),
        (
            ["unet_few_step", "unet_reuse"],
            {},
            "plan.json: row 1: unet_reuse takes deep_feature, which no earlier row made: ",
        ),
        (
            ["unet", "unet", "unet_reuse"],
            {"unguided": (1,)},
            "plan.json: row 2: unet_reuse takes deep_feature, which no earlier row made with "
            "guidance: let guidance work in the row of unet before it",
        ),
        (
            ["unet", "unet_deep"],
            {},
            "plan.json: row 1: denoiser is 'unet_deep'; it must be one of this bundle's, unet, "
            "unet_reuse, unet_few_step: export again",
        ),
        (["vae_decoder"], {}, "plan.json: row 0: denoiser is 'vae_decoder'; it must be one"),
        (["unet"], {"denoiser": "none"}, "plan.json: denoiser is 'none'; it must be one of"),
        (
            [None],
            {"graph_sha256": "0" * 64},
            "plan.json: the plan was made for another graph of unet than unet/model.onnx: "
            "tune again",
        ),
    ],
)
def test_a_table_that_does_not_fit_is_refused(
    bundle: Bundle, denoisers: list[str | None], fields: dict[str, Any], message: str
) -> None:
    with pytest.raises(ScheduleError) as caught:
        plan(bundle, *denoisers, **fields)
    assert str(caught.value).startswith(message)


def test_a_plan_for_the_graph_of_its_denoiser_is_taken(bundle: Bundle) -> None:
    files = bundle.manifest.files
    plan(bundle, None, graph_sha256=files["unet/model.onnx"].sha256.upper())
    few_step = files["unet_few_step/model.onnx"].sha256
    plan(bundle, None, denoiser="unet_few_step", graph_sha256=few_step)
    with pytest.raises(ScheduleError, match="another graph of unet than"):
        plan(bundle, None, graph_sha256=few_step)


def test_a_plan_is_for_the_float32_graph_whichever_variant_is_the_default(bundle: Bundle) -> None:
    record = bundle.manifest.components["unet"]
    graph, other = "unet/model.onnx", "unet_few_step/model.onnx"
    components = {
        **bundle.manifest.components,
        "unet": dataclasses.replace(
            record, variants={"int8": other, "float32": graph}, default_variant="int8"
        ),
    }
    manifest = dataclasses.replace(bundle.manifest, components=components)
    sha256 = manifest.files[graph].sha256
    assert plan_rows(manifest, make_table(None, graph_sha256=sha256)).num_rows == {"unet": 1}


def test_a_bundle_without_a_denoiser_is_refused(bundle: Bundle) -> None:
    components = {"vae_decoder": bundle.manifest.components["vae_decoder"]}
    manifest = dataclasses.replace(bundle.manifest, components=components)
    with pytest.raises(ParameterError, match="has no denoiser: it needs unet or transformer"):
        plan_rows(manifest, make_table(None))


def test_generate_refuses_a_table_that_does_not_fit_before_any_work(path: Path) -> None:
    add_schedule(path, "reuse-first", make_rows("unet_reuse", "unet"))
    with VideoPipeline.open(path) as pipeline:
        with pytest.raises(ScheduleError, match=r"^schedules/reuse-first_2.json: row 0: "):
            pipeline.generate("a", scheduler="reuse-first")
        assert pipeline._components.loaded == ()
