"""The encoder against torch's own Transformer layer, and that it computes only what it is shown."""

import pytest
import torch
from torch import nn

from ajepa.config import PRESETS, ModelConfig
from ajepa.model.vit import Block, Encoder, Predictor, attention, gather, patchify, sincos_positions

SMALL = ModelConfig(
    crop_frames=128, depth=2, width=32, heads=4, predictor_depth=2, predictor_width=16, predictor_heads=2
)


def torch_layer(block: Block, width: int, heads: int, hidden: int) -> nn.TransformerEncoderLayer:
    """torch's pre-norm layer with a block's weights."""
    layer = nn.TransformerEncoderLayer(
        width, heads, hidden, dropout=0.0, activation="gelu", layer_norm_eps=1e-6, batch_first=True, norm_first=True,
        dtype=torch.float64,
    )  # fmt: skip
    pairs = [
        (layer.self_attn.in_proj_weight, block.qkv.weight), (layer.self_attn.in_proj_bias, block.qkv.bias),
        (layer.self_attn.out_proj.weight, block.proj.weight), (layer.self_attn.out_proj.bias, block.proj.bias),
        (layer.linear1.weight, block.fc1.weight), (layer.linear1.bias, block.fc1.bias),
        (layer.linear2.weight, block.fc2.weight), (layer.linear2.bias, block.fc2.bias),
        (layer.norm1.weight, block.norm1.weight), (layer.norm1.bias, block.norm1.bias),
        (layer.norm2.weight, block.norm2.weight), (layer.norm2.bias, block.norm2.bias),
    ]  # fmt: skip
    with torch.no_grad():
        for theirs, ours in pairs:
            theirs.copy_(ours)
    return layer


@pytest.mark.parametrize(("width", "heads"), [(32, 4), (48, 3)])
def test_block_equals_torch_encoder_layer_in_value_and_gradient(width, heads):
    torch.manual_seed(0)
    block = Block(width, heads, 4.0).double()
    for parameter in block.parameters():
        nn.init.normal_(parameter, std=0.2)
    layer = torch_layer(block, width, heads, 4 * width)
    x = torch.randn(2, 7, width, dtype=torch.float64)
    a, b = x.clone().requires_grad_(), x.clone().requires_grad_()
    ours, theirs = block(a), layer(b)
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)
    ours.square().sum().backward()
    theirs.square().sum().backward()
    torch.testing.assert_close(a.grad, b.grad, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(block.qkv.weight.grad, layer.self_attn.in_proj_weight.grad, rtol=1e-9, atol=1e-9)


def test_context_only_equals_all_patches_with_attention_restricted_to_the_context():
    torch.manual_seed(0)
    encoder = Encoder(SMALL).double()
    patches = torch.randn(2, SMALL.num_patches, 256, dtype=torch.float64)
    indices = torch.stack([torch.randperm(64)[:20].sort().values for _ in range(2)])
    visible = torch.zeros(2, 64, dtype=torch.bool).scatter_(1, indices, True)
    mask = visible[:, None, None, :].expand(2, 1, 64, 64)  # every query sees context keys only
    full = gather(encoder(patches, mask=mask), indices)
    torch.testing.assert_close(encoder(patches, indices), full, rtol=1e-9, atol=1e-9)


def test_hidden_patches_change_nothing():
    encoder = Encoder(SMALL)
    patches = torch.randn(1, 64, 256)
    indices = torch.arange(10)[None]
    changed = patches.clone()
    changed[:, 10:] = float("nan")
    assert torch.equal(encoder(patches, indices), encoder(changed, indices))


def test_patchify_orders_frequency_rows_of_time_columns():
    log_mel = torch.arange(128 * 32).reshape(1, 128, 32).float()
    patches = patchify(log_mel)
    assert patches.shape == (1, 16, 256)
    # patch (f=2, t=1) has index 2 * 2 + 1
    assert torch.equal(patches[0, 5].reshape(16, 16), log_mel[0, 32:48, 16:32])


def test_shorter_input_takes_the_first_columns_of_the_position_table():
    encoder = Encoder(SMALL)
    table = encoder.positions.reshape(8, 8, -1)
    assert torch.equal(encoder.positions_for(8 * 3)[0].reshape(8, 3, -1), table[:, :3])
    for wrong in (0, 7, 72):
        with pytest.raises(ValueError, match="columns"):
            encoder.positions_for(wrong)


def test_positions_tell_every_patch_apart():
    table = sincos_positions((8, 64), 192)
    assert table.shape == (512, 192)
    assert torch.cdist(table, table).fill_diagonal_(1).min() > 0.05


def test_last_layers_are_the_blocks_outputs():
    encoder = Encoder(SMALL)
    patches = torch.randn(1, 64, 256)
    outputs = encoder(patches, last_layers=2)
    assert len(outputs) == 2
    torch.testing.assert_close(encoder.norm(outputs[-1]), encoder(patches))


def test_predictions_depend_on_the_place_of_a_target():
    predictor = Predictor(SMALL)
    context, where = torch.randn(1, 5, 32), torch.arange(5)[None]
    a = predictor(context, where, torch.tensor([[10, 11]]))
    b = predictor(context, where, torch.tensor([[11, 10]]))
    torch.testing.assert_close(a[0, 0], b[0, 1])
    assert not torch.allclose(a[0, 0], a[0, 1])


def test_base_is_the_write_ups_table():
    config = PRESETS["base"]
    model, train, mask = config.model, config.train, config.mask
    assert (model.depth, model.width, model.heads, model.mlp_ratio * model.width) == (12, 768, 12, 3072)
    assert (model.predictor_depth, model.predictor_width, model.predictor_heads) == (6, 384, 12)
    assert model.grid == (8, 64)
    assert (mask.block_scale, mask.block_aspect) == ((0.15, 0.2), (0.75, 1.5))
    assert 0.6 <= mask.mask_ratio <= 0.75
    assert (train.batch_size, train.epochs, train.warmup_epochs) == (256, 300, 40)
    assert (train.lr, train.weight_decay, train.betas) == (1.5e-4, 0.05, (0.9, 0.95))
    assert (train.ema_start, train.ema_end, train.loss, train.smooth_l1_beta) == (0.996, 0.9999, "smooth_l1", 1.0)
    assert train.target_layers == 1


def test_base_has_the_write_ups_encoder_size():
    with torch.device("meta"):
        encoder, predictor = Encoder(PRESETS["base"].model), Predictor(PRESETS["base"].model)
    assert 85e6 < sum(p.numel() for p in encoder.parameters()) < 87e6
    # The write-up says about 22 M; six layers of 384 are half of that (ajepa/README.md).
    assert 10.5e6 < sum(p.numel() for p in predictor.parameters()) < 12e6


@pytest.mark.parametrize("kind", [None, "seen", "added"])
def test_attention_in_bf16_on_a_cpu_is_that_of_float32(kind):
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(2, 3, 40, 16, generator=generator) for _ in range(3))
    seen = torch.rand(2, 1, 40, 40, generator=generator) < 0.7
    mask = {None: None, "seen": seen, "added": torch.where(seen, 0.0, float("-inf"))}[kind]
    expected = attention(query, key, value, mask)
    with torch.autocast("cpu", torch.bfloat16):
        result = attention(query.bfloat16(), key.bfloat16(), value.bfloat16(), mask)
    assert result.dtype == torch.bfloat16
    torch.testing.assert_close(result.float(), expected, atol=0.03, rtol=0.03)
