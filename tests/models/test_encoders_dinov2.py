import pytest
import timm
import torch
from encoder_cases import TINY_VIT, images, load_tool, shake
from mmpretrain.models import VisionTransformer
from safetensors.torch import save_file

from mmwsss.errors import InputError
from mmwsss.models.encoders import FrozenDINOv2
from mmwsss.models.encoders import dinov2 as dinov2_module

pytestmark = pytest.mark.mm

MEAN = torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1)
STD = torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1)
TINY = {'arch': TINY_VIT, 'patch_size': 14, 'image_size': 56}


@pytest.fixture(scope='module')
def library():
    """mmpretrain's model, never touched by our code."""
    torch.manual_seed(0)
    model = VisionTransformer(
        arch=dict(TINY_VIT),
        img_size=56,
        patch_size=14,
        layer_scale_init_value=1.0,
        out_type='raw',
    )
    return shake(model)


@pytest.fixture(scope='module')
def weights(library, tmp_path_factory):
    path = tmp_path_factory.mktemp('dino') / 'mmpretrain.pth'
    state = {f'backbone.{k}': v for k, v in library.state_dict().items()}
    torch.save({'meta': {'author': 'x'}, 'state_dict': state}, path)
    return str(path)


def meta_names_from_timm(model):
    """An official DINOv2 file, written from timm's implementation of the network.

    timm gives the class token no position where there are registers; Meta does, so
    one is taken out of the class token here.
    """
    state = {k: v.detach().clone() for k, v in model.state_dict().items()}
    position = 0.1 * torch.randn(1, 1, 24, generator=torch.Generator().manual_seed(3))
    if 'reg_token' in state:
        state['register_tokens'] = state.pop('reg_token')
        state['cls_token'] -= position
        state['pos_embed'] = torch.cat([position, state['pos_embed']], dim=1)
    state['mask_token'] = torch.zeros(1, 24)
    return state


def timm_model(registers):
    torch.manual_seed(1)
    return shake(
        timm.models.VisionTransformer(
            img_size=56,
            patch_size=14,
            embed_dim=24,
            depth=3,
            num_heads=2,
            init_values=1.0,
            num_classes=0,
            reg_tokens=registers,
            no_embed_class=registers > 0,
            dynamic_img_size=True,
        )
    )


def as_map(tokens, grid):
    return tokens.transpose(1, 2).reshape(len(tokens), -1, *grid)


@pytest.mark.parametrize(
    ('size', 'grid'), [((56, 56), (4, 4)), ((84, 28), (6, 2)), ((14, 70), (1, 5))]
)
def test_features_equal_mmpretrain(library, weights, size, grid):
    encoder = FrozenDINOv2(weights=weights, **TINY)
    image = images(2, 3, *size)
    (wanted,) = library((image - MEAN) / STD)
    encoded = encoder.encode(image)
    torch.testing.assert_close(
        encoded.features[0], as_map(wanted[:, 1:], grid), atol=5e-6, rtol=1e-5
    )
    assert encoder.feature_channels == (24,)
    assert encoded.attentions is None
    assert encoded.num_extra_tokens == 1


def test_input_is_resized_to_whole_patches(weights):
    encoder = FrozenDINOv2(weights=weights, **TINY)
    assert encoder.encode(images(1, 3, 69, 57)).grid == (4, 4)
    assert encoder.encode(images(1, 3, 5, 30)).grid == (1, 2)


@pytest.mark.parametrize('suffix', ['.pth', '.safetensors'])
@pytest.mark.parametrize('registers', [0, 4])
def test_official_names_give_timms_features(tmp_path, registers, suffix):
    model = timm_model(registers)
    path = tmp_path / f'official{suffix}'
    (save_file if suffix == '.safetensors' else torch.save)(
        meta_names_from_timm(model), path
    )
    encoder = FrozenDINOv2(weights=str(path), registers=registers, **TINY)
    image = images(2, 3, 56, 56)
    wanted = model.forward_features((image - MEAN) / STD)[:, 1 + registers :]
    encoded = encoder.encode(image)
    torch.testing.assert_close(
        encoded.features[0], as_map(wanted, (4, 4)), atol=1e-5, rtol=1e-5
    )
    assert encoded.num_extra_tokens == 1 + registers


def test_register_models_resize_positions_with_antialiasing(tmp_path):
    model = timm_model(4)
    path = tmp_path / 'official.pth'
    torch.save(meta_names_from_timm(model), path)
    encoder = FrozenDINOv2(weights=str(path), registers=4, **TINY)
    image = images(1, 3, 84, 42)
    wanted = model.forward_features((image - MEAN) / STD)[:, 5:]
    got = encoder.encode(image).features[0]
    torch.testing.assert_close(got, as_map(wanted, (6, 3)), atol=1e-5, rtol=1e-5)


def test_official_and_mmpretrain_names_are_the_same_weights(library, weights, tmp_path):
    blocks = {
        'layers.{}.ln1': 'blocks.{}.norm1',
        'layers.{}.attn.qkv': 'blocks.{}.attn.qkv',
        'layers.{}.attn.proj': 'blocks.{}.attn.proj',
        'layers.{}.ln2': 'blocks.{}.norm2',
        'layers.{}.ffn.layers.0.0': 'blocks.{}.mlp.fc1',
        'layers.{}.ffn.layers.1': 'blocks.{}.mlp.fc2',
    }
    names = {
        'cls_token': 'cls_token',
        'pos_embed': 'pos_embed',
        'patch_embed.projection.weight': 'patch_embed.proj.weight',
        'patch_embed.projection.bias': 'patch_embed.proj.bias',
        'ln1.weight': 'norm.weight',
        'ln1.bias': 'norm.bias',
    }
    for n in range(3):
        names[f'layers.{n}.attn.gamma1.weight'] = f'blocks.{n}.ls1.gamma'
        names[f'layers.{n}.ffn.gamma2.weight'] = f'blocks.{n}.ls2.gamma'
        for own, meta in blocks.items():
            for leaf in ('weight', 'bias'):
                names[f'{own.format(n)}.{leaf}'] = f'{meta.format(n)}.{leaf}'
    official = {names[k]: tensor for k, tensor in library.state_dict().items()}
    path = tmp_path / 'official.pth'
    torch.save(official, path)
    image = images(1, 3, 56, 56)
    torch.testing.assert_close(
        FrozenDINOv2(weights=str(path), **TINY).encode(image).features,
        FrozenDINOv2(weights=weights, **TINY).encode(image).features,
    )


@pytest.mark.parametrize('registers', [0, 2])
def test_attentions_reproduce_the_block(registers):
    """With one head, attention times values must be the module's own output."""
    arch = {**TINY_VIT, 'num_heads': 1}
    encoder = FrozenDINOv2(
        arch=arch, patch_size=14, image_size=56, registers=registers, num_attentions=3
    )
    shake(encoder.tower)
    image = images(2, 3, 56, 42)
    seen = []
    for layer in encoder.tower.layers:
        layer.attn.register_forward_hook(
            lambda module, inputs, output: seen.append((module, inputs[0], output))
        )
    attentions = encoder.encode(image).attentions
    assert attentions.shape == (2, 3, 13 + registers, 13 + registers)
    for index, (module, tokens, output) in enumerate(seen):
        value = module.qkv(tokens)[..., 48:]
        again = module.gamma1(module.proj(attentions[:, index] @ value))
        torch.testing.assert_close(again, output, atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize('registers', [0, 4])
def test_attentions_have_timms_token_order_and_head_mean(tmp_path, registers):
    model = timm_model(registers)
    path = tmp_path / 'official.pth'
    torch.save(meta_names_from_timm(model), path)
    encoder = FrozenDINOv2(
        weights=str(path), registers=registers, num_attentions=1, **TINY
    )
    image = images(1, 3, 56, 56)
    kept = []
    attention = model.blocks[-1].attn
    attention.fused_attn = False
    attention.attn_drop.register_forward_hook(lambda m, i, output: kept.append(output))
    model.forward_features((image - MEAN) / STD)
    torch.testing.assert_close(
        encoder.encode(image).attentions[:, 0], kept[0].mean(1), atol=1e-6, rtol=1e-5
    )


def test_tool_writes_files_that_load(tmp_path, monkeypatch):
    tool = load_tool('make_random_weights')
    monkeypatch.setitem(dinov2_module._ARCHS, 'small', TINY_VIT)
    path = tool.save_dinov2('small', tmp_path, registers=4)
    assert path.name == 'dinov2_vits14_reg4_pretrain.pth'
    names = torch.load(path, weights_only=True)
    assert {'mask_token', 'norm.weight', 'blocks.2.mlp.fc2.bias'} <= names.keys()
    written = FrozenDINOv2(weights=str(path), registers=4)
    drawn = FrozenDINOv2(registers=4)
    image = images(1, 3, 28, 28)
    torch.testing.assert_close(
        written.encode(image).features, drawn.encode(image).features
    )


def test_download_takes_the_official_url(monkeypatch, weights):
    asked = []
    monkeypatch.setitem(dinov2_module._ARCHS, 'small', TINY_VIT)
    monkeypatch.setattr(
        dinov2_module, 'download', lambda url: asked.append(url) or weights
    )
    FrozenDINOv2(weights='download', image_size=56)
    with pytest.raises(InputError, match='0 register tokens'):
        FrozenDINOv2(weights='download', image_size=56, registers=4)
    base = 'https://dl.fbaipublicfiles.com/dinov2/dinov2_vits14/dinov2_vits14'
    assert asked == [f'{base}_pretrain.pth', f'{base}_reg4_pretrain.pth']


def test_random_weights_are_the_same_each_time_and_leave_the_rng_alone():
    torch.manual_seed(5)
    wanted = torch.rand(3)
    torch.manual_seed(5)
    first = FrozenDINOv2(**TINY)
    torch.testing.assert_close(torch.rand(3), wanted)
    second = FrozenDINOv2(**TINY)
    assert first.tower.pos_embed.std() > 0
    assert torch.equal(first.tower.pos_embed, second.tower.pos_embed)


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        ({'arch': 'tiny'}, r"arch must be one of \['base', 'large', 'small'\].*'tiny'"),
        ({'weights': 'nowhere.pth'}, "no weights file at '.*nowhere.pth'.*this arch"),
        ({'arch': 'small', 'weights': 'a/b.pth'}, r"`curl .*'a/b.pth' .*vits14_pretr"),
        ({'weights': 'download'}, "weights='download' works for"),
        ({'num_attentions': 4}, 'num_attentions must be 0..3, got 4'),
        ({'registers': 4, 'weights': 'ours'}, 'has 0 register tokens.*registers=4'),
        ({'arch': {**TINY_VIT, 'num_layers': 2}, 'weights': 'ours'}, 'left over: lay'),
    ],
)
def test_unusable_arguments_raise_one_sentence(weights, change, message):
    arguments = {**TINY, **change}
    if arguments.get('weights') == 'ours':
        arguments['weights'] = weights
    with pytest.raises(InputError, match=message) as caught:
        FrozenDINOv2(**arguments)
    assert '\n' not in str(caught.value)


def test_file_with_registers_names_the_number(tmp_path):
    path = tmp_path / 'official.pth'
    torch.save(meta_names_from_timm(timm_model(4)), path)
    with pytest.raises(InputError, match=r'has 4 register tokens.*set registers=4'):
        FrozenDINOv2(weights=str(path), **TINY)
