"""A segmentor that reads colours: red is a disc, blue a bar, anything else nothing."""

from pathlib import Path

import torch
from fake_cams import write_checkpoint
from mmengine.structures import PixelData
from mmseg.models.data_preprocessor import SegDataPreProcessor
from mmseg.structures import SegDataSample
from tiny_run import draw
from torch import nn

from mmwsss.registry import MODELS

CONFIG = """
default_scope = 'mmseg'
custom_imports = dict(
    imports=['mmwsss.models', 'mmwsss.datasets', 'fake_inference'],
    allow_failed_imports=False)
model = dict(type='mmwsss.ColourSegmentor')
data = dict(type='mmwsss.ImageLabelDataset', data_root={root!r}, ann_file='train.txt',
    image_labels='image_labels.json', data_prefix=dict(img_path='JPEGImages'))
train_dataloader = dict(dataset=dict(**data, pipeline=[]))
test_dataloader = dict(dataset=dict(**data, pipeline=[
    dict(type={load!r}), dict(type='Resize', scale=(128, 96), keep_ratio=True),
    dict(type='PackSegInputs')]))
"""


@MODELS.register_module()
class ColourSegmentor(nn.Module):
    """Logits (3, H, W) at the photo's size: 0 and 20 times the colour's excess."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(1.0))
        self.data_preprocessor = SegDataPreProcessor(
            mean=[0.0] * 3, std=[255.0] * 3, bgr_to_rgb=True
        )

    def test_step(self, batch: dict) -> list[SegDataSample]:
        data = self.data_preprocessor(batch, training=False)
        image, sample = data['inputs'][0], data['data_samples'][0]
        height, width = sample.ori_shape
        image = nn.functional.interpolate(image[None], (height, width))[0]
        red, _, blue = image
        excess = 20 * torch.stack([red - blue - 0.3, blue - red - 0.3])
        logits = torch.cat([torch.zeros_like(excess[:1]), excess]) * self.gain
        sample.seg_logits = PixelData(data=logits)
        return [sample]


def write(folder: Path, *, load: str = 'mmwsss.LoadPhoto') -> tuple[Path, Path, Path]:
    """The eight drawn photos, a config and a checkpoint; returns all three."""
    root = draw(folder / 'data')
    config = folder / 'colours.py'
    config.write_text(CONFIG.format(root=str(root), load=load))
    return root, config, write_checkpoint(folder / 'colours.pth')
