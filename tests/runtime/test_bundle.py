import json
from pathlib import Path

import pytest

import mutoscope.runtime.bundle as bundle_module
from mutoscope.runtime.bundle import Bundle, describe_counts
from mutoscope.runtime.errors import BundleError, ParameterError, ScheduleError
from tests.runtime.hand_made_bundle import make_table, write_manifest

GRAPH = "unet/model.onnx"


def test_open_reads_a_whole_bundle(bundle_path: Path) -> None:
    bundle = Bundle.open(bundle_path)
    assert bundle.manifest.name == "hand-made"
    assert bundle.load_graph("unet") == bundle_path.resolve() / GRAPH


def test_open_says_that_there_is_no_such_folder(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="nothing does not exist: give the folder of a bundle"):
        Bundle.open(tmp_path / "nothing")


def test_open_says_that_a_file_is_no_bundle(bundle_path: Path) -> None:
    with pytest.raises(BundleError, match=r"is a file; a bundle is a folder with manifest.json"):
        Bundle.open(bundle_path / "manifest.json")


def test_open_says_that_a_folder_is_no_bundle(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"has no manifest.json, so it is not a bundle"):
        Bundle.open(tmp_path)


def test_open_rejects_a_manifest_that_was_cut(own_bundle: Path) -> None:
    path = own_bundle / "manifest.json"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(BundleError, match=r"manifest.json is not valid JSON \(damaged\?\)"):
        Bundle.open(own_bundle)


def test_open_rejects_a_manifest_that_is_not_text(own_bundle: Path) -> None:
    (own_bundle / "manifest.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(BundleError, match="is not valid JSON"):
        Bundle.open(own_bundle)


def test_open_rejects_a_manifest_from_the_future(own_bundle: Path) -> None:
    path = own_bundle / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format_version": 9}))
    with pytest.raises(BundleError, match="has format_version 9; this mutoscope reads up to 1"):
        Bundle.open(own_bundle)


def test_open_rejects_a_file_that_was_cut_short(own_bundle: Path) -> None:
    data = (own_bundle / GRAPH).read_bytes()
    (own_bundle / GRAPH).write_bytes(data[:-7])
    message = f"{GRAPH} has {len(data) - 7} bytes; manifest.json lists {len(data)}"
    with pytest.raises(BundleError, match=message):
        Bundle.open(own_bundle)


def test_open_rejects_an_absent_file(own_bundle: Path) -> None:
    (own_bundle / GRAPH).unlink()
    with pytest.raises(BundleError, match=f"has no {GRAPH}, which manifest.json lists"):
        Bundle.open(own_bundle)


def test_open_rejects_a_path_outside_the_bundle(own_bundle: Path) -> None:
    path = own_bundle / "manifest.json"
    path.write_text(path.read_text().replace(GRAPH, "../secret"))
    with pytest.raises(BundleError, match=r"names '../secret', which is not inside the bundle"):
        Bundle.open(own_bundle)


@pytest.mark.parametrize("target", ["file", "folder"])
def test_open_rejects_a_link_that_leads_outside(own_bundle: Path, target: str) -> None:
    outside = own_bundle.parent / "outside"
    (own_bundle / "unet").rename(outside)
    if target == "folder":
        (own_bundle / "unet").symlink_to(outside)
    else:
        (own_bundle / "unet").mkdir()
        (own_bundle / GRAPH).symlink_to(outside / "model.onnx")
    with pytest.raises(BundleError, match=f"{GRAPH} in .* is a link that leads outside"):
        Bundle.open(own_bundle)


def test_open_follows_links_within_the_bundle_and_to_it(own_bundle: Path) -> None:
    (own_bundle / GRAPH).rename(own_bundle / "unet" / "blob")
    (own_bundle / GRAPH).symlink_to("blob")
    link = own_bundle.parent / "link"
    link.symlink_to(own_bundle)
    Bundle.open(link).load_graph("unet")


def test_a_link_loop_is_an_absent_file(own_bundle: Path) -> None:
    (own_bundle / GRAPH).unlink()
    (own_bundle / GRAPH).symlink_to("model.onnx")
    with pytest.raises(BundleError, match=f"has no {GRAPH}"):
        Bundle.open(own_bundle)


def test_an_edited_file_is_found_when_it_is_loaded(own_bundle: Path) -> None:
    data = bytearray((own_bundle / GRAPH).read_bytes())
    data[50] ^= 1
    (own_bundle / GRAPH).write_bytes(data)
    bundle = Bundle.open(own_bundle)
    with pytest.raises(BundleError, match=f"{GRAPH} does not match its sha256 in manifest.json"):
        bundle.load_graph("unet")


def test_edited_external_data_is_found_when_its_graph_is_loaded(own_bundle: Path) -> None:
    manifest = json.loads((own_bundle / "manifest.json").read_text())
    data = own_bundle / "unet" / "model.onnx.data"
    data.write_bytes(b"weights")
    write_manifest(own_bundle, manifest)
    data.write_bytes(b"weighty")
    bundle = Bundle.open(own_bundle)
    bundle.load_graph("vae_decoder")
    with pytest.raises(BundleError, match=r"unet/model.onnx.data does not match its sha256"):
        bundle.load_graph("unet")


def test_a_large_file_is_not_read_twice(own_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bundle_module, "CHECK_ON_LOAD_BYTES", 10)
    data = bytearray((own_bundle / GRAPH).read_bytes())
    data[50] ^= 1
    (own_bundle / GRAPH).write_bytes(data)
    Bundle.open(own_bundle).load_graph("unet")
    with pytest.raises(BundleError, match="sha256"):
        Bundle.open(own_bundle).check_digest(GRAPH)


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("DDIMScheduler", "ddim"),
        ("ddim", "ddim"),
        ("DDIM", "ddim"),
        ("euler-ancestral", "euler-ancestral"),
        ("Euler_Ancestral", "euler-ancestral"),
        ("eulerancestraldiscretescheduler", "euler-ancestral"),
    ],
)
def test_a_scheduler_is_found_by_its_name_or_a_short_one(
    bundle_path: Path, name: str, found: str
) -> None:
    assert Bundle.open(bundle_path).find_scheduler(name) == found


@pytest.mark.parametrize("name", ["euler", "", "DDIM Parallel"])
def test_an_unknown_scheduler_is_refused_with_those_there_are(bundle_path: Path, name: str) -> None:
    with pytest.raises(
        ParameterError, match=f"scheduler '{name}' is not in this bundle: use ddim, euler-ancestral"
    ):
        Bundle.open(bundle_path).find_scheduler(name)


@pytest.mark.parametrize(("asked", "nearest"), [(5, 4), (7, 8), (100, 8), (0, 1), (-3, 1)])
def test_a_step_count_without_a_table_is_refused_with_the_nearest(
    bundle_path: Path, asked: int, nearest: int
) -> None:
    message = rf"num_inference_steps is {asked}; .* ddim for 1-4, 8 steps: use {nearest}$"
    with pytest.raises(ParameterError, match=message):
        Bundle.open(bundle_path).load_schedule("ddim", asked)


def test_a_table_of_another_step_count_is_refused(own_bundle: Path) -> None:
    manifest = json.loads((own_bundle / "manifest.json").read_text())
    make_table("DDIMScheduler", 3, 0.0).save(own_bundle / "schedules" / "ddim_2.json")
    write_manifest(own_bundle, manifest)
    with pytest.raises(ScheduleError, match=r"has 3 steps where manifest.json lists it for 2"):
        Bundle.open(own_bundle).load_schedule("ddim", 2)


def test_an_unknown_component_or_variant_is_refused_with_those_there_are(bundle_path: Path) -> None:
    bundle = Bundle.open(bundle_path)
    with pytest.raises(ParameterError, match="has no image_encoder; it has text_encoder, unet"):
        bundle.load_graph("image_encoder")
    with pytest.raises(ParameterError, match="unet has no variant 'int8': use float32"):
        bundle.load_graph("unet", "int8")


def test_without_a_default_bundle_the_message_says_what_to_do(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(bundle_module, "DEFAULT_BUNDLE_PATH", tmp_path)
    with pytest.raises(BundleError, match="carries no default bundle: name one with --bundle"):
        Bundle.default()


def test_describe_counts_joins_runs() -> None:
    assert describe_counts([1, 2, 3, 8, 10, 11]) == "1-3, 8, 10-11"
