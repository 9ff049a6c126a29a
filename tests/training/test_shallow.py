import pytest
import torch

from training.shallow import run_shallow, run_whole
from training.unet import ShortAttention

# The same operations on the same numbers.
TOLERANCE = 1e-6


@pytest.fixture
def unet(unet):
    unet.set_attn_processor(ShortAttention())
    return unet


def test_whole_run_is_that_of_the_unet(unet, inputs):
    velocity, deep = run_whole(unet, *inputs)
    torch.testing.assert_close(velocity, unet(*inputs, return_dict=False)[0])
    assert deep.shape == (6, 64, 8, 8)


def test_last_layer_alone_gives_the_same_on_features_of_the_same_run(unet, inputs):
    velocity, deep = run_whole(unet, *inputs)
    torch.testing.assert_close(run_shallow(unet, *inputs, deep), velocity, atol=TOLERANCE, rtol=0.0)


def test_last_layer_alone_uses_the_features_and_the_latents(unet, inputs):
    sample, timesteps, text = inputs
    _, deep = run_whole(unet, *inputs)
    expected = run_shallow(unet, sample, timesteps, text, deep)
    for other in (
        run_shallow(unet, sample + 1.0, timesteps, text, deep),
        run_shallow(unet, sample, timesteps, text, deep.flip(0)),
    ):
        assert float((other - expected).abs().max()) > 0.01


def test_whole_run_leaves_no_hook_behind(unet, inputs):
    run_whole(unet, *inputs)
    assert not unet.up_blocks[-1].resnets[-1]._forward_pre_hooks
