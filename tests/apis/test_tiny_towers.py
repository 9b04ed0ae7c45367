import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from mmwsss.apis import tiny_towers
from mmwsss.apis.tiny_towers import (
    CLIP_CONFIG,
    CONCEPTS,
    DINO_CONFIG,
    TrainingPhoto,
    draw_training_photos,
    save_clip,
    save_dino,
    train_clip,
    train_dino,
    train_scout,
)
from mmwsss.datasets.synthetic import BACKGROUND_WORDS, CLASSES, draw_photo
from mmwsss.models.encoders import FrozenCLIP, FrozenDINOv2

pytestmark = pytest.mark.mm
TOWERS = Path(tiny_towers.__file__).parents[1] / 'datasets' / 'tiny_towers'


@pytest.fixture(scope='module')
def photos():
    return draw_training_photos(6, seed=1)


def shipped_clip():
    return FrozenCLIP(
        model=str(TOWERS / 'clip.json'),
        weights=str(TOWERS / 'clip.safetensors'),
        class_names=CLASSES,
        background_words=BACKGROUND_WORDS,
        num_attentions=4,
    )


def shipped_dino():
    return FrozenDINOv2(
        weights=str(TOWERS / 'dino.safetensors'),
        **json.loads((TOWERS / 'dino.json').read_text()),
    )


def to_tensor(image):
    return torch.from_numpy(image).permute(2, 0, 1)[None].float() / 255


def test_photos_come_with_names_but_no_mask(photos):
    drawn = draw_photo(1, 2, stream='towers')
    assert np.array_equal(photos[2].image, drawn.image)
    assert photos[2].concepts == (*drawn.classes, *drawn.words)
    assert set(TrainingPhoto.__dataclass_fields__) == {'image', 'concepts'}


def trained_scout(photos, **options):
    return train_scout(
        photos, **{**dict(seed=0, iterations=1, batch_size=4), **options}
    )


def trained_clip(photos, **options):
    settings = dict(seed=0, iterations=1, text_iterations=1, batch_size=2)
    return train_clip(photos, trained_scout(photos), **{**settings, **options})


def trained_dino(photos, **options):
    settings = dict(seed=0, iterations=1, batch_size=2)
    return train_dino(photos, trained_scout(photos), **{**settings, **options})


@pytest.mark.parametrize('train', [trained_scout, trained_clip, trained_dino])
def test_training_is_deterministic_and_moves_the_weights(photos, train):
    runs = [
        train(photos, seed=seed, iterations=count).state_dict()
        for seed, count in ((0, 2), (0, 2), (0, 1), (1, 2))
    ]
    same = [
        all(torch.equal(runs[0][key], other[key]) for key in other) for other in runs
    ]
    assert same == [True, True, False, False]
    assert all(torch.isfinite(value).all() for value in runs[0].values())


def test_files_load_in_the_encoders(photos, tmp_path):
    clip = trained_clip(photos)
    assert save_clip(clip, tmp_path) == tmp_path / 'clip.safetensors'
    vit = trained_dino(photos)
    save_dino(vit, tmp_path)
    assert json.loads((tmp_path / 'clip.json').read_text()) == CLIP_CONFIG
    assert json.loads((tmp_path / 'dino.json').read_text()) == DINO_CONFIG
    half = load_file(tmp_path / 'clip.safetensors')
    assert {value.dtype for value in half.values()} == {torch.float16}
    assert set(half) == set(clip.state_dict())
    encoder = FrozenDINOv2(weights=str(tmp_path / 'dino.safetensors'), **DINO_CONFIG)
    image = torch.rand(1, 3, 144, 144)
    with torch.no_grad():
        normal = tiny_towers.normalize(
            image, tiny_towers.DINO_MEAN, tiny_towers.DINO_STD
        )
        expected = vit(normal)[0]
    found = encoder.encode(image).features[-1]
    torch.testing.assert_close(found, expected, atol=0.02, rtol=0.02)


def test_image_feature_is_open_clips_own():
    torch.manual_seed(0)
    clip = tiny_towers.open_clip.CLIP(**CLIP_CONFIG, quick_gelu=True).eval()
    image = torch.randn(2, 3, 144, 144)
    with torch.no_grad():
        own = clip.encode_image(image, normalize=True)
        patches = tiny_towers._encode_patches(clip, image, skip=False)
        ours = F.normalize(patches.mean(1), dim=-1)
    torch.testing.assert_close(ours, own, atol=1e-5, rtol=1e-5)


def test_student_is_mmpretrains_tower_where_nothing_is_hidden():
    torch.manual_seed(0)
    student = tiny_towers._Student().eval()
    image = torch.randn(2, 3, 144, 144)
    hidden = torch.zeros(2, 324, dtype=torch.bool)
    with torch.no_grad():
        own = student.head(student.vit(image)[0].flatten(2).transpose(1, 2))
        torch.testing.assert_close(student(image, hidden), own, atol=1e-5, rtol=1e-5)
        hidden[:, 7] = True
        other = image.clone()
        other[:, :, :8, 56:64] = 0  # the pixels of patch 7
        assert torch.equal(student(image, hidden), student(other, hidden))


def test_places_get_only_words_of_their_photo():
    scores = torch.randn(2, 20, 18, 18, generator=torch.Generator().manual_seed(0))
    answer = torch.zeros(2, 20)
    answer[0, [3, 11]] = 1
    found = tiny_towers._words_of_places(scores, answer, 18)
    assert found.shape == (2, 324, 20)
    # Two words: their shares are a sigmoid of half the difference over the softness.
    gap = (scores[0, 3] - scores[0, 11]).flatten() / tiny_towers._SOFTNESS
    torch.testing.assert_close(found[0, :, 3], gap.sigmoid(), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found[0, :, 11], 1 - gap.sigmoid(), atol=1e-5, rtol=1e-5)
    assert (found[1] == 1 / 20).all()  # a photo without words


def test_naming_loss_by_hand():
    score = torch.tensor([[2.0, -1.0, *[0.0] * 18], [1.0, 1.0, *[-2.0] * 18]])
    answer = torch.zeros(2, 20)
    answer[0, 0] = answer[1, 0] = answer[1, 1] = 1
    sigmoid = score.double().sigmoid()
    right = torch.where(answer == 1, sigmoid, 1 - sigmoid)
    named = score[0, :8].double().softmax(0)[0]  # only the first shows one class
    expected = -8 * right.log().mean() - named.log()
    found = tiny_towers._naming_loss(score, answer)
    torch.testing.assert_close(found, expected.float())
    answer[:] = 0
    assert torch.isfinite(tiny_towers._naming_loss(score, answer))


def test_feature_gap_does_not_depend_on_scale():
    target = torch.randn(4, 9, 3, generator=torch.Generator().manual_seed(0))
    constant = target.mean((0, 1)).expand_as(target)
    found = tiny_towers._feature_gap(constant, target)
    torch.testing.assert_close(found, torch.tensor(35 / 36))
    scale = torch.tensor([1.0, 10.0, 0.1])
    torch.testing.assert_close(
        tiny_towers._feature_gap(constant * scale, target * scale), found
    )
    assert torch.isfinite(tiny_towers._feature_gap(constant * 0, target * 0))


def test_views_are_normalised_windows_with_their_words(photos):
    image, answer = tiny_towers._views(
        photos, np.random.default_rng(0), count=5, side=40
    )
    assert image.shape == (5, 3, 40, 40)
    assert answer.shape == (5, 20)
    shown = {tuple(float(w in p.concepts) for w in CONCEPTS) for p in photos}
    assert {tuple(row.tolist()) for row in answer} <= shown
    dino = tiny_towers._as_dino(image)
    shape = (1, 3, 1, 1)
    pixels = dino * torch.tensor(tiny_towers.DINO_STD).view(shape)
    pixels = 255 * (pixels + torch.tensor(tiny_towers.DINO_MEAN).view(shape))
    torch.testing.assert_close(pixels, pixels.round(), atol=2e-3, rtol=0)
    assert pixels.min() > -1
    assert pixels.max() < 256


def test_captions_name_what_they_say():
    texts, named = tiny_towers._captions(np.random.default_rng(0), count=30)
    assert named.shape == (50, 20)
    for text, row in zip(texts, named, strict=True):
        words = [w for w, there in zip(CONCEPTS, row, strict=True) if there]
        assert 1 <= len(words) <= 3
        assert all(word in text for word in words)
    assert torch.equal(named[30:], torch.eye(20))


def test_shipped_towers_are_small():
    sizes = [path.stat().st_size for path in TOWERS.iterdir()]
    assert sum(sizes) < 6e6


def test_shipped_clip_recognises_the_classes():
    encoder, hits = shipped_clip(), []
    for index in range(40):
        photo = draw_photo(77, index, stream='val')
        if len(photo.classes) != 1:
            continue
        encoded = encoder.encode(to_tensor(photo.image))
        block = encoder.tower.transformer.resblocks[-1]
        with torch.no_grad():
            tokens = encoder.tower.ln_post(block(encoded.last_block_input)[:, 1:])
            feature = (tokens @ encoder.tower.proj).mean(1)
        best = (feature @ encoder.text_features.t())[0, : len(CLASSES)].argmax()
        hits.append(CLASSES[best] == photo.classes[0])
    assert np.mean(hits) > 0.6


def test_shipped_clip_finds_the_objects():
    # Mean over objects of the share of the map's mass that lies on the object; the
    # objects cover about an eighth of their photos.
    encoder, gains = shipped_clip(), []
    for index in range(30):
        photo = draw_photo(77, index, stream='val')
        if len(photo.classes) != 1:
            continue
        label = torch.tensor([[float(name in photo.classes) for name in CLASSES]])
        encoded = encoder.encode(to_tensor(photo.image))
        cams = encoder.grad_cams(encoded, label)
        cam = F.interpolate(cams, photo.mask.shape, mode='bilinear')[0].sum(0)
        inside = torch.from_numpy((photo.mask > 0) & (photo.mask < 255))
        share = cam[inside].sum() / cam.sum().clamp(min=1e-9)
        gains.append(float(share / inside.float().mean()))
    assert np.mean(gains) > 2


def test_shipped_dino_groups_objects():
    # Patches of one object are more alike than patches of object and background.
    encoder, gaps = shipped_dino(), []
    for index in range(12):
        photo = draw_photo(77, index, stream='val')
        feature = encoder.encode(to_tensor(photo.image)).features[-1][0]
        rows, cols = feature.shape[1:]
        height, width = photo.mask.shape
        y = ((np.arange(rows) + 0.5) * height / rows).astype(int)
        x = ((np.arange(cols) + 0.5) * width / cols).astype(int)
        label = torch.from_numpy(photo.mask[np.ix_(y, x)].astype(int)).flatten()
        feature = F.normalize(feature.flatten(1).t(), dim=1)
        inside = feature[(label > 0) & (label < 255)]
        outside = feature[label == 0]
        if len(inside) > 10:
            gaps.append((inside @ inside.t()).mean() - (inside @ outside.t()).mean())
    assert torch.stack(gaps).mean() > 0.1
