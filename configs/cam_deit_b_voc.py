# DeiT-B/16 relevance on PASCAL VOC 2012 from image labels: the other of ORANDNet's two
# classifiers, with the values of its script. Photos keep their aspect here, and are
# explained at their own size instead of 512 x 512.
_base_ = [
    './_base_/default_runtime.py',
    './_base_/voc.py',
    './_base_/cam_classifier.py',
]

# Frequently modified
max_iters = 26460  # 10 epochs
batch_size = 4  # of all processes together as published
base_lr = 0.01  # of the backbone; ten times that for the new layer
long_side = (512, 512)  # of a training photo in pixels, uniform
crop_size = (512, 512)

model = dict(
    data_preprocessor=dict(size=crop_size),
    num_classes=_base_.num_classes - 1,
    backbone=dict(
        type='mmpretrain.VisionTransformer',
        arch='deit-base',
        img_size=384,
        patch_size=16,
        out_type='raw',
        out_indices=[-1],
    ),
    weights=(
        'https://download.openmmlab.com/mmclassification/v0/deit/'
        'deit-base_3rdparty_ft-16xb32_in1k-384px_20211124-822d02f2.pth'
    ),
    pool='cls_token',
    kind='relevance',
    relevance='lrp',
    max_side=512,
)

train_pipeline = [
    dict(type='mmwsss.LoadPhoto'),
    dict(
        type='RandomResize',
        scale=(long_side[1], long_side[1]),
        ratio_range=(long_side[0] / long_side[1], 1.0),
        keep_ratio=True,
        interpolation='bicubic',
        backend='pillow',
    ),
    dict(type='mmwsss.RandomCropWithBox', crop_size=crop_size),
    dict(type='RandomFlip', prob=0.5),
    dict(type='mmwsss.PackWSSSInputs'),
]
test_pipeline = [
    dict(type='mmwsss.LoadPhoto'),
    dict(type='mmwsss.LoadMask', num_classes=_base_.num_classes),
    dict(type='mmwsss.PackWSSSInputs'),
]
train_dataloader = dict(
    batch_size=batch_size,
    num_workers=4,
    persistent_workers=True,
    sampler=dict(type='mmwsss.SeededStreamSampler', shuffle=True),
    dataset=dict(**_base_.dataset, ann_file=_base_.train_list, pipeline=train_pipeline),
)
train_eval_dataloader = dict(
    batch_size=1,
    num_workers=4,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        **_base_.dataset,
        ann_file=_base_.train_eval_list,
        pipeline=test_pipeline,
        test_mode=True,
    ),
)
val_dataloader = dict(
    batch_size=1,
    num_workers=4,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        **_base_.dataset,
        ann_file=_base_.val_list,
        pipeline=test_pipeline,
        test_mode=True,
    ),
)
test_dataloader = val_dataloader

optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='SGD', lr=base_lr, momentum=0.9, weight_decay=1e-5),
    paramwise_cfg=_base_.head_speed,
    clip_grad=dict(max_norm=1.0),
)
# The released cosine schedule counts iterations but moves once per epoch: the rate
# stays where it is.
param_scheduler = [dict(type='ConstantLR', factor=1.0, end=max_iters, by_epoch=False)]
train_cfg = dict(type='IterBasedTrainLoop', max_iters=max_iters, val_interval=max_iters)
