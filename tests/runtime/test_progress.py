import io

import pytest

from mutoscope.runtime import progress
from mutoscope.runtime.progress import ProgressBar, format_bar, format_seconds


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Clock:
    now = 0.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(progress, "time", clock)
    return clock


def run_bar(stream: io.StringIO, clock: Clock, *, num_steps: int, seconds: float) -> str:
    with ProgressBar("x.mp4", num_steps, stream=stream) as bar:
        for step in range(1, num_steps + 1):
            clock.now += seconds
            bar.update(step)
    return stream.getvalue()


def test_a_terminal_sees_one_line_drawn_over_itself(clock: Clock) -> None:
    text = run_bar(Terminal(), clock, num_steps=4, seconds=2.0)
    assert text.count("\n") == 1
    assert text.endswith("\n")
    drawn = [line.rstrip() for line in text.split("\r")]
    assert drawn[1] == "x.mp4 [------------------------] 0/4"
    assert drawn[3] == "x.mp4 [############------------] 2/4, 4.0 s left"
    assert drawn[-1] == "x.mp4 [########################] 4/4, 8.0 s"


def test_a_terminal_is_not_drawn_on_more_often_than_eyes_can_see(clock: Clock) -> None:
    text = run_bar(Terminal(), clock, num_steps=1000, seconds=0.001)
    assert text.count("\r") < 15


def test_the_next_bar_is_on_a_line_and_a_clock_of_its_own(clock: Clock) -> None:
    stream = Terminal()
    with ProgressBar("x.mp4", 1, stream=stream) as bar:
        clock.now += 5.0
        bar.update(1)
        bar.begin_next("decoding", 4)
        clock.now += 2.0
        bar.update(1)
    first, second, rest = stream.getvalue().split("\n")
    assert first.rpartition("\r")[2] == "x.mp4 [########################] 1/1, 5.0 s"
    assert second.rpartition("\r")[2] == "decoding [######------------------] 1/4, 6.0 s left"
    assert rest == ""


def test_a_log_of_short_work_stays_empty(clock: Clock) -> None:
    assert run_bar(io.StringIO(), clock, num_steps=25, seconds=1.0) == ""


def test_a_log_of_long_work_gets_a_line_now_and_then(clock: Clock) -> None:
    text = run_bar(io.StringIO(), clock, num_steps=10, seconds=20.0)
    assert text.splitlines() == [
        "x.mp4 [####--------------------] 2/10, 2:40 left",
        "x.mp4 [#########---------------] 4/10, 2:00 left",
        "x.mp4 [##############----------] 6/10, 1:20 left",
        "x.mp4 [###################-----] 8/10, 40 s left",
    ]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.04, "0.0 s"), (9.94, "9.9 s"), (12, "12 s"), (65, "1:05"), (7325, "2:02:05")],
)
def test_times_are_for_people(seconds: float, text: str) -> None:
    assert format_seconds(seconds) == text


def test_a_bar_without_steps_is_full() -> None:
    assert format_bar("x", 0, 0, 0.0).endswith("0/0, 0.0 s")
