"""Cases of whole training steps, built from the configs with random weights."""

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from mmwsss.apis.benchmark.case import (
    CHECKOUT,
    Budget,
    Case,
    Cost,
    Setting,
    counted_operations,
)
from mmwsss.errors import InputError

TOWERS = CHECKOUT / 'mmwsss/datasets/tiny_towers'
PHOTO_SIZE = (375, 500)  # height and width of a VOC photo


@dataclass(frozen=True, kw_only=True)
class TrainingStep(Case):
    """Forward, labels, losses, backward and optimizer of one batch; no data loading.

    Late in the training, where all losses and the repair of labels are on. bfloat16
    autocast on a GPU, float32 on a CPU. operations: those of all matrix products,
    convolutions and attentions of the step, counted as it runs; bytes are not.
    """

    group: ClassVar[str] = 'training'
    has_naive: ClassVar[bool] = False
    half_precision: ClassVar[bool] = True
    keeps_memory: ClassVar[bool] = True
    config: str
    options: Mapping[str, object] = field(default_factory=dict)
    batch_size: int
    side: int
    present: int = 2

    def make(self, setting: Setting) -> tuple:
        """Model, optimizer and a batch of drawn crops."""
        model, wrapper, num_classes = self._build(setting)
        n, side = self.batch_size, self.side
        coarse = setting.rand(n, 3, max(2, side // 16), max(2, side // 16))
        image = F.interpolate(coarse, (side, side), mode='bicubic').clamp(0, 1)
        inputs = [(255 * one).to(torch.uint8).cpu() for one in image]
        label = setting.image_label(n, num_classes, self.present).cpu()
        samples = [_sample(i, one, side) for i, one in enumerate(label)]
        _be_late(model, samples, label)
        return model, wrapper, inputs, samples

    def _build(self, setting: Setting) -> tuple:
        from mmengine.config import Config
        from mmengine.optim import build_optim_wrapper
        from mmengine.registry import init_default_scope
        from mmseg.registry import MODELS

        path = CHECKOUT / 'configs' / self.config
        if not path.is_file():
            raise InputError(
                f'{path} does not exist; run the benchmark in a checkout of the '
                'repository'
            )
        config = Config.fromfile(path)
        config.merge_from_dict(dict(self.options))
        init_default_scope(config.default_scope)
        torch.manual_seed(setting.seed)
        if setting.device == 'cuda':
            config.optim_wrapper.update(type='AmpOptimWrapper', dtype='bfloat16')
        with _silence():
            model = MODELS.build(config.model).to(setting.device).train()
            wrapper = build_optim_wrapper(model, config.optim_wrapper)
        head = config.model.get('decode_head')
        num_classes = head.num_classes - 1 if head else config.model.num_classes
        return model, wrapper, num_classes

    def fast(self, inputs: tuple) -> None:
        """One step, as MMEngine's loop and the teacher's hook make it."""
        model, wrapper, images, samples = inputs
        # A step writes its labels on the samples; a loader brings fresh ones.
        batch = dict(inputs=images, data_samples=[s.clone() for s in samples])
        model.train_step(batch, optim_wrapper=wrapper)
        if getattr(model, 'teacher_head', None) is not None:
            model.update_teacher(0.999)

    def cost(self, inputs: tuple) -> Cost:
        """See the class."""
        return Cost(operations=counted_operations(lambda: self.fast(inputs)))

    def tiny(self) -> Case:
        """Two small crops."""
        return replace(self, batch_size=2, side=64)

    def images(self) -> int:
        """N."""
        return self.batch_size


@contextmanager
def _silence() -> Iterator[None]:
    """Without MMEngine's line for each parameter."""
    from mmengine.logging import MMLogger

    logger = MMLogger.get_current_instance()
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _sample(number: int, image_label: Tensor, side: int) -> object:
    """What the training pipeline would say about a crop."""
    from mmseg.structures import SegDataSample

    top, left = PHOTO_SIZE[0] - side, PHOTO_SIZE[1] - side
    sample = SegDataSample(
        metainfo=dict(
            img_id=str(number),
            img_shape=(side, side),
            ori_shape=(side, side),
            crop_box=(left // 2, top // 2, left // 2 + side, top // 2 + side),
            crop_from=PHOTO_SIZE,
            num_present=int(image_label.sum()),
        )
    )
    sample.set_field(image_label, 'image_label', dtype=Tensor)
    return sample


def _be_late(model: torch.nn.Module, samples: list, image_label: Tensor) -> None:
    """Put a model into the last third of its training, as the hooks would."""
    from mmwsss.models.labelers.reliability_gate import PHASES, ReliabilityGate

    model.progress = 0.8
    for module in model.modules():
        if isinstance(module, ReliabilityGate):
            module.set_phase(PHASES[-1], 0.8)
            if module.history is not None:
                ids = [sample.metainfo['img_id'] for sample in samples]
                module.history.prepare(ids, image_label)


_NO_WEIGHTS = {
    'model.backbone.encoders.clip.weights': None,
    'model.backbone.encoders.dino.weights': None,
}
_TINY_TOWERS = {
    'model.backbone.encoders.clip.model': str(TOWERS / 'clip.json'),
    'model.backbone.encoders.clip.weights': str(TOWERS / 'clip.safetensors'),
    'model.backbone.encoders.dino.weights': str(TOWERS / 'dino.safetensors'),
}
CASES: tuple[Case, ...] = (
    TrainingStep(
        name='step_clipdino_tiny',
        what='step of clipdino_refine_synth: tiny towers, batch 16, 144 x 144',
        config='clipdino_refine_synth.py',
        options=_TINY_TOWERS,
        batch_size=16,
        side=144,
    ),
    TrainingStep(
        name='step_clipdino_b',
        what='step of clipdino_refine_voc: ViT-B/16 + DINOv2-S, batch 8, 320 x 320',
        config='clipdino_refine_voc.py',
        options=_NO_WEIGHTS,
        batch_size=8,
        side=320,
        iterations=80000,
        budget=Budget(device='cuda', seconds=3600 / 80000, peak_mb=5000),
    ),
    TrainingStep(
        name='step_clipdino_b_compiled',
        what='the same with the frozen towers compiled',
        config='clipdino_refine_voc.py',
        options={**_NO_WEIGHTS, 'model.backbone.compiled': True},
        batch_size=8,
        side=320,
        iterations=80000,
        slow=True,
    ),
    TrainingStep(
        name='step_clipdino_l',
        what='step of clipdino_refine_vitl_voc: ViT-L/14 + DINOv2-L, batch 4, '
        '320 x 320',
        config='clipdino_refine_vitl_voc.py',
        options=_NO_WEIGHTS,
        batch_size=4,
        side=320,
        iterations=80000,
        slow=True,
        budget=Budget(device='cuda', seconds=7200 / 80000, peak_mb=16000),
    ),
    TrainingStep(
        name='step_sipe_mobileone',
        what='step of sipe_msrc: MobileOne-S0, batch 16, 256 x 256',
        config='sipe_msrc.py',
        options={'model.weights': None},
        batch_size=16,
        side=256,
    ),
    TrainingStep(
        name='step_aesipe_mobileone',
        what='step of aesipe_msrc: MobileOne-S0, batch 16, 256 x 256',
        config='aesipe_msrc.py',
        options={'model.weights': None},
        batch_size=16,
        side=256,
    ),
    TrainingStep(
        name='step_sipe_r50',
        what='step of sipe_r50_voc: ResNet-50, batch 16, 512 x 512',
        config='sipe_r50_voc.py',
        options={'model.backbone.init_cfg': None},
        batch_size=16,
        side=512,
        iterations=3305,
        slow=True,
    ),
)
