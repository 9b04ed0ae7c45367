"""A tiny transformer and batches for the tests of classifiers that give CAMs."""

import numpy as np
import torch
from mmseg.structures import SegDataSample

SIZE = (24, 40)  # 3 x 5 patches
MEAN = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
STD = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
VIT = dict(
    type='mmpretrain.VisionTransformer',
    arch=dict(embed_dims=12, num_layers=3, num_heads=2, feedforward_channels=16),
    img_size=SIZE,
    patch_size=8,
    out_type='raw',
    out_indices=[-1],
)


def batch(labels=((1, 0, 1), (0, 1, 0), (0, 0, 0)), shape=(20, 30)):
    samples = []
    for label in labels:
        sample = SegDataSample(
            metainfo=dict(img_shape=shape, ori_shape=shape, pad_shape=SIZE)
        )
        label = torch.tensor(label, dtype=torch.float32)
        sample.set_field(label, 'image_label', dtype=torch.Tensor)
        samples.append(sample)
    generator = torch.Generator().manual_seed(1)
    image = torch.rand(len(labels), 3, *SIZE, generator=generator)
    image[..., shape[0] :, :] = 0
    image[..., shape[1] :] = 0
    return image, samples


def photo_and_label(size=SIZE, label=(1, 0, 1)):
    generator = torch.Generator().manual_seed(2)
    photo = torch.randint(0, 256, (3, *size), generator=generator, dtype=torch.uint8)
    return photo, torch.tensor(label, dtype=torch.float32)


def soft_margin(scores, labels):
    """Mean over images and classes of the binary cross entropy."""
    total = 0.0
    for row, label in zip(scores, labels, strict=True):
        for score, there in zip(row, label, strict=True):
            probability = 1 / (1 + np.exp(-score))
            right = probability if there else 1 - probability
            total -= np.log(right) / len(row) / len(scores)
    return total
