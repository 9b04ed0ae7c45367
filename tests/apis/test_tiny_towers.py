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
    DINO_CONFIG,
    TrainingPhoto,
    draw_training_photos,
    save_clip,
    save_dino,
    train_clip,
    train_dino,
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


@pytest.mark.parametrize('train', [train_clip, train_dino])
def test_training_is_deterministic_and_moves_the_weights(photos, train):
    runs = [
        train(photos, seed=seed, iterations=count, batch_size=2).state_dict()
        for seed, count in ((0, 2), (0, 2), (0, 1), (1, 2))
    ]
    same = [
        all(torch.equal(runs[0][key], other[key]) for key in other) for other in runs
    ]
    assert same == [True, True, False, False]
    assert all(torch.isfinite(value).all() for value in runs[0].values())


def test_files_load_in_the_encoders(photos, tmp_path):
    clip = train_clip(photos, seed=0, iterations=1, batch_size=2)
    assert save_clip(clip, tmp_path) == tmp_path / 'clip.safetensors'
    vit = train_dino(photos, seed=0, iterations=1, batch_size=2)
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
        patches = tiny_towers._encode_patches(clip, image, np.random.default_rng(0))
        ours = F.normalize(patches.mean(1), dim=-1)
    torch.testing.assert_close(ours, own, atol=1e-5, rtol=1e-5)


def test_views_know_where_their_patches_come_from():
    # A photo whose colour is its own position: two views must agree where they meet.
    ramp = np.mgrid[0:140, 0:180].astype(np.float32)
    photo = np.round(np.stack([ramp[1], ramp[0], 0 * ramp[0]], -1)).astype(np.uint8)
    rng = np.random.default_rng(0)
    flips = set()
    for _ in range(12):
        first, second = tiny_towers._window_pair(photo, rng)
        flips.add((first.flip, second.flip))
        views = [
            torch.from_numpy(tiny_towers._cut(photo, window, 96)).float()
            for window in (first, second)
        ]
        pooled = F.avg_pool2d(views[0].permute(2, 0, 1)[None], 8)
        places = tiny_towers._same_places(first, second, 12)[None]
        sampled = F.grid_sample(
            views[1].permute(2, 0, 1)[None], places, align_corners=False
        )
        # Outside of the photo the views show its mirror image; leave that out.
        inside = (places.abs() < 0.9).all(-1)[0]
        centre = (np.arange(12) + 0.5) / 12
        x = first.x + (1 - centre if first.flip else centre) * first.side
        y = first.y + centre * first.side
        inside &= torch.from_numpy(
            np.outer((y > 8) & (y < 132), (x > 8) & (x < 172)).astype(bool)
        )
        assert (pooled - sampled)[0][:, inside].abs().max() < 1.6
    assert len(flips) == 4


class ColourClusters(torch.nn.Module):
    """Stands in for a tower: cosines to 25 fixed colours, no parameters."""

    def forward(self, image, mask, shift):
        std = torch.tensor(tiny_towers.DINO_STD).view(1, 3, 1, 1)
        mean = torch.tensor(tiny_towers.DINO_MEAN).view(1, 3, 1, 1)
        colour = F.avg_pool2d(image * std + mean, 8)[:, :2].flatten(2).transpose(1, 2)
        steps = torch.linspace(0, 0.6, 5)
        clusters = torch.cartesian_prod(steps, steps)
        return 1 - 4 * torch.cdist(colour, clusters.expand(len(colour), -1, -1))


def test_student_learns_the_same_place_of_the_other_view(monkeypatch):
    for name in ('_jitter', '_recolour'):
        monkeypatch.setattr(tiny_towers, name, lambda image, *_, **__: image)
    ramp = np.mgrid[0:140, 0:140].astype(np.uint8)
    photos = [np.stack([ramp[1], ramp[0], 0 * ramp[0]], -1)] * 8
    model, rng = ColourClusters(), np.random.default_rng(0)
    loss, confidence = tiny_towers._dino_step(model, model, photos, rng)
    assert loss < 1.0
    assert confidence > 0.5


def test_sinkhorn_uses_all_clusters():
    cosine = torch.rand(400, 10, generator=torch.Generator().manual_seed(0))
    cosine[:, 0] += 0.3
    found = tiny_towers._sinkhorn(cosine, sharpness=10.0, rounds=20)
    torch.testing.assert_close(found.sum(1), torch.ones(400))
    torch.testing.assert_close(found.sum(0), torch.full((10,), 40.0), rtol=1e-3, atol=0)


def test_multi_positive_loss_by_hand():
    logits = torch.tensor([[1.0, 2.0, 0.5], [0.0, 0.0, 0.0]])
    positive = torch.tensor([[True, False, True], [False, False, False]])
    expected = -(logits[0].log_softmax(0)[[0, 2]]).mean()
    found = tiny_towers._multi_positive(logits, positive)
    torch.testing.assert_close(found, expected)


def test_captions_name_only_what_is_shown(photos):
    rng = np.random.default_rng(0)
    texts, named = tiny_towers._captions(photos, rng)
    assert len(texts) == len(named) == len(photos) + len(tiny_towers.CONCEPTS)
    for photo, text, words in zip(photos, texts, named, strict=False):
        assert words <= set(photo.concepts)
        assert all(word in text for word in words)


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
