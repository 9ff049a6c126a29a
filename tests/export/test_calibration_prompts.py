import pytest

from mutoscope.calibration.samples import PROMPTS_PATH, load_tokenizers, read_prompts
from mutoscope.export.calibration_prompts import PROMPTS_NAME, export_calibration_prompts
from mutoscope.export.errors import CheckpointError
from mutoscope.runtime.bundle import Bundle
from tests.runtime.hand_made_bundle import make_bundle


@pytest.fixture
def bundle(tmp_path):
    return Bundle.open(make_bundle(tmp_path / "bundle"))


@pytest.fixture
def checkpoint(tmp_path):
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    return folder


def test_prompts_of_a_checkpoint_go_into_its_bundle(bundle, checkpoint):
    (checkpoint / PROMPTS_NAME).write_text("# mine\na red circle\na square\n")
    export_calibration_prompts(checkpoint, bundle.manifest.tokenizers, bundle.path)
    found = read_prompts(bundle.path / PROMPTS_PATH, load_tokenizers(bundle))
    assert found == ["a red circle", "a square"]


def test_a_checkpoint_without_prompts_leaves_no_trace_in_its_bundle(bundle, checkpoint):
    export_calibration_prompts(checkpoint, bundle.manifest.tokenizers, bundle.path)
    assert not (bundle.path / PROMPTS_PATH).parent.exists()


def test_prompts_that_cannot_be_used_end_the_export(bundle, checkpoint):
    (checkpoint / PROMPTS_NAME).write_text("a\na a a a a a a a a\n")
    with pytest.raises(CheckpointError, match=f"{PROMPTS_NAME}: line 2 has 11 tokens"):
        export_calibration_prompts(checkpoint, bundle.manifest.tokenizers, bundle.path)
    with pytest.raises(CheckpointError, match="this model takes none: remove it"):
        export_calibration_prompts(checkpoint, {}, bundle.path)
    assert not (bundle.path / PROMPTS_PATH).parent.exists()
