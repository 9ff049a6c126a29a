import json

import pytest

from benchmarks import long_clips
from benchmarks.process_memory import ProcessMemory
from mutoscope.runtime.bundle import Bundle


@pytest.fixture
def processes(monkeypatch):
    """The commands that were to be measured; none is run."""
    commands = []

    def run(command):
        commands.append(command)
        (folder,) = [word for word in command if word.endswith("clip.mp4")]
        open(folder, "wb").close()
        frames = int(command[command.index("--num-frames") + 1])
        return ProcessMemory(float(frames), frames * 2**20, None, "")

    monkeypatch.setattr(long_clips, "run_measured", run)
    return commands


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--num-prompts", "0"], "--num-prompts and --rounds must be 1 or more"),
        (["--rounds", "0"], "--num-prompts and --rounds must be 1 or more"),
        (["--num-frames", "16"], "--num-frames is 16; this bundle makes 16 at once: use more"),
    ],
)
def test_what_leaves_nothing_to_measure_is_wrong_usage(processes, capsys, arguments, message):
    with pytest.raises(SystemExit) as caught:
        long_clips.main(arguments)
    assert caught.value.code == 2
    assert message in capsys.readouterr().err
    assert processes == []


def test_joins_are_those_of_the_windows_and_memory_is_that_of_both_lengths(processes, capsys):
    arguments = ["--num-frames", "20", "--num-prompts", "1", "--rounds", "2", "--json"]
    assert long_clips.main(arguments) == 0
    record = json.loads(capsys.readouterr().out)
    assert [command[command.index("--num-frames") + 1] for command in processes] == [
        *("16", "20"),
        *("16", "20"),
    ]
    assert {str(Bundle.default().path)} <= set(processes[0])
    assert [row["peak_rss_bytes"] for row in record["memory"]] == [16 * 2**20, 20 * 2**20]
    for group in record["joins"]:
        assert (group["num_prompts"], group["context_length"]) == (1, 16)
        flicker = group["measures"]["flicker"]
        # One join, at frame 4, of 19 pairs.
        assert (flicker["num_pairs_at_joins"], flicker["num_pairs_elsewhere"]) == (1, 18)
    lines = list(long_clips.describe(record))
    assert "| 16 | 16.00 | 16 MiB | - |" in lines
    assert "1 prompts of motions that go on, 20 frames in windows of 16 every 8:" in lines
