import pytest
import torch

from training.loop import (
    TrainingPlan,
    load_average,
    load_state,
    make_state,
    save_state,
    scale_learning_rate,
    train,
)

PLAN = TrainingPlan(minutes=0.02, learning_rate=0.05, average_decay=0.9)


def compute_loss(model, step, progress):
    generator = torch.Generator().manual_seed(step)
    inputs = torch.randn(16, 3, generator=generator)
    target = inputs @ torch.tensor([[1.0], [-2.0], [0.5]])
    return (model(inputs.bfloat16()).float() - target).square().mean()


def test_training_learns_and_its_average_is_what_is_loaded(tmp_path):
    path = tmp_path / "state.pt"
    state = make_state(torch.nn.Linear(3, 1), PLAN)
    train(state, compute_loss, PLAN, path)
    assert state.step > 20
    model = torch.nn.Linear(3, 1)
    load_average(model, path)
    learned = model.weight.detach().flatten()
    torch.testing.assert_close(learned, torch.tensor([1.0, -2.0, 0.5]), atol=0.1, rtol=0.0)


def test_a_run_goes_on_where_the_last_one_stopped(tmp_path):
    path = tmp_path / "state.pt"
    state = make_state(torch.nn.Linear(3, 1), PLAN)
    train(state, compute_loss, PLAN, path)
    again = make_state(torch.nn.Linear(3, 1), PLAN)
    load_state(again, path)
    assert (again.step, again.seconds) == (state.step, state.seconds)
    torch.testing.assert_close(again.weights.weight, state.weights.weight)
    train(again, compute_loss, PLAN, path)
    assert again.step == state.step, "the budget covers all runs together"


def test_a_save_that_fails_leaves_the_old_state(tmp_path, monkeypatch):
    path = tmp_path / "state.pt"
    state = make_state(torch.nn.Linear(3, 1), PLAN)
    save_state(state, path)
    before = path.read_bytes()

    def fail(content, partial):
        partial.write_bytes(b"half")
        raise OSError("disk is full")

    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(OSError, match="disk is full"):
        save_state(state, path)
    assert path.read_bytes() == before


def test_the_learning_rate_rises_then_falls():
    rates = [scale_learning_rate(progress / 100) for progress in range(101)]
    peak = rates.index(max(rates))
    assert 1 <= peak <= 4
    assert rates[peak:] == sorted(rates[peak:], reverse=True)
    assert rates[0] < 0.1
    assert 0 < rates[-1] < 0.05
