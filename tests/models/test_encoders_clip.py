import json

import open_clip
import pytest
import torch
from encoder_cases import TINY_CLIP, WORDS, images, load_tool, tiny_clip
from safetensors.torch import save_file
from torch.nn import functional as F

from mmwsss.errors import InputError
from mmwsss.models.encoders import FrozenCLIP
from mmwsss.models.encoders.clip import OPENAI_MEAN, OPENAI_STD
from mmwsss.models.encoders.vit import resize_position_embedding

pytestmark = pytest.mark.mm

MEAN = torch.tensor(open_clip.OPENAI_DATASET_MEAN).view(1, 3, 1, 1)
STD = torch.tensor(open_clip.OPENAI_DATASET_STD).view(1, 3, 1, 1)


@pytest.fixture(scope='module')
def library():
    """open_clip's model, never touched by our code."""
    return tiny_clip()


@pytest.fixture(scope='module')
def weights(library, tmp_path_factory):
    path = tmp_path_factory.mktemp('clip') / 'tiny.safetensors'
    save_file({k: v.contiguous() for k, v in library.state_dict().items()}, path)
    return str(path)


@pytest.fixture(scope='module')
def ours(weights):
    return FrozenCLIP(
        model=TINY_CLIP,
        weights=weights,
        feature_layers=(0, 1, -1),
        num_attentions=3,
        **WORDS,
    )


def library_features(model, image, indices):
    output = model.visual.forward_intermediates(
        (image - MEAN) / STD, indices=indices, intermediates_only=True
    )
    return output['image_intermediates']


def library_resized(library, height, width):
    """open_clip's model with its position embedding resized by open_clip."""
    model = tiny_clip(image_size=(height, width))
    state = library.state_dict()
    open_clip.factory.resize_pos_embed(state, model)
    model.load_state_dict(state)
    return model.eval()


def library_texts(library, words, templates):
    tokens = open_clip.get_tokenizer('ViT-B-16')
    rows = []
    for word in words:
        features = [
            library.encode_text(tokens([t.format(word)], context_length=16))[0]
            for t in templates
        ]
        unit = torch.stack([f / f.norm() for f in features]).mean(0)
        rows.append(unit / unit.norm())
    return torch.stack(rows).detach()


def sequential_grad_cams(library, image, present, *, skip=0, divisor=1.0):
    """Grad-CAM of the released kind: hooks, one image and one class at a time."""
    words = [*WORDS['class_names'], *WORDS['background_words']]
    texts = library_texts(library, words, ['a clean origami {}.'])
    visual = library.visual
    blocks = visual.transformer.resblocks
    cams = torch.zeros(len(image), len(WORDS['class_names']), 4, 4)
    for n, classes in enumerate(present):
        kept = {}
        handle = blocks[-1].ln_1.register_forward_hook(
            lambda module, inputs, output, kept=kept: kept.update(activation=output)
        )
        tokens = visual._embeds((image[n : n + 1] - MEAN) / STD)
        for block in [*blocks[: len(blocks) - 1 - skip], blocks[-1]]:
            tokens = block(tokens)
        handle.remove()
        feature = visual.ln_post(tokens)[0, 1:].mean(0) @ visual.proj
        feature = feature / feature.norm()
        chosen = [*classes, 3, 4]
        logits = library.logit_scale.exp() / divisor * texts[chosen] @ feature
        scores = logits.softmax(0)
        for position, k in enumerate(classes):
            (gradient,) = torch.autograd.grad(
                scores[position], kept['activation'], retain_graph=True
            )
            weight = gradient[0, 1:].mean(0)
            cam = (kept['activation'][0, 1:] @ weight).relu()
            cams[n, k] = cam.detach().reshape(4, 4)
    return cams


def test_features_equal_open_clip_intermediates(ours, library):
    image = images(2, 3, 32, 32)
    encoded = ours.encode(image)
    for got, wanted in zip(
        encoded.features, library_features(library, image, [0, 1, 2]), strict=True
    ):
        torch.testing.assert_close(got, wanted, atol=2e-6, rtol=1e-5)
    assert encoded.grid == (4, 4)
    assert encoded.num_extra_tokens == 1
    assert ours.feature_channels == (32, 32, 32)


def test_whole_tower_equals_open_clip_encode_image(ours, library):
    image = images(2, 3, 32, 32)
    tokens = ours.encode(image).last_block_input
    pooled = ours.tower.ln_post(ours.tower.transformer.resblocks[-1](tokens))[:, 0]
    wanted = library.encode_image((image - MEAN) / STD)
    torch.testing.assert_close(pooled @ ours.tower.proj, wanted, atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize('size', [(48, 32), (24, 56), (8, 16), (8, 8)])
def test_features_on_rectangles_equal_open_clip_built_for_them(ours, library, size):
    image = images(1, 3, *size)
    wanted = library_features(library_resized(library, *size), image, [2])[0]
    got = ours.encode(image).features[-1]
    torch.testing.assert_close(got, wanted, atol=5e-6, rtol=1e-5)


@pytest.mark.parametrize('target', [(2, 1), (5, 1), (1, 4), (6, 3)])
@pytest.mark.parametrize('antialias', [False, True])
def test_position_embedding_is_resized_alike_for_every_channel(target, antialias):
    embedding = images(1 + 4 * 4, 6)
    got = resize_position_embedding(embedding, (4, 4), target, antialias=antialias)
    for channel in range(6):
        alone = F.interpolate(
            embedding[None, None, 1:, channel].double().reshape(1, 1, 4, 4),
            target,
            mode='bicubic',
            align_corners=False,
            antialias=antialias,
        )
        torch.testing.assert_close(
            got[1:, channel], alone.flatten().float(), atol=1e-6, rtol=1e-5
        )
    assert torch.equal(got[0], embedding[0])


@pytest.mark.parametrize(
    ('size', 'grid'), [((39, 33), (4, 4)), ((47, 71), (5, 8)), ((3, 5), (1, 1))]
)
def test_odd_sizes_are_resized_to_the_next_lower_multiple(ours, size, grid):
    image = images(1, 3, *size)
    target = [8 * cells for cells in grid]
    resized = F.interpolate(image, target, mode='bilinear', align_corners=False)
    got = ours.encode(image)
    assert got.grid == grid
    torch.testing.assert_close(got.features, ours.encode(resized).features)


def test_attentions_equal_multihead_attention(ours, library):
    image = images(2, 3, 32, 32)
    tokens = library.visual._embeds((image - MEAN) / STD)
    wanted = []
    for block in library.visual.transformer.resblocks:
        normed = block.ln_1(tokens)
        wanted.append(block.attn(normed, normed, normed, need_weights=True)[1])
        tokens = block(tokens)
    got = ours.encode(image).attentions
    assert got.shape == (2, 3, 17, 17)
    torch.testing.assert_close(got, torch.stack(wanted[1:], 1), atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(got.sum(-1), torch.ones(2, 3, 17))


def test_encoded_is_without_attentions_when_none_are_wanted(weights):
    encoder = FrozenCLIP(model=TINY_CLIP, weights=weights, num_attentions=0, **WORDS)
    assert encoder.encode(images(1, 3, 32, 32)).attentions is None


@pytest.mark.parametrize('count', [1, 4])
def test_features_do_not_depend_on_the_number_of_attentions(ours, weights, count):
    encoder = FrozenCLIP(
        model=TINY_CLIP, weights=weights, num_attentions=count, **WORDS
    )
    image = images(1, 3, 32, 32)
    got, wanted = encoder.encode(image), ours.encode(image)
    assert got.attentions.shape[1] == count
    torch.testing.assert_close(
        got.features[-1], wanted.features[-1], atol=2e-6, rtol=1e-5
    )


@pytest.mark.parametrize(('layer', 'skip'), [(-1, 0), (-2, 1)])
@pytest.mark.parametrize('divisor', [1.0, 4.0])
def test_grad_cams_equal_one_class_at_a_time(weights, library, layer, skip, divisor):
    encoder = FrozenCLIP(
        model=TINY_CLIP,
        weights=weights,
        num_attentions=2,
        cam_input_layer=layer,
        logit_scale_divisor=divisor,
        **WORDS,
    )
    image = images(3, 3, 32, 32)
    label = torch.tensor([[1.0, 0, 1], [0, 1, 0], [0, 0, 0]])
    wanted = sequential_grad_cams(
        library, image, [[0, 2], [1], []], skip=skip, divisor=divisor
    )
    got = encoder.grad_cams(encoder.encode(image), label)
    scale = wanted.max()
    assert scale > 0
    torch.testing.assert_close(got / scale, wanted / scale, atol=1e-4, rtol=1e-4)
    assert got.shape == (3, 3, 4, 4)
    assert not got.requires_grad
    assert got[2].abs().sum() == 0
    assert got[0, 1].abs().sum() == 0
    same = encoder.grad_cams(encoder.encode(image), label, max_classes=2)
    torch.testing.assert_close(same, got)


@pytest.mark.parametrize(('layer', 'skip'), [(-1, 0), (-2, 1), (0, 2)])
def test_last_attention_is_that_of_the_pass_that_gives_the_cams(
    weights, library, layer, skip
):
    encoder = FrozenCLIP(
        model=TINY_CLIP,
        weights=weights,
        num_attentions=2,
        cam_input_layer=layer,
        **WORDS,
    )
    image = images(2, 3, 32, 32)
    blocks = library.visual.transformer.resblocks
    with torch.no_grad():
        tokens = library.visual._embeds((image - MEAN) / STD)
        inputs = [tokens]
        for block in blocks[:-1]:
            inputs.append(block(inputs[-1]))
        wanted = []
        for block, tokens in (
            (blocks[-2], inputs[-2]),
            (blocks[-1], inputs[-1 - skip]),
        ):
            normed = block.ln_1(tokens)
            wanted.append(block.attn(normed, normed, normed)[1])
    torch.testing.assert_close(
        encoder.encode(image).attentions, torch.stack(wanted, 1), atol=1e-5, rtol=1e-4
    )


def test_grad_cams_follow_the_pooling_of_the_model():
    config = {**TINY_CLIP, 'vision_cfg': {**TINY_CLIP['vision_cfg']}}
    config['vision_cfg'].update(pool_type='avg', final_ln_after_pool=True)
    encoder = FrozenCLIP(model=config, num_attentions=0, **WORDS)
    image = images(2, 3, 32, 32)
    tower = encoder.tower
    with torch.no_grad():
        tokens = tower.transformer(tower._embeds((image - MEAN) / STD))
        feature = F.normalize(tower((image - MEAN) / STD), dim=-1)
        wanted = encoder.logit_scale * feature @ encoder.text_features.T
        got = encoder._text_logits(tokens)
    torch.testing.assert_close(got, wanted, atol=1e-5, rtol=1e-5)


def test_grad_cams_work_where_gradients_are_off(ours):
    image, label = images(1, 3, 32, 32), torch.ones(1, 3)
    wanted = ours.grad_cams(ours.encode(image), label)
    with torch.no_grad():
        torch.testing.assert_close(ours.grad_cams(ours.encode(image), label), wanted)
    with torch.inference_mode():
        got = ours.grad_cams(ours.encode(image.clone()), label.clone())
    torch.testing.assert_close(got, wanted)


def test_autocast_changes_features_and_cams_little(ours):
    image, label = images(1, 3, 32, 32), torch.ones(1, 3)
    plain = ours.encode(image)
    wanted = ours.grad_cams(plain, label)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        encoded = ours.encode(image)
        got = ours.grad_cams(encoded, label)
    assert encoded.features[-1].dtype == encoded.attentions.dtype == torch.float32
    assert got.dtype == torch.float32
    close = {'atol': 0.05, 'rtol': 0.05}
    torch.testing.assert_close(encoded.features[-1], plain.features[-1], **close)
    torch.testing.assert_close(got / wanted.max(), wanted / wanted.max(), **close)


def test_text_features_are_the_unit_mean_over_templates(weights, library):
    templates = ['a clean origami {}.', 'a photo of the {}']
    encoder = FrozenCLIP(
        model=TINY_CLIP, weights=weights, templates=templates, num_attentions=1, **WORDS
    )
    words = [*WORDS['class_names'], *WORDS['background_words']]
    wanted = library_texts(library, words, templates)
    torch.testing.assert_close(encoder.text_features, wanted, atol=1e-6, rtol=1e-5)
    assert not any('token_embedding' in n for n, _ in encoder.tower.named_modules())


def test_openai_archive_of_the_tool_is_read_with_quick_gelu(tmp_path):
    config = json.loads(json.dumps(TINY_CLIP))
    config['vision_cfg'].update(head_width=64, width=64)
    config['text_cfg'].update(width=64, heads=1)
    path = tmp_path / 'odd.json'
    path.write_text(json.dumps(config))
    archive = load_tool('make_random_weights').save_clip(str(path), tmp_path)
    # The library's own reader of OpenAI archives is the judge.
    wanted = open_clip.load_openai_model(str(archive), precision='fp32', device='cpu')
    encoder = FrozenCLIP(
        model=str(path), weights=str(archive), **WORDS, num_attentions=1
    )
    image = images(1, 3, 32, 32)
    block = encoder.tower.transformer.resblocks[0]
    assert type(block.mlp.gelu).__name__ == 'QuickGELU'
    assert block.attn.in_proj_weight.dtype == torch.float32
    torch.testing.assert_close(
        encoder.encode(image).features[0],
        library_features(wanted, image, [2])[0],
        atol=1e-5,
        rtol=1e-5,
    )


@pytest.mark.parametrize('wrap', [False, True])
def test_torch_files_are_read_like_safetensors(ours, library, tmp_path, wrap):
    path = tmp_path / 'tiny.pt'
    state = {f'module.{k}': v for k, v in library.state_dict().items()}
    torch.save({'epoch': 3, 'state_dict': state} if wrap else state, path)
    encoder = FrozenCLIP(model=TINY_CLIP, weights=str(path), num_attentions=0, **WORDS)
    image = images(1, 3, 32, 32)
    torch.testing.assert_close(
        encoder.encode(image).features[-1], ours.encode(image).features[-1]
    )


def test_random_weights_are_the_same_each_time_and_leave_the_rng_alone():
    torch.manual_seed(5)
    wanted = torch.rand(3)
    torch.manual_seed(5)
    first = FrozenCLIP(model=TINY_CLIP, num_attentions=0, **WORDS)
    torch.testing.assert_close(torch.rand(3), wanted)
    second = FrozenCLIP(model=TINY_CLIP, num_attentions=0, **WORDS)
    assert torch.equal(first.text_features, second.text_features)
    assert torch.equal(first.tower.proj, second.tower.proj)


def test_normalisation_is_clips_own_unless_given(ours, tmp_path):
    torch.testing.assert_close(ours.mean, MEAN)
    torch.testing.assert_close(ours.std, STD)
    config = {
        'model_cfg': TINY_CLIP,
        'preprocess_cfg': {'mean': [0.5, 0.4, 0.3], 'std': [0.2, 0.2, 0.1]},
    }
    path = tmp_path / 'open_clip_config.json'
    path.write_text(json.dumps(config))
    own = FrozenCLIP(model=str(path), num_attentions=0, **WORDS)
    torch.testing.assert_close(own.mean.flatten(), torch.tensor([0.5, 0.4, 0.3]))
    given = FrozenCLIP(
        model=str(path), num_attentions=0, mean=OPENAI_MEAN, std=OPENAI_STD, **WORDS
    )
    torch.testing.assert_close(given.mean, MEAN)


def test_tag_brings_file_gelu_and_normalisation(monkeypatch, weights, library):
    config = {'mean': (0.1, 0.2, 0.3), 'std': (0.5, 0.5, 0.5), 'quick_gelu': True}
    monkeypatch.setattr(open_clip, 'get_pretrained_cfg', lambda name, tag: config)
    monkeypatch.setattr(open_clip, 'download_pretrained', lambda config: weights)
    encoder = FrozenCLIP(model=TINY_CLIP, weights='sometag', num_attentions=0, **WORDS)
    block = encoder.tower.transformer.resblocks[0]
    assert type(block.mlp.gelu).__name__ == 'QuickGELU'
    torch.testing.assert_close(encoder.mean.flatten(), torch.tensor([0.1, 0.2, 0.3]))


def test_failed_download_says_what_to_do(monkeypatch):
    def fail(config):
        raise FileNotFoundError('no route to host')

    monkeypatch.setattr(open_clip, 'download_pretrained', fail)
    with pytest.raises(InputError, match="'openai' of ViT-B-16 could not be downl"):
        FrozenCLIP(model='ViT-B-16', weights='openai', **WORDS)


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        ({'model': 'ViT-B-17'}, "no model 'ViT-B-17'.*'ViT-B-16'"),
        ({'model': 'nowhere.json'}, "config 'nowhere.json' cannot be read"),
        ({'model': 7}, 'model must be a name, a path or a dict, got 7'),
        ({'model': {'embed_dim': 3}}, r"needs vision_cfg and text_cfg.*\['embed_dim'"),
        ({'model': {**TINY_CLIP, 'colour': 1}}, "cannot build.*'colour'"),
        ({'model': 'coca_ViT-B-32'}, 'own text model'),
        ({'model': 'RN50'}, 'image tower is a ModifiedResNet'),
        ({'weights': 'here.pt'}, "no weights file at '.*here.pt'"),
        ({'model': 'ViT-B-16', 'weights': 'a/b.pt'}, r'`curl -L .*ViT-B-16.pt`'),
        ({'model': 'ViT-B-16', 'weights': 'opnai'}, r'its tags are \[.*openai'),
        ({'num_attentions': 5}, 'num_attentions must be 0..4.*got 5'),
        ({'feature_layers': (3,)}, r'feature_layers must lie in -3..2 .*got 3'),
        ({'feature_layers': ()}, 'feature_layers is empty'),
        ({'cam_input_layer': -4}, 'cam_input_layer must lie in -3..2'),
        ({'logit_scale_divisor': 0.0}, 'divisor must be positive, got 0.0'),
        ({'class_names': 'dog'}, "class_names must be a list of words, got 'dog'"),
        ({'class_names': ()}, 'class_names is empty'),
        ({'class_names': ('dog', 'sky')}, "'sky' stands twice"),
        ({'templates': ('a photo',)}, "exactly one '{}'.*'a photo'"),
        ({'std': (1.0, 0.0, 1.0)}, 'positive std'),
    ],
)
def test_unusable_arguments_raise_one_sentence(change, message):
    arguments = {'model': TINY_CLIP, 'num_attentions': 0, **WORDS, **change}
    with pytest.raises(InputError, match=message) as caught:
        FrozenCLIP(**arguments)
    assert '\n' not in str(caught.value)


def test_foreign_weights_raise_one_sentence(tmp_path, weights):
    other = {**TINY_CLIP, 'vision_cfg': {**TINY_CLIP['vision_cfg'], 'layers': 5}}
    with pytest.raises(InputError, match=r'does not fit.*missing: visual.*more'):
        FrozenCLIP(model=other, weights=weights, **WORDS)
    wide = {**TINY_CLIP, 'embed_dim': 16}
    with pytest.raises(InputError, match=r'does not fit.*size mismatch') as caught:
        FrozenCLIP(model=wide, weights=weights, **WORDS)
    assert '\n' not in str(caught.value)


class NotATensor:
    pass


@pytest.mark.parametrize(
    ('content', 'message'),
    [
        (b'', 'cannot be read'),
        (b'not a checkpoint', 'cannot be read|more than tensors'),
        ({'state_dict': {'a': 1}}, 'holds no state dict'),
        ([1, 2], 'holds no state dict'),
        ({'state_dict': {}, 'x': NotATensor()}, 'more than tensors'),
    ],
)
def test_unreadable_weights_raise_one_sentence(tmp_path, content, message):
    path = tmp_path / 'broken.pt'
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path)
    with pytest.raises(InputError, match=message) as caught:
        FrozenCLIP(model=TINY_CLIP, weights=str(path), **WORDS)
    assert '\n' not in str(caught.value)


def test_truncated_safetensors_raise_one_sentence(tmp_path, weights):
    path = tmp_path / 'cut.safetensors'
    with open(weights, 'rb') as file:
        path.write_bytes(file.read(5000))
    with pytest.raises(InputError, match=r'cut\.safetensors. cannot be read'):
        FrozenCLIP(model=TINY_CLIP, weights=str(path), **WORDS)


def test_wrong_number_of_prompts_is_named(ours):
    encoded = ours.encode(images(1, 3, 32, 32))
    with pytest.raises(InputError, match=r'shape \(1, 20\).*given 3 class_names'):
        ours.grad_cams(encoded, torch.ones(1, 20))
