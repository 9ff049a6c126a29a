import dataclasses

import numpy as np
import pytest

from mutoscope.calibration.collection import collect, discard, find_state_folder
from mutoscope.calibration.errors import CalibrationError
from mutoscope.calibration.observed_graph import make_observed_graph
from mutoscope.calibration.reference_clips import RecordingEngine
from mutoscope.calibration.samples import (
    CalibrationSample,
    SamplingOptions,
    generate_sample,
    make_samples,
    open_float_pipeline,
)
from mutoscope.engines.opening import open_engine
from mutoscope.engines.options import EngineOptions
from mutoscope.runtime.bundle import Bundle
from mutoscope.runtime.errors import CancelledError, ParameterError
from tests.calibration.layered_bundle import BROKEN_WORD, LAYER, make_bundle

PROMPTS = ["a red circle", "a blue circle", "a circle moves left"]
# Three clips of four steps with guidance, one without.
NUM_RUNS = 3 * 4 * 2 + 4


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return Bundle.open(make_bundle(tmp_path_factory.mktemp("collection") / "bundle"))


@pytest.fixture(scope="module")
def graphs(bundle):
    names = ("unet", "vae_decoder")
    return {name: make_observed_graph(bundle.load_graph(name, for_cpu=True)) for name in names}


@pytest.fixture(scope="module")
def samples(bundle):
    return make_samples(bundle, PROMPTS, [], 4, 0)


@pytest.fixture(scope="module")
def whole(bundle, graphs, samples):
    """What an undisturbed calibration collects."""
    return collect(bundle, graphs, samples)


@pytest.fixture
def state(tmp_path):
    return tmp_path / "state"


def read_arrays(statistics, folder):
    """All that statistics hold, by the file that they write."""
    folder.mkdir(exist_ok=True)
    arrays = {}
    for name, collected in statistics.items():
        collected.save(folder / "statistics.npz")
        with np.load(folder / "statistics.npz") as file:
            arrays |= {f"{name}/{key}": file[key] for key in file}
    return arrays


def check_equal(found, expected, folder):
    found, expected = read_arrays(found, folder), read_arrays(expected, folder)
    assert found.keys() == expected.keys()
    for key, array in expected.items():
        np.testing.assert_array_equal(found[key], array, err_msg=key)


def stop_in_sample(number, error=None):
    """Return what stops in the middle of a sample, and the list of the samples that it sees."""
    seen = []

    def on_progress(progress):
        seen.append(progress.sample)
        if progress.sample == number and progress.step == 2:
            if error is not None:
                raise error
            return False
        return True

    return on_progress, seen


def watch():
    return stop_in_sample(None)


def test_statistics_are_those_of_every_pass_of_every_step(bundle, samples, whole):
    engine = open_engine(bundle.load_graph("unet", for_cpu=True), EngineOptions())
    recorder, seen = RecordingEngine(engine), []
    with open_float_pipeline(bundle) as pipeline:
        pipeline.replace_engine("unet", recorder)
        for sample in samples:
            recorder.begin([(step, index) for step in range(4) for index in range(2)])
            generate_sample(
                pipeline, sample, SamplingOptions(), on_step=lambda info: recorder.end_step()
            )
            seen += recorder.passes
    inputs = [recorded.inputs["sample"] for recorded in seen]
    unet = whole["unet"]
    assert len(seen) == unet.num_runs == NUM_RUNS
    assert unet.values.minimum[0] == min(array.min() for array in inputs)
    assert unet.values.maximum[0] == max(array.max() for array in inputs)
    assert unet.values_seen[0] == sum(array.size for array in inputs)
    assert list(unet.steps[0]) == sorted({float(r.inputs["timestep"]) for r in seen}, reverse=True)


def test_all_components_are_observed_in_the_same_clips(whole):
    assert whole["unet"].num_runs == NUM_RUNS
    assert whole["vae_decoder"].num_runs == 4
    assert whole["unet"].points[0].inputs_of == (LAYER,)


def test_progress_counts_samples_and_steps(bundle, graphs, samples):
    seen = []
    options = SamplingOptions(num_inference_steps=2)
    collect(bundle, graphs, samples[:2], options, on_progress=seen.append)
    assert [dataclasses.astuple(progress) for progress in seen] == [
        (1, 2, 1, 2),
        (1, 2, 2, 2),
        (2, 2, 1, 2),
        (2, 2, 2, 2),
    ]


@pytest.mark.parametrize(
    ("error", "expected"), [(None, CancelledError), (KeyboardInterrupt(), KeyboardInterrupt)]
)
def test_an_interrupted_collection_goes_on_and_ends_as_an_undisturbed_one(
    bundle, graphs, samples, whole, state, tmp_path, error, expected
):
    on_progress, _ = stop_in_sample(3, error)
    with pytest.raises(expected):
        collect(bundle, graphs, samples, state=state, on_progress=on_progress)
    on_progress, seen = watch()
    resumed = collect(bundle, graphs, samples, state=state, on_progress=on_progress)
    assert set(seen) == {3, 4}
    check_equal(resumed, whole, tmp_path / "arrays")


def test_more_samples_go_on_from_those_that_are_there(
    bundle, graphs, samples, whole, state, tmp_path
):
    collect(bundle, graphs, samples[:3], state=state)
    on_progress, seen = watch()
    more = collect(bundle, graphs, samples, state=state, on_progress=on_progress)
    assert set(seen) == {4}
    check_equal(more, whole, tmp_path / "arrays")


def test_the_same_samples_again_need_no_sampling(bundle, graphs, samples, whole, state, tmp_path):
    collect(bundle, graphs, samples, state=state)
    on_progress, seen = watch()
    again = collect(bundle, graphs, samples, state=state, on_progress=on_progress)
    assert seen == []
    check_equal(again, whole, tmp_path / "arrays")


def test_other_samples_begin_anew_with_a_note(bundle, graphs, samples, state, caplog, tmp_path):
    collect(bundle, graphs, samples[2:], state=state)
    on_progress, seen = watch()
    found = collect(bundle, graphs, samples[:1], state=state, on_progress=on_progress)
    assert "is of other samples and not used" in caplog.text
    assert set(seen) == {1}
    check_equal(found, collect(bundle, graphs, samples[:1]), tmp_path / "arrays")
    assert collect(bundle, graphs, samples[:1], state=state, on_progress=on_progress)
    assert len(seen) == 4


@pytest.mark.parametrize("name", ["samples.json", "unet.npz", "vae_decoder.npz"])
@pytest.mark.parametrize("damage", ["cut", "absent"])
def test_a_damaged_state_is_noted_and_replaced(
    bundle, graphs, samples, state, caplog, tmp_path, name, damage
):
    expected = collect(bundle, graphs, samples[:2], state=state)
    (folder,) = state.iterdir()
    if damage == "cut":
        (folder / name).write_bytes((folder / name).read_bytes()[:20])
    else:
        (folder / name).unlink()
    check_equal(collect(bundle, graphs, samples[:2], state=state), expected, tmp_path / "arrays")
    assert "is damaged and not used" in caplog.text
    on_progress, seen = watch()
    collect(bundle, graphs, samples[:2], state=state, on_progress=on_progress)
    assert seen == []


def test_a_state_of_other_layers_is_noted_and_not_used(bundle, graphs, samples, state, caplog):
    unet = graphs["unet"]
    collect(bundle, {"unet": unet}, samples[:1], state=state)
    renamed = tuple(dataclasses.replace(point, inputs_of=("another",)) for point in unet.points)
    changed = {"unet": dataclasses.replace(unet, points=renamed)}
    found = collect(bundle, changed, samples[:1], state=state)
    assert found["unet"].points == renamed
    assert found["unet"].num_runs == 2 * 4
    assert "is of other layers and not used" in caplog.text


def test_one_set_of_files_is_kept_however_many_samples_there_are(bundle, graphs, samples, state):
    collect(bundle, graphs, samples, state=state)
    (folder,) = state.iterdir()
    assert {path.name for path in folder.iterdir()} == {
        "samples.json",
        "unet.npz",
        "vae_decoder.npz",
    }


def test_components_that_are_observed_apart_do_not_mix(bundle, graphs, samples, state):
    collect(bundle, {"unet": graphs["unet"]}, samples[:1], state=state)
    on_progress, seen = watch()
    collect(bundle, graphs, samples[:1], state=state, on_progress=on_progress)
    assert set(seen) == {1}
    assert len(list(state.iterdir())) == 2


def test_values_that_are_not_finite_are_refused_with_the_sample_that_has_them(
    bundle, graphs, samples, state
):
    broken = CalibrationSample(f"a {BROKEN_WORD}", 7, None, 1.0)
    message = f"NaN or infinite at step 774: .* prompt 'a {BROKEN_WORD}', seed 7, guidance_scale 1"
    with pytest.raises(CalibrationError, match=message):
        collect(bundle, graphs, [samples[0], broken], state=state)
    on_progress, seen = watch()
    collect(bundle, graphs, samples[:2], state=state, on_progress=on_progress)
    assert set(seen) == {2}


def test_an_option_that_is_not_allowed_ends_before_any_sampling(bundle, graphs, samples):
    on_progress, seen = watch()
    with pytest.raises(ParameterError, match="num_inference_steps is 7"):
        collect(
            bundle,
            graphs,
            samples,
            SamplingOptions(num_inference_steps=7),
            on_progress=on_progress,
        )
    assert seen == []


def test_the_state_folder_is_that_of_the_model_and_the_options(bundle, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = find_state_folder(bundle)
    assert folder.parent == tmp_path / "cache" / "mutoscope" / "calibration"
    defaults = bundle.manifest.defaults
    stated = SamplingOptions(num_inference_steps=defaults.num_inference_steps)
    assert find_state_folder(bundle, stated) == folder
    assert find_state_folder(bundle, SamplingOptions(num_inference_steps=2)) != folder
    assert find_state_folder(bundle, SamplingOptions(height=16)) != folder
    files = dict(bundle.manifest.files)
    files["unet/model.onnx"] = dataclasses.replace(files["unet/model.onnx"], sha256="0" * 64)
    changed = dataclasses.replace(bundle.manifest, files=files)
    assert find_state_folder(dataclasses.replace(bundle, manifest=changed)) != folder


def test_discard_removes_what_was_kept_and_nothing_else(bundle, graphs, samples, state):
    discard(state)  # there is nothing yet
    collect(bundle, graphs, samples[:1], state=state)
    discard(state)
    assert list(state.parent.iterdir()) == []


def test_the_bundle_stays_as_it_was(bundle, graphs, samples, state):
    before = {path: path.stat().st_mtime_ns for path in bundle.path.rglob("*")}
    collect(bundle, graphs, samples[:1], state=state)
    assert {path: path.stat().st_mtime_ns for path in bundle.path.rglob("*")} == before
