from __future__ import annotations

import math
from pathlib import Path

import diffusers
import pytest

from mutoscope.export.scheduler_tables import (
    ALIASES,
    PlannedSchedule,
    check_step_counts,
    make_schedulers,
    name_scheduler,
    write_schedule_tables,
)
from mutoscope.runtime.errors import ParameterError
from mutoscope.runtime.schedule import ScheduleTable


@pytest.mark.parametrize("alias", ALIASES)
def test_every_alias_is_a_scheduler_that_fits_stable_diffusion(alias: str) -> None:
    own = diffusers.PNDMScheduler(
        beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, skip_prk_steps=True
    )
    schedulers = make_schedulers(own, [alias.upper()])
    class_name, settings = ALIASES[alias]
    assert next(iter(schedulers)) == "pndm"
    assert type(schedulers[alias]).__name__ == class_name
    assert schedulers[alias].config.beta_start == 0.00085
    assert settings.items() <= dict(schedulers[alias].config).items()


def test_tables_of_a_scheduler_with_infinite_settings_are_written(tmp_path: Path) -> None:
    own = diffusers.DPMSolverMultistepScheduler()
    assert own.config.lambda_min_clipped == -math.inf
    schedules = write_schedule_tables({"dpm++2m": PlannedSchedule(own, (1, 4))}, tmp_path)
    tables = schedules["dpm++2m"]
    assert tables["4"] == "schedules/dpm++2m_4.json"
    assert ScheduleTable.load(tmp_path / tables["4"]).num_inference_steps == 4


def test_clipping_is_off_where_the_checkpoint_knows_none() -> None:
    own = diffusers.EulerDiscreteScheduler()
    assert make_schedulers(own, ["ddim"])["ddim"].config.clip_sample is False
    clipping = diffusers.DDPMScheduler(clip_sample=True)
    assert make_schedulers(clipping, ["ddim"])["ddim"].config.clip_sample is True


def test_a_scheduler_that_needs_another_package_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    class LMSDiscreteScheduler:
        _backends = ("torch", "scipy")

    LMSDiscreteScheduler.__module__ = "diffusers.utils.dummy_torch_and_scipy_objects"
    monkeypatch.setattr(diffusers, "LMSDiscreteScheduler", LMSDiscreteScheduler)
    own = diffusers.DDIMScheduler(clip_sample=False)
    with pytest.raises(ParameterError, match="LMSDiscreteScheduler needs torch, scipy: pip"):
        make_schedulers(own, ["LMSDiscreteScheduler"])


def test_a_scheduler_is_made_once() -> None:
    own = diffusers.DDIMScheduler(clip_sample=False)
    schedulers = make_schedulers(own, ["ddim", "euler", "EulerDiscreteScheduler"])
    assert list(schedulers) == ["ddim", "euler"]
    assert schedulers["ddim"] is own


@pytest.mark.parametrize(
    ("class_name", "name"),
    [
        ("DDIMScheduler", "ddim"),
        ("EulerAncestralDiscreteScheduler", "euler-ancestral"),
        ("DPMSolverMultistepScheduler", "dpm++2m"),
        ("UniPCMultistepScheduler", "unipc"),
        ("KDPM2AncestralDiscreteScheduler", "kdpm2-ancestral-discrete"),
        ("EDMEulerScheduler", "edm-euler"),
    ],
)
def test_names_are_what_people_type(class_name: str, name: str) -> None:
    assert name_scheduler(class_name) == name


def test_every_scheduler_of_diffusers_has_its_own_name() -> None:
    names = [name for name in dir(diffusers) if name.endswith("Scheduler")]
    assert len({name_scheduler(name) for name in names}) == len(names)


def test_one_class_can_be_in_a_bundle_with_several_settings() -> None:
    own = diffusers.DDIMScheduler(clip_sample=False)
    schedulers = make_schedulers(own, ["dpm++2m", "dpm++2m-karras"])
    assert schedulers["dpm++2m-karras"].config.use_karras_sigmas
    assert not schedulers["dpm++2m"].config.use_karras_sigmas


def test_step_counts_are_sorted_and_single() -> None:
    assert check_step_counts([8, 1, 8, 4]) == (1, 4, 8)
