import pytest
import torch

from training.motion_start import list_motion_modules
from training.unet import (
    ShortAttention,
    TrackedUNet,
    make_scheduler,
    make_track,
    make_unet,
    skip_motion,
)

# Both compute in float32 and sum in another order.
PARITY_TOLERANCE = 2e-5


def test_training_attention_equals_the_one_of_diffusers(unet, inputs):
    sample, timesteps, text = inputs
    original = unet.attn_processors
    expected = unet(sample, timesteps, text.repeat_interleave(3, dim=0)).sample
    unet.set_attn_processor(ShortAttention())
    actual = unet(sample, timesteps, text).sample
    unet.set_attn_processor(original)
    torch.testing.assert_close(actual, expected, atol=PARITY_TOLERANCE, rtol=PARITY_TOLERANCE)


def test_skipping_motion_makes_frames_independent(unet, inputs):
    sample, timesteps, text = inputs
    text = text.repeat_interleave(3, dim=0)
    other = sample.clone()
    other[:, :, 0] += 1.0
    assert not torch.allclose(
        unet(sample, timesteps, text).sample[:, :, 2], unet(other, timesteps, text).sample[:, :, 2]
    )
    skip_motion(unet)
    torch.testing.assert_close(
        unet(sample, timesteps, text).sample[:, :, 2], unet(other, timesteps, text).sample[:, :, 2]
    )
    for module in list_motion_modules(unet):
        del module.forward


def test_motion_modules_of_an_untrained_denoiser_change_nothing():
    for module in list_motion_modules(make_unet()):
        states = torch.randn(4, module.in_channels, 2, 2)
        torch.testing.assert_close(module(states, num_frames=4), states)


def test_the_last_timestep_of_the_schedule_is_pure_noise():
    scheduler = make_scheduler()
    assert scheduler.alphas_cumprod[-1] == 0
    scheduler.set_timesteps(25)
    assert scheduler.timesteps[0] == 999


def test_the_track_tells_place_and_size():
    cells = torch.zeros(1, 1, 2, 8, 8)
    cells[0, 0, 0, 0:2, 6:8] = 1.0
    cells[0, 0, 1, 2:6, 2:6] = 1.0
    track = make_track(cells)
    top_right, middle = track[0].tolist()
    assert top_right[0] > 1.5
    assert top_right[1] < -1.5
    assert middle[:2] == pytest.approx([0.0, 0.0], abs=1e-6)
    assert middle[2] > top_right[2]


def test_the_tracked_denoiser_says_the_same_velocity(unet, inputs):
    sample, timesteps, text = inputs
    text = text.repeat_interleave(3, dim=0)
    velocity, track = TrackedUNet(unet)(sample, timesteps, text)
    torch.testing.assert_close(velocity, unet(sample, timesteps, text).sample)
    assert track.shape == (2, 3, 3)
