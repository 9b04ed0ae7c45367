# PASCAL VOC 2012 by the rules of WeCLIP+'s released code, its defects included: the
# baseline that our defaults are compared with. Only what differs from them is here.
_base_ = './clipdino_refine_voc.py'

# Frequently modified
batch_size = 4
max_iters = 30000
val_interval = 2000

model = dict(
    backbone=dict(
        encoders=dict(
            # The last block starts from the one before the last but one, so one
            # block is skipped in the CAMs and in the last of the six attentions.
            clip=dict(cam_input_layer=-2, num_attentions=6),
        )
    ),
    cam_refiner=dict(
        layer_filter='cls_mass',
        # Boxes are computed for VOC, then replaced by ones.
        box_threshold=None,
        # Decoder affinity is sigmoid(F^t F) without normalisation.
        normalize_affinity=False,
        # Decoder features and predictions take part from the first iteration.
        use_decoder_affinity=True,
        use_predictions=True,
        decoder_start=0.0,
    ),
    # CAMs are resized to the crop before the background score is taken from them.
    upscale_cams=True,
    # 20 steps at full resolution, with a kernel that sums to 1.01.
    refiners=[dict(type='mmwsss.PAR', num_iters=20, scale=1.0, normalize=False)],
    labeler=dict(
        _delete_=True,
        type='mmwsss.ScoreLabeler',
        # The best score is the label; nothing is ignored.
        low=None,
        high=None,
        # From 60 % of the training predictions above 0.75 overwrite labels, whatever
        # the class, in padding too; the affinity loss keeps the labels of the CAMs.
        self_label_start=0.6,
        self_label_threshold=0.75,
        strict_reference=True,
    ),
    decode_head=dict(
        # An empty half of a cross-entropy is 0 / 0 there. Not so here: most random
        # decoders never say background at first, so the first loss would be NaN.
        # Wherever the released code is finite, both are equal.
        loss_decode=[
            dict(type='mmwsss.BalancedCrossEntropyLoss'),
            # The mean over all classes, also those that do not occur.
            dict(type='mmwsss.PresentDiceLoss', strict_reference=True),
        ],
        # Unnormalised affinity; the label of each cell's corner.
        loss_affinity=dict(radius=8, strict_reference=True, loss_weight=0.1),
        # Decisions among all classes, on the grid of the crop.
        loss_cross=dict(
            type='mmwsss.CrossViewLoss',
            use_gates=False,
            restrict_to_image_classes=False,
            at_label_size=True,
            loss_weight=0.1,
        ),
        loss_boundary=None,
    ),
    loss_teacher=None,
    # No ramp: streams listen to each other from the first iteration.
    loss_schedules={'_delete_': True, 'decode.loss_cross': [[0.0, 1.0]]},
    test_cfg=dict(use_teacher=False),
)

train_pipeline = [
    dict(type='mmwsss.LoadPhoto'),
    dict(
        type='RandomResize',
        scale=(_base_.photo_side, _base_.photo_side),
        ratio_range=(0.5, 2.0),
        keep_ratio=True,
        # Shrunk photos are smoothed first.
        backend='pillow',
    ),
    # A smaller photo lies anywhere in a black crop that is trained on as a whole.
    dict(type='mmwsss.RandomCropWithBox', crop_size=_base_.crop_size, pad_to_crop=True),
    dict(type='RandomFlip', prob=0.5),
    dict(type='mmwsss.PackWSSSInputs'),
]
train_dataloader = dict(batch_size=batch_size, dataset=dict(pipeline=train_pipeline))

# Gradients are not clipped.
optim_wrapper = dict(clip_grad=None)
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-6, begin=0, end=50, by_epoch=False),
    dict(type='PolyLR', power=1.0, eta_min=0.0, begin=0, end=max_iters, by_epoch=False),
]
train_cfg = dict(max_iters=max_iters, val_interval=val_interval)
# Neither gate nor teacher.
custom_hooks = [
    dict(type='mmwsss.ProgressHook'),
    dict(type='mmwsss.IterationSeedHook'),
]
