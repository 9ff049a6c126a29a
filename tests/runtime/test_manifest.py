import copy
import json
from pathlib import Path
from typing import Any

import pytest

from mutoscope.runtime.errors import BundleError, ParameterError
from mutoscope.runtime.manifest import LimitRecord, Manifest, check_relative_path

Value = dict[str, Any]


@pytest.fixture
def value(bundle_path: Path) -> Value:
    found: Value = json.loads((bundle_path / "manifest.json").read_text())
    return copy.deepcopy(found)


def test_a_manifest_survives_the_way_to_json_and_back(value: Value) -> None:
    manifest = Manifest.from_json(value)
    assert Manifest.from_json(manifest.to_json()) == manifest
    assert next(iter(manifest.to_json())) == "format_version"


def test_from_json_ignores_fields_that_a_later_minor_version_adds(value: Value) -> None:
    value["mood"] = "good"
    value["components"]["unet"]["colour"] = "blue"
    Manifest.from_json(value)


def test_from_json_rejects_a_manifest_from_the_future(value: Value) -> None:
    value["format_version"] = 2
    with pytest.raises(BundleError, match=r"format_version 2; this mutoscope reads up to 1: pip"):
        Manifest.from_json(value)


@pytest.mark.parametrize("version", [None, "1", True, 1.5])
def test_from_json_rejects_a_manifest_without_a_version(value: Value, version: Any) -> None:
    value["format_version"] = version
    with pytest.raises(BundleError, match="has no format_version"):
        Manifest.from_json(value)


@pytest.mark.parametrize("other", [[], "text", 3, None])
def test_from_json_rejects_what_is_not_an_object(other: Any) -> None:
    with pytest.raises(BundleError, match="has no format_version"):
        Manifest.from_json(other)


@pytest.mark.parametrize(
    ("keys", "new", "message"),
    [
        (("defaults", "height"), "64", "defaults: height must be a whole number"),
        (("defaults", "height"), True, "defaults: height must be a whole number"),
        (("defaults", "frame_rate"), None, "defaults: frame_rate must be a number"),
        (("defaults", "frame_rate"), 10**400, "defaults: frame_rate must be finite"),
        (("defaults", "guidance_scale"), -(10**400), "defaults: guidance_scale must be finite"),
        (("components",), [], "components must be an object"),
        (("components", "unet", "inputs", "sample", "shape"), 4, "shape must be a list"),
        (("components", "unet", "inputs", "sample", "source"), "moon", "'moon', which this"),
        (("components", "unet", "default_variant"), "int8", "unet has no variant 'int8'"),
        (("components", "unet", "variants", "float32"), "unet/x.onnx", "names unet/x.onnx but"),
        (("schedules", "ddim", "x"), "schedules/ddim_1.json", "'x' must be a"),
        (("defaults", "scheduler"), "Nobody", "scheduler 'Nobody' has no schedules"),
        (("tokenizers", "input_ids", "file"), "../tokenizer.json", "not inside the bundle"),
        (("files", "/etc/passwd"), {"size_bytes": 1, "sha256": ""}, "'/etc/passwd', which is not"),
    ],
)
def test_from_json_names_the_field_that_is_wrong(
    value: Value, keys: tuple[str, ...], new: Any, message: str
) -> None:
    record = value
    for key in keys[:-1]:
        record = record[key]
    record[keys[-1]] = new
    with pytest.raises(BundleError, match=message):
        Manifest.from_json(value)


@pytest.mark.parametrize("key", ["name", "components", "limits", "defaults", "files"])
def test_from_json_names_the_field_that_is_missing(value: Value, key: str) -> None:
    del value[key]
    with pytest.raises(BundleError, match=f"manifest.json: {key} is missing"):
        Manifest.from_json(value)


@pytest.mark.parametrize("opening", ["[", '{"a":'])
def test_load_refuses_values_inside_each_other_without_end(tmp_path: Path, opening: str) -> None:
    (tmp_path / "manifest.json").write_text(opening * 100_000)
    with pytest.raises(BundleError, match=r"manifest.json is not valid JSON \(damaged\?\): export"):
        Manifest.load(tmp_path / "manifest.json")


@pytest.mark.parametrize(
    "path", ["", "..", "../a", "a/../../b", "/a", "C:/a", "C:a", "a\\b", "\\\\host\\a", "a\0b"]
)
def test_check_relative_path_refuses_what_leads_out(path: str) -> None:
    with pytest.raises(BundleError, match="not inside the bundle"):
        check_relative_path(path)


@pytest.mark.parametrize(
    ("limit", "value", "message"),
    [
        (LimitRecord(16, 256, 16), 40, "height is 40; this bundle needs 16k: use 32 or 48"),
        (LimitRecord(1, None, 4, 1), 82, r"height is 82; this bundle needs 4k \+ 1: use 81 or 85"),
        (LimitRecord(16, 256, 16), 0, "needs at least 16: use 16"),
        (LimitRecord(16, 256, 16), 300, "allows at most 256: use 256"),
        (LimitRecord(16, 250, 16), 249, "use 240$"),
    ],
)
def test_limits_name_values_that_work(limit: LimitRecord, value: int, message: str) -> None:
    with pytest.raises(ParameterError, match=message):
        limit.check("height", value)


@pytest.mark.parametrize("value", [1, 5, 81])
def test_limits_allow_what_they_say(value: int) -> None:
    LimitRecord(1, None, 4, 1).check("num_frames", value)
