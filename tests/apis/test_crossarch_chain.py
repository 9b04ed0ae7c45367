"""CrossArch on the drawn benchmark, from maps over every refiner to a segmentor.

One class and two, nothing downloaded; networks are trained for a step or not at all, so
that what is looked at is who understands whom, not how good it is.
"""

import json
from dataclasses import asdict

import numpy as np
import pytest
import tiny_run
import torch
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmengine.runner import Runner
from PIL import Image
from scipy import ndimage

from mmwsss.apis.label_rules import BackgroundRule
from mmwsss.apis.make_cams import CAMOptions, make_cams
from mmwsss.apis.make_pseudo_labels import LabelOptions, make_pseudo_labels
from mmwsss.apis.photos import list_photos
from mmwsss.datasets import CAMStore, SegmentStore
from mmwsss.datasets.co_occurrence import CLASSES, CoOccurrence, generate
from mmwsss.datasets.transforms import read_photo
from mmwsss.registry import MODELS

pytestmark = pytest.mark.mm
TOWERS = tiny_run.ROOT / 'mmwsss/datasets/tiny_towers'
SMALL = dict(depth=18, stem_channels=8, base_channels=8)


@pytest.fixture(scope='module', params=[1, 2], ids=['one class', 'two classes'])
def chain(request, tmp_path_factory):
    """Photos, maps of a student, and the config that speaks of both."""
    root = tmp_path_factory.mktemp(f'chain_{request.param}')
    settings = CoOccurrence(
        num_classes=request.param, num_pos=4, num_neg=4, cells=(1, 1, 1, 1)
    )
    generate(root / 'data', settings)
    assert asdict(settings)['num_classes'] == request.param
    config = Config.fromfile(tiny_run.ROOT / 'configs/crossarch_synth.py')
    config.merge_from_dict(
        {
            'model.num_classes': request.param,
            'model.teacher_checkpoint': 'untrained',
            'model.test_scales': (1.0,),
            'train_cfg.max_iters': 1,
            'train_dataloader.batch_size': 4,
            'train_dataloader.num_workers': 0,
            'train_dataloader.persistent_workers': False,
            **{
                f'{split}_dataloader.dataset.data_root': str(root / 'data')
                for split in ('train', 'train_eval', 'val', 'test')
            },
        }
    )
    train(config, root / 'student')
    options = CAMOptions(
        config=str(root / 'student/config.py'),
        checkpoint=root / 'student/iter_1.pth',
        out=root / 'cams',
        num_classes=request.param,
    )
    found = list_photos(config, split='train')
    make_cams(config, found, options, show=False)
    return root, config, found


def train(config, work_dir):
    config.work_dir = str(work_dir)
    for split in ('val', 'test'):
        config.pop(f'{split}_cfg', None)
        config.pop(f'{split}_evaluator', None)
    loaders = {name: config.pop(f'{name}_dataloader', None) for name in ('val', 'test')}
    work_dir.mkdir(parents=True)
    init_default_scope(config.default_scope)
    Runner.from_cfg(config).train()
    for name, loader in loaders.items():
        if loader is not None:
            config[f'{name}_dataloader'] = loader
    config.dump(work_dir / 'config.py')


def trained(root, name, **model):
    """A refiner that is trained, as its initialisation leaves it."""
    config = Config(
        dict(
            default_scope='mmseg',
            custom_imports=dict(imports=['mmwsss.models', 'mmwsss.datasets']),
            model=dict(
                type=f'mmwsss.{name}',
                backbone=dict(
                    type='mmwsss.FrozenBackbone',
                    backbone=dict(
                        type='mmpretrain.ResNet',
                        **SMALL,
                        num_stages=2,
                        strides=(1, 2),
                        dilations=(1, 1),
                        out_indices=(0, 1),
                    ),
                ),
                **model,
            ),
        )
    )
    config.dump(root / f'{name}.py')
    torch.manual_seed(0)
    state = MODELS.build(config.model).state_dict()
    torch.save({'state_dict': state}, root / f'{name}.pth')
    return dict(
        type='mmwsss.TrainedRefiner',
        config=str(root / f'{name}.py'),
        checkpoint=str(root / f'{name}.pth'),
    )


def segments(root, found):
    """Connected regions of like colour, as any generator of segments would find."""
    for photo in found.photos:
        grey = read_photo(str(photo.path)).mean(-1)
        masks = []
        for level in np.unique(grey // 32):
            regions, number = ndimage.label(grey // 32 == level)
            masks += [regions == k for k in range(1, number + 1)]
        masks = [mask for mask in masks if mask.sum() >= 20]
        SegmentStore(root / 'segments').write(photo.id, masks)
    return dict(type='mmwsss.SAMMerge', segments=str(root / 'segments'), min_iou=0.1)


def words(root, found):
    return dict(
        type='mmwsss.CLIPFilter',
        model=str(TOWERS / 'clip.json'),
        weights=str(TOWERS / 'clip.safetensors'),
        class_names=found.class_names,
        background_words=['sky', 'roof'],
    )


REFINERS = {
    'nothing': lambda root, found: None,
    'PAMR': lambda root, found: dict(type='mmwsss.PAMR'),
    'CRF': lambda root, found: dict(type='mmwsss.DenseCRF'),
    'PSA': lambda root, found: trained(
        root, 'AffinityNet', channels=(4, 6), stride=4, radius=3, num_steps=4
    ),
    'IRN': lambda root, found: trained(
        root,
        'IRNet',
        strides=(4, 8),
        displacement_channels=(8, 8),
        edge_channels=4,
        radius=3,
        pad_size=None,
        walk_num_steps=4,
    ),
    'segments': segments,
    'words': words,
}


def labelled(chain, name):
    root, config, found = chain
    refiner = REFINERS[name](root, found)
    options = LabelOptions(
        config=str(root / 'student/config.py'),
        cams=root / 'cams',
        backgrounds=[BackgroundRule.parse('0.3')],
        refiners=[] if refiner is None else [refiner],
        out=root / f'labels {name}',
        num_classes=len(found.class_names),
    )
    made = make_pseudo_labels(config, found, options, show=False)
    assert made in (0, len(found.photos))
    return {
        p.id: np.asarray(Image.open(options.label_file(p.id))) for p in found.photos
    }


def test_maps_are_of_the_classes_that_are_there(chain):
    root, _, found = chain
    assert list(found.class_names) == list(CLASSES[: len(found.class_names)])
    for photo in found.photos:
        stored = CAMStore(root / 'cams').read(photo.id)
        assert tuple(stored.classes) == photo.classes
    assert {len(photo.classes) for photo in found.photos} >= {0, 1}


@pytest.mark.parametrize('name', REFINERS)
def test_each_refiner_knows_what_to_do(chain, name):
    if name == 'CRF':
        pytest.importorskip('pydensecrf', reason='DenseCRF is an extra')
    _, _, found = chain
    plain, refined = labelled(chain, 'nothing'), labelled(chain, name)
    for photo in found.photos:
        present = {0, *(k + 1 for k in photo.classes)}
        assert refined[photo.id].shape == (48, 48)
        assert set(np.unique(refined[photo.id])) <= present
    changed = any((plain[key] != refined[key]).any() for key in plain)
    assert changed == (name != 'nothing') or name == 'words'


def test_an_ordinary_segmentor_learns_from_the_labels(chain):
    """One class more than there are kinds of objects: two for smoke alone."""
    root, base, found = chain
    labelled(chain, 'nothing')
    num_classes = len(found.class_names) + 1
    config = Config(
        dict(
            default_scope='mmseg',
            custom_imports=base.custom_imports,
            model=dict(
                type='EncoderDecoder',
                data_preprocessor=dict(
                    type='SegDataPreProcessor', size=(48, 48), seg_pad_val=255
                ),
                backbone=dict(
                    type='ResNet',
                    **SMALL,
                    num_stages=4,
                    strides=(1, 2, 1, 1),
                    dilations=(1, 1, 1, 1),
                    norm_cfg=dict(type='BN'),
                ),
                decode_head=dict(
                    type='FCNHead',
                    in_channels=64,
                    in_index=3,
                    channels=8,
                    num_convs=1,
                    num_classes=num_classes,
                    norm_cfg=dict(type='BN'),
                ),
                train_cfg=dict(),
                test_cfg=dict(mode='whole'),
            ),
            train_dataloader=base.train_dataloader.to_dict(),
            optim_wrapper=dict(
                type='OptimWrapper', optimizer=dict(type='SGD', lr=0.01)
            ),
            train_cfg=dict(type='IterBasedTrainLoop', max_iters=2, val_interval=2),
            default_hooks=dict(checkpoint=None, sampler_seed=None),
        )
    )
    config.train_dataloader.dataset.pipeline = [
        dict(type='mmwsss.LoadPhoto'),
        dict(
            type='mmwsss.LoadPseudoLabels',
            label_root=str(root / 'labels nothing/SegmentationClass'),
            num_classes=num_classes,
        ),
        dict(type='mmwsss.PackPseudoLabels'),
    ]
    config.work_dir = str(root / 'segmentor')
    init_default_scope('mmseg')
    runner = Runner.from_cfg(config)
    losses = []
    plain = runner.model.loss

    def watched(inputs, data_samples):
        of_batch = plain(inputs, data_samples)
        losses.append(of_batch['decode.loss_ce'].item())
        return of_batch

    runner.model.loss = watched
    runner.train()
    assert len(losses) == 2
    assert np.isfinite(losses).all()
    photo = read_photo(str(found.photos[0].path))
    image = torch.from_numpy(photo.transpose(2, 0, 1).copy())[None].float()
    scores = runner.model.eval()(image, mode='tensor')
    assert scores.shape[1] == num_classes
    assert json.loads((root / 'data/image_labels.json').read_text())['classes'] == list(
        found.class_names
    )
