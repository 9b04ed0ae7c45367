"""One-stage weakly supervised segmentor: CAMs, refinement, labels, supervision.

The four steps of a training iteration are methods that a subclass may override:
``make_cams -> refine -> label -> supervise`` (after WeCLIP and WeCLIP+, Zhang et
al., CVPR 2024 and TPAMI 2025). Inference is MMSegmentation's own: whole or sliding
window, test-time augmentation, evaluators and visualisers work unchanged.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
import torch.nn.functional as F
from mmengine.config import ConfigDict
from mmengine.structures import PixelData
from mmseg.models.segmentors import EncoderDecoder
from torch import Tensor

from mmwsss.functional import add_background, piecewise_linear
from mmwsss.registry import MODELS

from ..batch import most_classes, stack_image_labels, valid_mask
from ..decode_heads.streams import DecodedStreams
from ..labelers.labels import Labels


@dataclass
class Explanation:
    """What the labels of a batch came from, on the model's input grid.

    Attributes:
        cams: (N, K, H, W) in [0, 1], absent classes zero.
        refined: (N, C, H, W) scores in [0, 1] after all refiners.
        pseudo_label: (N, H, W) int64, 255 ignore.
        seg_logits: (N, C, H, W).
        reliability: (N, H, W) in [0, 1] of the pseudo-labels, or None if the labeler
            does not estimate it.
    """

    cams: Tensor
    refined: Tensor
    pseudo_label: Tensor
    seg_logits: Tensor
    reliability: Tensor | None = None


@MODELS.register_module()
class WSSSSegmentor(EncoderDecoder):
    """Frozen encoders, a CAM source, refiners, a labeler and any decode head.

    Args:
        backbone: ``mmwsss.FrozenEncoders``, or any module with ``encode(image)``.
        cam_source: gives CAMs from what the encoders returned, and their losses; one
            with ``needs_samples = True`` gets ``data_samples`` as well.
        decode_head: ours or any MMSegmentation decode head; it sees the feature
            maps of all encoders in order.
        labeler: turns scores into pseudo-labels.
        cam_refiner: refines CAMs on the encoders' grid; None keeps them.
        refiners: (image, scores, image_label) -> scores, applied in order.
        background_power: exponent of the background score (1 - max cam)^power.
        upscale_cams: resize the CAMs to the image before the background score is
            taken from them, as published; False leaves the grid to the refiners.
        loss_schedules: loss name as logged -> [[progress, factor], ...], a
            piecewise-linear factor on that loss; None takes out the schedule of a
            base config.
        loss_teacher: ``mmwsss.TeacherLoss`` config. With it the decode head has an
            averaged copy, the teacher, which ``mmwsss.TeacherHook`` updates and whose
            predictions refine and gate the labels; only trained parts are averaged.
        data_preprocessor: must give RGB in [0, 1] (mean 0, std 255).
        train_cfg: kept for MMSegmentation.
        test_cfg: MMSegmentation's, plus ``crf``: a ``mmwsss.DenseCRF`` config that
            post-processes predictions, and ``use_teacher``: predict with the teacher.
        init_cfg: MMEngine initialisation.
    """

    def __init__(
        self,
        *,
        backbone: dict,
        cam_source: dict,
        decode_head: dict,
        labeler: dict,
        cam_refiner: dict | None = None,
        refiners: Sequence[dict] = (),
        background_power: float = 1.0,
        upscale_cams: bool = False,
        loss_schedules: dict | None = None,
        loss_teacher: dict | None = None,
        data_preprocessor: dict | None = None,
        train_cfg: dict | None = None,
        test_cfg: dict | None = None,
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(
            backbone=backbone,
            decode_head=decode_head,
            train_cfg=train_cfg,
            # MMSegmentation reads it by attribute.
            test_cfg=ConfigDict(test_cfg or dict(mode='whole')),
            data_preprocessor=data_preprocessor,
            init_cfg=init_cfg,
        )
        self.cam_source = MODELS.build(cam_source)
        self.cam_refiner = MODELS.build(cam_refiner) if cam_refiner else None
        self.refiners = torch.nn.ModuleList(MODELS.build(r) for r in refiners)
        self.labeler = MODELS.build(labeler)
        self.background_power = background_power
        self.upscale_cams = upscale_cams
        schedules = loss_schedules or {}
        self.loss_schedules = {k: v for k, v in schedules.items() if v is not None}
        crf = (test_cfg or {}).get('crf')
        self.crf = MODELS.build(crf) if crf else None
        self.loss_teacher = MODELS.build(loss_teacher) if loss_teacher else None
        self.teacher_head = None
        if self.loss_teacher is not None:
            self.teacher_head = copy.deepcopy(self.decode_head)
            self.teacher_head.requires_grad_(False).eval()
        if (test_cfg or {}).get('use_teacher') and self.teacher_head is None:
            raise ValueError('test_cfg.use_teacher needs loss_teacher, got none')
        # Set by ProgressHook before every iteration: the hook owns time.
        self.progress = 0.0

    # ------------------------------------------------------------- the four steps
    def make_cams(
        self,
        encoded: dict,
        image_label: Tensor,
        valid: Tensor,
        *,
        data_samples: list,
    ) -> Tensor:
        """CAMs (N, K, h, w) in [0, 1], zero for absent classes and in padding."""
        samples = {}
        if getattr(self.cam_source, 'needs_samples', False):
            samples = dict(data_samples=data_samples)
        cams = self.cam_source.cams(
            encoded,
            image_label,
            valid,
            encoders=self.backbone,
            # The host knows it, so that nobody has to wait for the device.
            max_classes=most_classes(data_samples),
            **samples,
        )
        return cams * F.interpolate(valid, cams.shape[-2:], mode='nearest')

    def refine(
        self,
        image: Tensor,
        cams: Tensor,
        image_label: Tensor,
        encoded: dict,
        decoded: DecodedStreams,
    ) -> Tensor:
        """CAMs to scores (N, C, H, W) at image size."""
        if self.cam_refiner is not None:
            cams = self.cam_refiner(
                cams, image_label, encoded, decoded, progress=self.progress
            )
        if self.upscale_cams:
            cams = F.interpolate(
                cams, image.shape[-2:], mode='bilinear', align_corners=False
            )
        scores = add_background(cams, power=self.background_power)
        for refiner in self.refiners:
            scores = refiner(image, scores, image_label)
        return F.interpolate(
            scores, image.shape[-2:], mode='bilinear', align_corners=False
        )

    def label(
        self,
        scores: Tensor,
        image_label: Tensor,
        *,
        valid: Tensor,
        encoded: dict,
        decoded: DecodedStreams,
        data_samples: list,
        update: bool = False,
    ) -> Labels:
        """Scores to pseudo-labels; ``update`` records this visit of the photos."""
        return self.labeler(
            scores,
            image_label,
            valid=valid,
            decoded=decoded,
            encoded=encoded,
            data_samples=data_samples,
            progress=self.progress,
            update=update,
        )

    def supervise(
        self,
        decoded: DecodedStreams,
        labels: Labels,
        data_samples: list,
        inputs: Tensor,
    ) -> dict:
        """Losses of the decode head against the pseudo-labels."""
        attach_labels(data_samples, labels)
        head = self.decode_head
        if hasattr(head, 'decode'):
            losses = head.loss_by_feat(
                decoded,
                data_samples,
                image=inputs if head.needs_image else None,
                gates=labels.gates,
            )
        else:
            losses = head.loss_by_feat(decoded.seg_logits, data_samples)
        return {f'decode.{name}': value for name, value in losses.items()}

    # ------------------------------------------------------------------- training
    def loss(self, inputs: Tensor, data_samples: list) -> dict:
        """Losses of one batch; opens no mask, needs only ``image_label``."""
        image_label, valid = self._targets(inputs, data_samples)
        encoded = self.backbone.encode(inputs)
        decoded = self.decode(encoded)
        with torch.no_grad():
            judge = self._judge(encoded, decoded)
            scores = self.refine(
                inputs,
                self.make_cams(encoded, image_label, valid, data_samples=data_samples),
                image_label,
                encoded,
                judge,
            )
            labels = self.label(
                scores,
                image_label,
                valid=valid,
                encoded=encoded,
                decoded=judge,
                data_samples=data_samples,
                update=True,
            )
        losses = self.supervise(decoded, labels, data_samples, inputs)
        for name, value in self.cam_source.losses(encoded, image_label, valid).items():
            losses[f'cam.{name}'] = value
        if self.loss_teacher is not None:
            losses['teacher.loss_consistency'] = self.loss_teacher(
                decoded.seg_logits, judge.seg_logits, image_label, valid
            )
        self._apply_schedules(losses)
        losses.update(label_shares(labels.pseudo_label, valid))
        losses.update({f'label.{k}': v for k, v in labels.logs.items()})
        return losses

    def _judge(self, encoded: dict, decoded: DecodedStreams) -> DecodedStreams:
        """Whose predictions refine and gate labels: the teacher's if there is one."""
        if self.teacher_head is None:
            return decoded.detach()
        return self.decode(encoded, head=self.teacher_head).detach()

    def train(self, mode: bool = True) -> 'WSSSSegmentor':
        """The teacher stays in eval mode."""
        super().train(mode)
        if self.teacher_head is not None:
            self.teacher_head.eval()
        return self

    @torch.no_grad()
    def update_teacher(self, momentum: float) -> None:
        """Teacher <- momentum * teacher + (1 - momentum) * decode head."""
        trained = self.decode_head.state_dict()
        for name, slow in self.teacher_head.state_dict().items():
            if slow.is_floating_point():
                slow.lerp_(trained[name], 1 - momentum)
            else:
                slow.copy_(trained[name])

    def decode(
        self, encoded: dict, *, head: torch.nn.Module | None = None
    ) -> DecodedStreams:
        """The decode head (or another one) on all encoders' feature maps."""
        head = head or self.decode_head
        features = tuple(f for e in encoded.values() for f in e.features)
        if hasattr(head, 'decode'):
            return head.decode(features)
        seg_logits = head(features)
        return DecodedStreams(seg_logits, (seg_logits,), None)

    def _targets(self, inputs: Tensor, data_samples: list) -> tuple[Tensor, Tensor]:
        image_label = stack_image_labels(data_samples, inputs.device)
        return image_label, valid_mask(data_samples, inputs.shape[-2:], inputs.device)

    def _apply_schedules(self, losses: dict) -> None:
        for name, points in self.loss_schedules.items():
            if name not in losses:
                raise ValueError(
                    f'loss_schedules names {name!r}, but the losses are '
                    f'{sorted(losses)}'
                )
            losses[name] = losses[name] * piecewise_linear(self.progress, points)

    def parse_losses(self, losses: dict) -> tuple:
        """MMEngine's sum of losses, with logged values averaged over the ranks."""
        loss, log_vars = super().parse_losses(losses)
        if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
            stacked = torch.stack([v.detach().float() for v in log_vars.values()])
            dist.all_reduce(stacked)
            stacked /= dist.get_world_size()
            log_vars = type(log_vars)(zip(log_vars, stacked, strict=True))
        return loss, log_vars

    # ------------------------------------------------------------------ inference
    def encode_decode(self, inputs: Tensor, batch_img_metas: list) -> Tensor:
        """MMSegmentation's, by the teacher where test_cfg asks."""
        head = self.decode_head
        if self.test_cfg.get('use_teacher', False):
            head = self.teacher_head
        return head.predict(self.extract_feat(inputs), batch_img_metas, self.test_cfg)

    def predict(self, inputs: Tensor, data_samples: list | None = None) -> list:
        """MMSegmentation's prediction, then the dense CRF where test_cfg asks."""
        results = super().predict(inputs, data_samples)
        if self.crf is None:
            return results
        for image, result in zip(inputs, results, strict=True):
            self._apply_crf(image, result)
        return results

    def _apply_crf(self, image: Tensor, result) -> None:
        meta = result.metainfo
        height, width = meta.get('img_shape', image.shape[-2:])[:2]
        image = image[:, :height, :width]
        if meta.get('flip', False):
            horizontal = meta.get('flip_direction', 'horizontal') == 'horizontal'
            image = image.flip(-1 if horizontal else -2)
        logits = result.seg_logits.data[None]
        image = F.interpolate(
            image[None], logits.shape[-2:], mode='bilinear', align_corners=False
        )
        everything = logits.new_ones(1, logits.shape[1] - 1)
        scores = self.crf(image, logits.softmax(1), everything)
        result.pred_sem_seg.data = scores.argmax(1)

    @torch.no_grad()
    def explain(self, inputs: Tensor, data_samples: list) -> Explanation:
        """CAMs, refined scores, pseudo-labels and predictions of a batch.

        Args:
            inputs: (N, 3, H, W) RGB in [0, 1], as the data preprocessor gives it.
            data_samples: with ``image_label`` (K,) each.
        """
        image_label, valid = self._targets(inputs, data_samples)
        encoded = self.backbone.encode(inputs)
        decoded = self._judge(encoded, self.decode(encoded))
        cams = self.make_cams(encoded, image_label, valid, data_samples=data_samples)
        refined = self.refine(inputs, cams, image_label, encoded, decoded)
        labels = self.label(
            refined,
            image_label,
            valid=valid,
            encoded=encoded,
            decoded=decoded,
            data_samples=data_samples,
        )
        size = inputs.shape[-2:]
        return Explanation(
            cams=F.interpolate(cams, size, mode='bilinear', align_corners=False),
            refined=refined,
            pseudo_label=labels.pseudo_label,
            seg_logits=F.interpolate(
                decoded.seg_logits, size, mode='bilinear', align_corners=False
            ),
            reliability=labels.reliability,
        )


def attach_labels(data_samples: list, labels: Labels) -> None:
    """Hand the labels to the losses the way MMSegmentation does: on the samples."""
    for i, sample in enumerate(data_samples):
        sample.gt_sem_seg = PixelData(data=labels.pseudo_label[i][None])
        if labels.reliability is not None:
            sample.pseudo_reliability = PixelData(data=labels.reliability[i][None])
        if labels.weight is not None:
            sample.pseudo_weight = PixelData(data=labels.weight[i][None])
        if labels.affinity_label is not None:
            sample.affinity_label = PixelData(data=labels.affinity_label[i][None])


def label_shares(pseudo_label: Tensor, valid: Tensor) -> dict:
    """Shares of foreground and ignored pixels among the real ones, for the log."""
    real = valid[:, 0] > 0
    count = real.sum().clamp(min=1)
    ignored = ((pseudo_label == 255) & real).sum() / count
    foreground = ((pseudo_label > 0) & (pseudo_label != 255) & real).sum() / count
    return {'label.foreground_share': foreground, 'label.ignored_share': ignored}
