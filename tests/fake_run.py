"""A run without a network: its CAMs and predictions are spoilt copies of the masks.

It offers what evaluation asks of a segmentor (``explain`` and ``test_step``), so that
scores and reports can be tested against answers that are known beforehand.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from mmengine.structures import PixelData
from mmseg.models.data_preprocessor import SegDataPreProcessor
from mmseg.structures import SegDataSample
from PIL import Image
from torch import nn

from mmwsss.registry import DATASETS, MODELS

CONFIG = """
default_scope = 'mmseg'
custom_imports = dict(imports=['fake_run'], allow_failed_imports=False)
model = dict(type='mmwsss.FakeSegmentor', num_classes={num_classes}, pad={pad})
loader = dict(batch_size=1, num_workers=0,
    sampler=dict(type='DefaultSampler', shuffle=False))
train_eval_dataloader = dict(
    dataset=dict(type='mmwsss.FakePhotos', root={root!r}, split='train'), **loader)
val_dataloader = dict(
    dataset=dict(type='mmwsss.FakePhotos', root={root!r}, split='val'), **loader)
"""


@dataclass
class Explanation:
    cams: torch.Tensor
    refined: torch.Tensor
    pseudo_label: torch.Tensor
    seg_logits: torch.Tensor


@DATASETS.register_module()
class FakePhotos(torch.utils.data.Dataset):
    def __init__(self, *, root: str, split: str) -> None:
        self.root = Path(root)
        content = json.loads((self.root / 'image_labels.json').read_text())
        self.metainfo = {'classes': ('background', *content['classes'])}
        self.labels = content['labels']
        lists = self.root / 'ImageSets' / 'Segmentation'
        self.ids = (lists / f'{split}.txt').read_text().split()

    def full_init(self) -> None:
        pass

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> dict:
        name = self.ids[index]
        photo = next((self.root / 'JPEGImages').glob(f'{name}.*'))
        pixels = np.array(Image.open(photo).convert('RGB'))[..., ::-1].copy()
        sample = SegDataSample()
        sample.set_metainfo(
            {
                'img_id': name,
                'img_path': str(photo),
                'ori_shape': pixels.shape[:2],
                'img_shape': pixels.shape[:2],
            }
        )
        mask = self.root / 'SegmentationClass' / f'{name}.png'
        if mask.exists():
            label = torch.from_numpy(np.array(Image.open(mask))).long()
            sample.gt_sem_seg = PixelData(data=label[None])
        present = [c in self.labels[name] for c in self.metainfo['classes'][1:]]
        sample.set_field(torch.tensor(present).float(), 'image_label')
        inputs = torch.from_numpy(pixels).permute(2, 0, 1).contiguous()
        return {'inputs': inputs, 'data_samples': sample}


@MODELS.register_module()
class FakeSegmentor(nn.Module):
    """Refined labels are the truth; the rest is off by a known amount."""

    def __init__(self, *, num_classes: int, pad: int) -> None:
        super().__init__()
        self.data_preprocessor = SegDataPreProcessor(
            mean=[0.0] * 3,
            std=[255.0] * 3,
            bgr_to_rgb=True,
            test_cfg={'size_divisor': pad} if pad else None,
        )
        self.num_classes = num_classes
        self.noise = nn.Parameter(torch.tensor(0.0))

    def _truth(self, inputs: torch.Tensor, samples: list) -> torch.Tensor:
        maps = []
        for sample in samples:
            if 'gt_sem_seg' in sample:
                label = sample.gt_sem_seg.data[0].clone()
            else:
                label = torch.zeros(sample.ori_shape, dtype=torch.long)
            label[label == 255] = 0
            height, width = inputs.shape[-2:]
            missing = (0, width - label.shape[1], 0, height - label.shape[0])
            maps.append(F.pad(label, missing, value=self.num_classes - 1))
        one_hot = F.one_hot(torch.stack(maps), self.num_classes)
        return one_hot.permute(0, 3, 1, 2).float()

    def explain(self, inputs: torch.Tensor, data_samples: list) -> Explanation:
        truth = self._truth(inputs, data_samples)
        image_label = torch.stack([s.image_label for s in data_samples])
        # Half as high at the outside: a threshold of 0.5 finds the core only.
        shrunk = -F.max_pool2d(-truth, 9, stride=1, padding=4)
        cams = (0.4 * truth + 0.6 * shrunk)[:, 1:] * image_label[:, :, None, None]
        wobble = self.noise * torch.sin(31 * inputs.mean(1, keepdim=True))
        wide = F.avg_pool2d(cams, 15, stride=1, padding=7, count_include_pad=False)
        cams = torch.where(self.noise > 0, (wide + wobble * wide).clamp(0, 1), cams)
        label = truth.argmax(1)
        undecided = (cams.amax(1) > 0.3) & (cams.amax(1) < 0.6)
        return Explanation(cams, truth, label.masked_fill(undecided, 255), truth)

    def test_step(self, batch: dict) -> list:
        data = self.data_preprocessor(batch, training=False)
        truth = self._truth(data['inputs'], data['data_samples'])
        shift = 4 + int(20 * self.noise)
        for i, sample in enumerate(data['data_samples']):
            height, width = sample.img_shape
            label = truth[i, :, :height, :width].argmax(0)
            data['data_samples'][i].pred_sem_seg = PixelData(
                data=label.roll(shift, dims=1)[None]
            )
        return data['data_samples']


def draw_photos(root: Path, *, num_train: int = 6, num_val: int = 5) -> Path:
    """Squares of class 1 and 2 on noise, in VOC layout; class 3 is never there."""
    rng = np.random.default_rng(0)
    for folder in ('JPEGImages', 'SegmentationClass', 'ImageSets/Segmentation'):
        (root / folder).mkdir(parents=True)
    labels = {}
    for split, count in (('train', num_train), ('val', num_val)):
        ids = [f'{split}_{i}' for i in range(count)]
        listing = root / 'ImageSets' / 'Segmentation' / f'{split}.txt'
        listing.write_text('\n'.join(ids) + '\n')
        for i, name in enumerate(ids):
            mask = np.zeros((44 + i, 60 - i), dtype=np.uint8)
            mask[:2] = 255
            if i % 3 < 2:
                mask[10:34, 12:36] = 1 + i % 2
            photo = (
                rng.integers(60, 90, (*mask.shape, 3)) + 60 * (mask % 255)[..., None]
            )
            Image.fromarray(photo.astype(np.uint8)).save(
                root / 'JPEGImages' / f'{name}.png'
            )
            Image.fromarray(mask).save(root / 'SegmentationClass' / f'{name}.png')
            labels[name] = [['box', 'crate'][i % 2]] if i % 3 < 2 else []
    content = {'classes': ['box', 'crate', 'ghost'], 'labels': labels}
    (root / 'image_labels.json').write_text(json.dumps(content))
    return root


def write_run(work_dir: Path, root: Path, *, pad: int = 0, noise: float = 0.0) -> Path:
    """Write config, checkpoint and log of a run on such photos; returns the config."""
    work_dir.mkdir(parents=True, exist_ok=True)
    content = json.loads((root / 'image_labels.json').read_text())
    num_classes = len(content['classes']) + 1
    config = work_dir / 'fake_config.py'
    config.write_text(CONFIG.format(root=str(root), num_classes=num_classes, pad=pad))
    model = FakeSegmentor(num_classes=num_classes, pad=pad)
    model.noise.data.fill_(noise)
    checkpoint = work_dir / 'iter_40.pth'
    torch.save(
        {'state_dict': model.state_dict(), 'meta': {'iter': 40, 'seed': 3}}, checkpoint
    )
    (work_dir / 'last_checkpoint').write_text(str(checkpoint))
    log = work_dir / '20260101_000000' / 'vis_data' / 'scalars.json'
    log.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(1)
    lines = []
    for step in range(10, 2001, 10):
        fall = float(np.exp(-step / 500))
        jitter = float(rng.normal(0, 0.08))
        lines.append(
            {
                'loss': 0.4 + 1.6 * fall + jitter,
                'decode.loss_ce': 0.3 + 1.2 * fall + 0.7 * jitter,
                'decode.loss_dice': 0.1 + 0.4 * fall + 0.3 * jitter,
                'loss_affinity': 0.05 + 0.3 * fall + 0.1 * jitter,
                'wsss/kept': 0.6 + 0.3 * (1 - fall),
                'lr': 1e-4,
                'step': step,
            }
        )
        if step % 400 == 0:
            lines.append({'mIoU': 62 - 40 * fall, 'aAcc': 91 - 20 * fall, 'step': step})
    log.write_text('\n'.join(json.dumps(line) for line in lines) + '\n{"loss": 1.')
    return config
