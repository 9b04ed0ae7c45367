import json
import subprocess
import sys
from itertools import count

import fake_cams
import fake_inference
import numpy as np
import pytest
import tiny_run
import torch
from PIL import Image

import mmwsss.apis
from mmwsss.apis.inferencer import WSSSInferencer
from mmwsss.apis.label_rules import BackgroundRule
from mmwsss.errors import InputError


@pytest.fixture(scope='module')
def colours(tmp_path_factory):
    return fake_inference.write(tmp_path_factory.mktemp('colours'))


@pytest.fixture(scope='module')
def inferencer(colours):
    return WSSSInferencer(*colours[1:])


def truth(root, name):
    return np.array(Image.open(root / f'SegmentationClass/{name}.png'))


def overlap(a, b):
    return (a & b).sum() / (a | b).sum()


def test_masks_are_what_the_network_sees(colours, inferencer):
    root = colours[0]
    results = list(inferencer(root / 'JPEGImages', scores=True))
    assert [r.id for r in results] == [f'photo_{i}' for i in range(8)]
    for result in results:
        mask = truth(root, result.id)
        assert overlap(result.mask == mask, np.ones_like(mask, bool)) > 0.98
        assert result.mask.dtype == np.uint8
        assert result.scores.shape == (3, 48, 64)
        assert np.array_equal(result.scores.argmax(0), result.mask)
        # The share of the label among the scores, which add up to one.
        assert np.allclose(result.reliability, result.scores.max(0), atol=1e-5)
        assert result.tags is None
        assert result.missing == () == result.unexpected
        assert set(result.classes) == {
            tiny_run.CLASSES[k - 1] for k in set(mask.flat) - {0}
        }


@pytest.mark.parametrize(
    ('tags', 'classes', 'missing', 'unexpected'),
    [
        (['disc', 'bar'], ('disc', 'bar'), (), ()),
        (['bar'], ('bar',), (), ('disc',)),
        ([], (), (), ('disc', 'bar')),
    ],
)
def test_tags_limit_the_classes(
    colours, inferencer, tags, classes, missing, unexpected
):
    photo = colours[0] / 'JPEGImages/photo_3.jpg'
    (found,) = inferencer(photo, tags, scores=True)
    # Shares among background and the photo's classes.
    assert np.allclose(found.scores.sum(0), 1, atol=1e-5)
    assert (found.classes, found.missing) == (classes, missing)
    assert found.unexpected == unexpected
    assert set(np.unique(found.mask)) <= {0, *(k for k, _ in found.numbered_classes)}


def test_a_tag_that_is_nowhere_is_said(colours, inferencer):
    (found,) = inferencer(colours[0] / 'JPEGImages/photo_1.jpg', ['disc', 'bar'])
    assert found.classes == ('disc',)
    assert found.missing == ('bar',)


@pytest.mark.parametrize(('side', 'unexpected'), [(5, ()), (10, ('disc',))])
def test_what_is_tiny_contradicts_no_tag(inferencer, side, unexpected):
    photo = np.full((100, 100, 3), 90, np.uint8)
    photo[40 : 40 + side, 40 : 40 + side] = (250, 0, 0)
    (found,) = inferencer(photo, ['bar'])
    assert found.unexpected == unexpected


def test_ways_to_give_photos_and_tags(colours, inferencer):
    root = colours[0]
    files = [str(root / f'JPEGImages/photo_{i}.jpg') for i in (1, 3)]
    arrays = [np.array(Image.open(file)) for file in files]
    labels = root / 'image_labels.json'
    content = json.loads(labels.read_text())['labels']
    by_id = list(inferencer(files, labels))
    assert [r.tags for r in by_id] == [('disc',), ('disc', 'bar')]
    for same in (
        inferencer(files, content),
        inferencer(iter(files), [content['photo_1'], content['photo_3']]),
        inferencer(arrays, [['disc'], ['disc', 'bar']]),
        inferencer(np.stack(arrays), [['disc'], ['bar', 'disc']]),
    ):
        for a, b in zip(by_id, same, strict=True):
            assert np.array_equal(a.mask, b.mask)
            assert a.tags == b.tags


def test_nothing_runs_ahead(inferencer):
    drawn = []

    def endless():
        for number in count():
            drawn.append(number)
            yield np.full((20, 30, 3), (250, 0, 0), np.uint8)

    results = inferencer(endless())
    assert (next(results).mask == 1).all()
    assert next(results).id == '1'
    assert drawn == [0, 1]


def test_a_large_photo_is_seen_small_and_labelled_large(colours, monkeypatch):
    small = WSSSInferencer(*colours[1:], max_side=64)
    photo = np.full((150, 400, 3), 90, np.uint8)
    photo[40:110, 100:300] = (240, 20, 20)
    seen, step = [], small.model.test_step
    monkeypatch.setattr(
        small.model,
        'test_step',
        lambda batch: seen.append(batch['data_samples'][0].ori_shape) or step(batch),
    )
    (found,) = small(photo, ['disc'], scores=True)
    assert seen == [(24, 64)]
    assert found.mask.shape == found.reliability.shape == (150, 400)
    assert found.scores.shape == (3, 150, 400)
    expected = np.zeros((150, 400), bool)
    expected[40:110, 100:300] = True
    assert overlap(found.mask == 1, expected) > 0.9
    assert found.overlay().shape == (150, 400, 3)
    assert found.overlay(max_side=100).shape == (38, 100, 3)


@pytest.mark.parametrize('size', [(1, 1), (1, 70), (3, 2)])
def test_tiny_photos(inferencer, size):
    (found,) = inferencer(np.zeros((*size, 3), np.uint8), ['bar'])
    assert found.mask.shape == size
    assert found.missing == ('bar',)


def test_the_loading_step_of_mmsegmentation_is_left_out_too(tmp_path):
    root, *rest = fake_inference.write(tmp_path, load='LoadImageFromFile')
    (found,) = WSSSInferencer(*rest)(root / 'JPEGImages/photo_3.jpg')
    assert overlap(found.mask == truth(root, 'photo_3'), found.mask >= 0) > 0.98


def test_undecided_pixels(colours):
    photo = colours[0] / 'JPEGImages/photo_3.jpg'
    strict = WSSSInferencer(*colours[1:], low=0.01, high=0.99)
    (found,) = strict(photo, ['disc', 'bar'], scores=True)
    best = found.scores[1:].max(0)
    assert np.array_equal(found.mask == 255, (best > 0.01) & (best < 0.99))
    assert (found.mask == 255).any()
    assert (found.reliability[found.mask == 255] == 0).all()


def test_cams_become_masks(tmp_path):
    config, checkpoint = fake_cams.write(tmp_path)
    photo = tmp_path / 'data/JPEGImages/photo_3.jpg'
    refiners = [dict(type='mmwsss.PAMR', num_iters=2)]
    cams = WSSSInferencer(
        config,
        checkpoint,
        kind='cam',
        background=BackgroundRule('threshold', 0.5),
        refiners=refiners,
    )
    (found,) = cams(photo, ['disc'])
    mask = truth(tmp_path / 'data', 'photo_3')
    assert overlap(found.mask == 1, mask == 1) > 0.7
    assert 2 not in found.mask
    # This network does not say which classes it sees.
    assert found.unexpected is None
    with pytest.raises(InputError, match="give the tags of 'photo_3'"):
        next(cams(photo))


def test_a_one_stage_segmentor_gives_predictions_cams_and_refined_scores(tmp_path):
    from mmengine.registry import init_default_scope
    from mmseg.registry import MODELS

    root = tiny_run.draw(tmp_path / 'data')
    content = tiny_run.config(root)
    content['test_dataloader'] = content['train_dataloader']
    content['test_dataloader']['dataset']['pipeline'] = [
        dict(type='mmwsss.LoadPhoto'),
        dict(type='mmwsss.LoadMask'),
        dict(type='mmwsss.PackWSSSInputs'),
    ]
    # Padding to the training crop is for batches.
    content['model']['data_preprocessor'].pop('size')
    config = tiny_run.write_config(tmp_path / 'one.py', content)
    init_default_scope('mmseg')
    torch.manual_seed(0)
    import mmwsss.models  # noqa: F401

    state = MODELS.build(content['model']).state_dict()
    torch.save({'state_dict': state, 'meta': {}}, tmp_path / 'one.pth')
    photo = root / 'JPEGImages/photo_3.jpg'
    for kind in (None, 'cams', 'refined'):
        look = WSSSInferencer(config, tmp_path / 'one.pth', kind=kind)
        (found,) = look(photo, ['disc', 'bar'])
        assert found.mask.shape == (48, 64)
        assert (found.reliability <= 1).all()
        assert (found.unexpected is None) == (kind is not None)
    with pytest.raises(InputError, match="it has no 'boxes'"):
        WSSSInferencer(config, tmp_path / 'one.pth', kind='boxes')


@pytest.mark.parametrize(
    ('photos', 'tags', 'sentence'),
    [
        (np.zeros((8, 8), np.uint8), None, r'\(H, W, 3\)'),
        (np.zeros((8, 8, 3)), None, 'uint8'),
        ([3], None, 'a path or an array'),
        ('nowhere.jpg', None, 'does not exist'),
        (np.zeros((8, 8, 3), np.uint8), ['cat'], "the tag 'cat'.*disc, bar"),
        (np.zeros((8, 8, 3), np.uint8), {'other': []}, "no entry for the photo '0'"),
        (np.zeros((2, 8, 8, 3), np.uint8), [['bar']], 'tags for 1 photos'),
    ],
)
def test_unusable_input(inferencer, photos, tags, sentence):
    with pytest.raises(InputError, match=sentence):
        list(inferencer(photos, tags))


@pytest.mark.parametrize(
    ('given', 'sentence'),
    [
        (dict(low=0.5), 'both low and high'),
        (dict(low=0.5, high=0.4), 'low <= high'),
        (dict(max_side=0), 'max_side'),
        (dict(kind='cams'), "it has no 'cams'"),
        (dict(classes=['a', 'b', 'c']), None),
    ],
)
def test_unusable_arguments(colours, given, sentence):
    if sentence is None:
        other = WSSSInferencer(*colours[1:], **given)
        with pytest.raises(InputError, match='predicts 3 classes'):
            next(other(np.zeros((8, 8, 3), np.uint8)))
        return
    with pytest.raises(InputError, match=sentence):
        WSSSInferencer(*colours[1:], **given)


def test_class_names_come_from_the_checkpoint(colours, tmp_path):
    state = {'gain': torch.tensor(1.0)}
    meta = {'dataset_meta': {'classes': ('background', 'sun', 'sea')}}
    torch.save({'state_dict': state, 'meta': meta}, tmp_path / 'a.pth')
    assert WSSSInferencer(colours[1], tmp_path / 'a.pth').classes == ('sun', 'sea')
    meta = {'dataset_meta': {'classes': ('wall', 'sky')}}
    torch.save({'state_dict': state, 'meta': meta}, tmp_path / 'b.pth')
    with pytest.raises(InputError, match='without a background'):
        WSSSInferencer(colours[1], tmp_path / 'b.pth')


def test_it_is_imported_on_demand():
    done = subprocess.run(
        [
            sys.executable,
            '-c',
            'import sys, mmwsss.apis; print("torch" in sys.modules)',
        ],
        capture_output=True,
        text=True,
        check=True,
        cwd=tiny_run.ROOT,
    )
    assert done.stdout.split() == ['False']
    assert mmwsss.apis.WSSSInferencer is WSSSInferencer
    with pytest.raises(AttributeError, match='has no attribute'):
        mmwsss.apis.nothing  # noqa: B018
