"""Stored pseudo-labels as training labels: loading and packing."""

import os
import os.path as osp
from collections.abc import Sequence

import numpy as np
import torch
from mmcv.transforms import BaseTransform
from mmengine.structures import PixelData

from mmwsss.errors import InputError
from mmwsss.registry import TRANSFORMS

from .transforms import LoadMask, PackWSSSInputs


@TRANSFORMS.register_module()
class LoadPseudoLabels(BaseTransform):
    """Reads the stored pseudo-label of a photo, and how far to trust it.

    Files lie in one folder each and bear the image id: index or palette PNGs with
    255 for undecided, and grey 8-bit PNGs with 255 for full reliability. Both go
    through the same crops, resizes and flips as the photo.

    Args:
        label_root: folder of the label PNGs, or several: the first that has a photo's
            label is taken, so corrected ones stand in front.
        reliability_root: folder of the reliability PNGs, None where there are none; of
            several folders of labels one each, None for labels that are sure.
        num_classes: C with background; values from there to 254 raise InputError.
    """

    def __init__(
        self,
        *,
        label_root: str | Sequence[str],
        reliability_root: str | Sequence[str | None] | None = None,
        num_classes: int | None = None,
    ) -> None:
        several = not isinstance(label_root, str)
        roots = tuple(label_root) if several else (label_root,)
        sure = reliability_root
        if several and sure is not None:
            self.reliability_roots = tuple(sure)
        else:
            self.reliability_roots = (sure,) * len(roots)
        if not roots or len(roots) != len(self.reliability_roots):
            raise ValueError(
                'label_root must be one or more folders, and reliability_root None or '
                f'as many, got {label_root} and {reliability_root}'
            )
        self.label_roots = roots
        self.has_reliability = sure is not None
        self._label_reader = LoadMask(num_classes=num_classes)
        self._reliability_reader = LoadMask()

    def transform(self, results: dict) -> dict:
        """Adds ``gt_seg_map`` and maybe ``reliability_map``, (H, W) uint8."""
        name = (
            results.get('img_id') or osp.splitext(osp.basename(results['img_path']))[0]
        )
        place = self._place(name)
        label = self._read(
            results, self._label_reader, self.label_roots[place], name, 'pseudo-label'
        )
        maps = {'gt_seg_map': label}
        sure = self.reliability_roots[place]
        if sure is not None:
            maps['reliability_map'] = self._read(
                results, self._reliability_reader, sure, name, 'reliability map'
            )
        elif self.has_reliability:
            maps['reliability_map'] = np.full_like(label, 255)
        results.update(maps)
        results['seg_fields'] = [*results.get('seg_fields', []), *maps]
        return results

    def _place(self, name: str) -> int:
        """Which folder has the label; the last one where none has it."""
        last = len(self.label_roots) - 1
        for place, root in enumerate(self.label_roots[:last]):
            if osp.isfile(osp.join(root, f'{name}.png')):
                return place
        return last

    def _read(
        self, results: dict, reader: LoadMask, root: str, name: str, what: str
    ) -> np.ndarray:
        path = osp.join(root, f'{name}.png')
        if not osp.isfile(path):
            number = len(os.listdir(root)) if osp.isdir(root) else 'no'
            raise InputError(
                f'the {what} {osp.abspath(path)} of the photo '
                f'{results.get("img_path")} does not exist ({number} files are in that '
                'folder); store it there or correct the folder in the config'
            )
        asked = {
            'seg_map_path': path,
            'img_path': results.get('img_path'),
            'ori_shape': results['ori_shape'],
        }
        return reader.transform(asked)['gt_seg_map']


@TRANSFORMS.register_module()
class PackPseudoLabels(PackWSSSInputs):
    """``PackWSSSInputs``, and the reliability map as ``pseudo_reliability``.

    Args:
        meta_keys: what of the results is kept as meta information, where present.
    """

    def transform(self, results: dict) -> dict:
        """As ``PackWSSSInputs``; ``pseudo_reliability`` is (1, H, W) in [0, 1]."""
        packed = super().transform(results)
        if 'reliability_map' in results:
            values = np.ascontiguousarray(results['reliability_map'])
            reliability = torch.from_numpy(values)[None].float() / 255
            packed['data_samples'].set_field(
                PixelData(data=reliability), 'pseudo_reliability', dtype=PixelData
            )
        return packed
