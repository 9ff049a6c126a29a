from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mutoscope.engines.engine import Array
from mutoscope.engines.onnxruntime_engine import OnnxruntimeEngine
from mutoscope.runtime.components import Components
from mutoscope.runtime.pipeline import VideoPipeline
from mutoscope.runtime.prompt_cache import PromptCache, make_key

PROMPT = "a red circle"
OPTIONS: dict[str, Any] = {"seed": 1, "num_inference_steps": 1}


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The components that were asked to be in memory, in turn."""
    load, seen = Components.load, []

    def watch(self: Components, name: str, *arguments: Any) -> Any:
        seen.append(name)
        return load(self, name, *arguments)

    monkeypatch.setattr(Components, "load", watch)
    return seen


@pytest.mark.parametrize("memory", ["normal", "low"])
def test_a_prompt_is_encoded_once_and_not_loaded_for_again(
    bundle_path: Path, loads: list[str], memory: Any
) -> None:
    with VideoPipeline.open(bundle_path, memory=memory) as pipeline:
        first = pipeline.generate(PROMPT, **OPTIONS)
        assert loads.count("text_encoder") == 2  # the prompt, and the empty negative prompt
        again = pipeline.generate(PROMPT, **OPTIONS)
        assert loads.count("text_encoder") == 2
        np.testing.assert_array_equal(first.frames, again.frames)
        assert again.timings.seconds_text_encoder == 0
        other = pipeline.generate("a blue square", **OPTIONS)
        assert loads.count("text_encoder") == 3
        assert (other.frames != first.frames).any()


def test_what_was_encoded_outlasts_the_text_encoder(bundle_path: Path, loads: list[str]) -> None:
    pipeline = VideoPipeline.open(bundle_path)
    first = pipeline.generate(PROMPT, **OPTIONS)
    pipeline.unload("text_encoder")
    pipeline.generate(PROMPT, **OPTIONS)
    pipeline.close()
    again = pipeline.generate(PROMPT, **OPTIONS)
    assert loads.count("text_encoder") == 2
    np.testing.assert_array_equal(first.frames, again.frames)
    pipeline.close()


class ShiftedEngine(OnnxruntimeEngine):
    """A text encoder that makes something else, and counts its runs."""

    runs = 0

    def run(self, feeds: Mapping[str, Array], *arguments: Any) -> dict[str, Array]:
        self.runs += 1
        return {name: array + 1 for name, array in super().run(feeds, *arguments).items()}


def test_a_replaced_text_encoder_is_run_and_leaves_nothing(bundle_path: Path) -> None:
    with VideoPipeline.open(bundle_path) as pipeline:
        own = pipeline.generate(PROMPT, **OPTIONS)
        engine = ShiftedEngine(bundle_path / "text_encoder" / "model.onnx", num_threads=1)
        pipeline.replace_engine("text_encoder", engine)
        replaced = pipeline.generate(PROMPT, **OPTIONS)
        assert engine.runs == 2
        assert (replaced.frames != own.frames).any()
        pipeline.generate(PROMPT, **OPTIONS)
        assert engine.runs == 4
        pipeline.unload("text_encoder")
        np.testing.assert_array_equal(pipeline.generate(PROMPT, **OPTIONS).frames, own.frames)


def test_the_least_recently_used_entry_is_dropped() -> None:
    cache = PromptCache(2)
    for key in ("a", "b"):
        cache.add(key, {"x": np.zeros(1)})
    assert cache.find("a") is not None
    cache.add("c", {"x": np.zeros(1)})
    assert cache.find("b") is None
    assert cache.find("a") is not None
    assert cache.find("c") is not None
    assert len(cache) == 2


def test_sixty_four_entries_are_kept() -> None:
    cache = PromptCache()
    for number in range(65):
        cache.add(str(number), {"x": np.zeros(1)})
    assert len(cache) == 64
    assert cache.find("0") is None


def test_what_is_kept_cannot_be_written_to() -> None:
    cache = PromptCache()
    cache.add("a", {"x": np.zeros(2)})
    found = cache.find("a")
    assert found is not None
    with pytest.raises(ValueError, match="read-only"):
        found["x"][0] = 1


def test_keys_differ_where_anything_that_is_fed_does() -> None:
    ids = np.array([[1, 2]], np.int64)
    keys = [
        make_key("text_encoder", {"input_ids": ids}),
        make_key("text_encoder_2", {"input_ids": ids}),
        make_key("text_encoder", {"ids": ids}),
        make_key("text_encoder", {"input_ids": ids.astype(np.int32)}),
        make_key("text_encoder", {"input_ids": ids.T}),
        make_key("text_encoder", {"input_ids": ids + 1}),
        make_key("text_encoder", {"input_ids": ids, "input_ids_2": ids}),
    ]
    assert len(set(keys)) == len(keys)
    same = make_key("text_encoder", {"input_ids": np.array([[1, 0, 2]], np.int64)[:, ::2]})
    assert same == keys[0]
