import pytest
import torch

from training.motion_start import attend_to_own_frame, list_motion_modules, write_motion_code
from training.unet import make_unet


@pytest.fixture(scope="module")
def unet():
    torch.manual_seed(0)
    return make_unet().eval().requires_grad_(False)


def test_the_first_temporal_head_looks_at_its_own_frame(unet):
    attend_to_own_frame(unet)
    for module in list_motion_modules(unet):
        block = module.transformer_blocks[0]
        attention = block.attn1
        states = block.pos_embed(torch.zeros(1, 16, module.in_channels))
        size = module.in_channels // attention.heads
        query, key = (read(states)[0, :, :size] for read in (attention.to_q, attention.to_k))
        weights = (query @ key.T * attention.scale).softmax(dim=-1)
        assert weights.argmax(dim=1).tolist() == list(range(16))
        near = sum(weights.diagonal(offset).sum() for offset in range(-2, 3)) / 16
        assert near > 0.7


def test_the_motion_code_tells_named_motions_apart_and_leaves_their_mean_alone(unet):
    states = torch.randn(8, 128, generator=torch.Generator().manual_seed(3))
    attention = unet.mid_block.attentions[0].transformer_blocks[0].attn2
    features = torch.randn(1, 5, attention.to_q.in_features)
    write_motion_code(unet, states)

    def write(state):
        text = state.expand(1, 32, 128)
        return attention(features, encoder_hidden_states=text)[0, 0]

    written = torch.stack([write(state) for state in states])
    others = attention.to_out[0].weight.clone()
    first = len(others) - len(others) // attention.heads
    attention.to_out[0].weight[:, first:] = 0.0
    plain = torch.stack([write(state) for state in states])
    attention.to_out[0].weight.copy_(others)
    bias = plain.mean(dim=0) - written.mean(dim=0)
    code = written - plain + bias
    torch.testing.assert_close(code.mean(dim=0), torch.zeros_like(bias), atol=1e-5, rtol=0.0)
    singular = torch.linalg.svdvals(code)
    assert singular[6] > 0.5 * singular[0], "seven independent directions for eight motions"
    assert singular[7] < 1e-4 * singular[0]
