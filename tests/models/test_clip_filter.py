import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy import ndimage

pytest.importorskip('mmengine')

from encoder_cases import ROOT, TINY_CLIP

from mmwsss.errors import InputError
from mmwsss.functional import scores_to_label
from mmwsss.models.encoders import FrozenCLIP
from mmwsss.models.refiners import CLIPFilter
from mmwsss.models.refiners.clip_filter import components

pytestmark = pytest.mark.mm


def case():
    """A photo: a red square and a blue one said to be 'red', and a red speck."""
    image = torch.full((1, 3, 48, 64), 0.5)
    scores = torch.zeros(1, 3, 48, 64)
    scores[:, 0] = 0.25
    for rows, columns, channel, score in (
        (slice(4, 20), slice(6, 22), 0, 0.9),
        (slice(24, 44), slice(30, 50), 2, 0.8),
        (slice(40, 42), slice(2, 4), 0, 0.7),
    ):
        image[:, :, rows, columns] = 0.0
        image[:, channel, rows, columns] = 1.0
        scores[:, 1, rows, columns] = score
    scores[:, 2, :3, :] = 0.9  # an absent class
    return image, scores, torch.tensor([[1.0, 0.0]])


def embeddings(image):
    """Cells of 4 x 4 pixels with their mean colour, and prompts red, green, blue."""
    cells = F.avg_pool2d(image, 4)[0] - 0.5
    return cells, torch.eye(3)[[0, 1, 2]]


def build(**options):
    return CLIPFilter(**dict(embeddings='x') | options)


def test_components_that_look_like_background_go():
    image, scores, label = case()
    refined = build(keep_best=False)(image, scores, label, [embeddings(image)])
    found = scores_to_label(refined, label)[0]
    assert (found[4:20, 6:22] == 1).all()
    assert (found[24:44, 30:50] == 0).all()
    # The speck is too small to be judged.
    assert (found[40:42, 2:4] == 1).all()
    assert (found == 1).sum() == 16 * 16 + 4
    changed = slice(24, 44), slice(30, 50)
    assert (refined[0, 0][changed] == 0.8).all()
    assert (refined[0, 1][changed] == 0.25).all()
    assert (refined[0, 2] == 0).all()


def test_a_class_of_the_image_keeps_its_best_component():
    image, scores, label = case()
    cells, texts = embeddings(image)
    wrong = texts[[1, 1, 0, 2]]  # neither square is green
    keeps = build()(image, scores, label, [(cells, wrong)])
    found = scores_to_label(keeps, label)[0]
    inside = [bool((found[r, c] == 1).all()) for r, c in ((10, 10), (30, 40))]
    assert sum(inside) == 1
    drops = build(keep_best=False)(image, scores, label, [(cells, wrong)])
    assert (scores_to_label(drops, label) == 1).sum() == 4
    # A photo without objects stays one.
    nothing = build()(image, scores, torch.zeros(1, 2), [(cells, wrong)])
    assert (nothing[:, 1:] == 0).all()


def test_components_equal_those_of_scipy():
    label = np.random.default_rng(0).integers(0, 3, (20, 25))
    found = list(components(label, 3))
    expected = []
    for k in (1, 2):
        numbers, count = ndimage.label(label == k, structure=np.ones((3, 3)))
        masks = [numbers == n for n in range(1, count + 1)]
        expected += [(k - 1, m.tobytes()) for m in masks if m.sum() >= 3]
    assert sorted((k, m.tobytes()) for k, m in found) == sorted(expected)
    assert len(found) > 2


def test_clip_looks_at_what_is_around_each_component(monkeypatch):
    """With CLIP in the place of stored embeddings; its tower replaced by colours."""
    image, scores, label = case()
    refiner = CLIPFilter(
        model=TINY_CLIP,
        class_names=['red', 'green'],
        background_words=['blue'],
        keep_best=False,
    )
    assert not list(refiner.parameters())
    seen = []

    def colours(crops):
        seen.append(crops)
        return F.normalize(crops.mean((2, 3)) - 0.5, dim=1)

    monkeypatch.setattr(refiner.clip, 'image_features', colours)
    refiner.clip.text_features = torch.eye(3)
    found = scores_to_label(refiner(image, scores, label), label)[0]
    assert (found[4:20, 6:22] == 1).all()
    assert (found[24:44, 30:50] == 0).all()
    (crops,) = seen
    assert crops.shape == (2, 3, 32, 32)
    # 16 pixels of the red square in 20 of the crop, grey around it.
    share = (crops[0, 0].mean().item() - 0.5) / 0.5
    assert share == pytest.approx((16 / 20) ** 2, abs=0.02)


@pytest.mark.parametrize('pool', ['tok', 'avg'])
def test_features_of_images_and_of_their_cells(pool):
    config = TINY_CLIP | {'vision_cfg': TINY_CLIP['vision_cfg'] | {'pool_type': pool}}
    clip = FrozenCLIP(
        model=config,
        class_names=['dog'],
        background_words=['sky'],
        num_attentions=0,
    )
    image = torch.rand(2, 3, 32, 32)
    normal = (image - clip.mean) / clip.std
    with torch.no_grad():
        expected = clip.tower(normal)
        recorded = []
        block = clip.tower.transformer.resblocks[-1]
        hook = block.register_forward_hook(lambda m, i, o: recorded.append(o))
        clip.tower(normal)
        hook.remove()
    found = clip.image_features(image)
    assert torch.allclose(found, F.normalize(expected, dim=1), atol=1e-6)
    patches = recorded[0][:, 1:]
    cells = F.normalize(clip.tower.ln_post(patches) @ clip.tower.proj, dim=-1)
    cells = cells.transpose(1, 2).unflatten(2, (4, 4))
    assert torch.allclose(clip.cell_features(image), cells, atol=1e-5)
    # Any size: the whole image is resized, cells become more.
    large = F.interpolate(image, (64, 48), mode='bilinear')
    assert clip.image_features(large).shape == (2, 24)
    assert clip.cell_features(large).shape == (2, 24, 8, 6)


def test_it_runs_with_the_towers_of_the_package():
    towers = ROOT / 'mmwsss/datasets/tiny_towers'
    refiner = CLIPFilter(
        model=str(towers / 'clip.json'),
        weights=str(towers / 'clip.safetensors'),
        class_names=['disc', 'bar'],
        background_words=['sky', 'ground'],
    )
    image, scores, label = case()
    refined = refiner(image, scores[..., ::4, ::4], label)
    assert refined.shape == (1, 3, 48, 64)
    assert (scores_to_label(refined, label) == 1).any()


def test_it_says_what_is_missing_or_wrong():
    image, scores, label = case()
    for options in (dict(embeddings=None), dict(model=TINY_CLIP)):
        with pytest.raises(InputError, match=r'needs either model .* or embeddings'):
            build(**options)
    with pytest.raises(InputError, match='class_names and background_words, one or'):
        CLIPFilter(model=TINY_CLIP, class_names=['dog'])
    with pytest.raises(ValueError, match='got -1 and 16'):
        build(context=-1)
    with pytest.raises(InputError, match='which only python tools/make_pseudo_labels'):
        build()(image, scores, label)
    refiner = CLIPFilter(model=TINY_CLIP, class_names=['dog'], background_words=['sky'])
    with pytest.raises(InputError, match='has 1 class_names, but the data set 2'):
        refiner(image, scores, label)
