# The synthetic benchmark of the quickstart, with the tiny CLIP and DINO towers that
# come with the package: python tools/make_synthetic.py data/synthetic
_base_ = ['./_base_/default_runtime.py', './_base_/clipdino.py']

# Frequently modified
data_root = 'data/synthetic'
towers = 'mmwsss/datasets/tiny_towers'
max_iters = 300
batch_size = 16
learning_rate = 3e-3
crop_size = (144, 144)
num_classes = 9  # background included

class_names = ['boat', 'train', 'car', 'horse', 'cow', 'bird', 'person', 'bottle']
background_words = [
    'sky', 'water', 'grass', 'tree', 'road', 'building', 'railroad', 'wall', 'table',
    'mountain', 'rock', 'cloud',
]  # fmt: skip

model = dict(
    data_preprocessor=dict(size=crop_size),
    backbone=dict(
        encoders=dict(
            clip=dict(
                model=f'{towers}/clip.json',
                weights=f'{towers}/clip.safetensors',
                class_names=class_names,
                background_words=background_words,
                num_attentions=4,
                mean=[122.771, 116.746, 104.094],
                std=[68.501, 66.632, 70.323],
            ),
            dino=dict(
                arch=dict(
                    embed_dims=96,
                    num_layers=4,
                    num_heads=3,
                    feedforward_channels=384,
                ),
                weights=f'{towers}/dino.safetensors',
                patch_size=8,
                image_size=144,
            ),
        )
    ),
    # Drawn photos are small: half resolution loses legs and wings.
    refiners=[dict(type='mmwsss.PAR', num_iters=10, scale=1.0)],
    labeler=dict(low=0.35, high=0.5, gate=dict(num_classes=num_classes)),
    # The finer DINO grid is the decoder's.
    decode_head=dict(
        in_channels=[96, 96],
        in_index=[1, 0],
        channels=96,
        num_layers=2,
        num_heads=4,
        num_classes=num_classes,
    ),
)

dataset = dict(
    type='mmwsss.ImageLabelDataset',
    data_root=data_root,
    image_labels='image_labels.json',
    data_prefix=dict(img_path='JPEGImages', seg_map_path='SegmentationClass'),
)
train_pipeline = [
    dict(type='mmwsss.LoadPhoto'),
    dict(
        type='RandomResize', scale=(192, 192), ratio_range=(0.8, 1.4), keep_ratio=True
    ),
    dict(type='mmwsss.RandomCropWithBox', crop_size=crop_size),
    dict(type='RandomFlip', prob=0.5),
    dict(type='mmwsss.PackWSSSInputs'),
]
test_pipeline = [
    dict(type='mmwsss.LoadPhoto'),
    dict(type='mmwsss.LoadMask', num_classes=num_classes),
    dict(type='mmwsss.PackWSSSInputs'),
]
train_dataloader = dict(
    batch_size=batch_size,
    num_workers=1,
    persistent_workers=True,
    sampler=dict(type='mmwsss.SeededStreamSampler', shuffle=True),
    dataset=dict(
        **dataset, ann_file='ImageSets/Segmentation/train.txt', pipeline=train_pipeline
    ),
)
train_eval_dataloader = dict(
    batch_size=1,
    num_workers=1,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        **dataset,
        ann_file='ImageSets/Segmentation/train.txt',
        pipeline=test_pipeline,
        test_mode=True,
    ),
)
val_dataloader = dict(
    batch_size=1,
    num_workers=1,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        **dataset,
        ann_file='ImageSets/Segmentation/val.txt',
        pipeline=test_pipeline,
        test_mode=True,
    ),
)
test_dataloader = val_dataloader

optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=learning_rate, weight_decay=0.01),
    clip_grad=dict(max_norm=1.0),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-6, begin=0, end=50, by_epoch=False),
    dict(type='PolyLR', power=1.0, eta_min=0.0, begin=0, end=max_iters, by_epoch=False),
]
train_cfg = dict(type='IterBasedTrainLoop', max_iters=max_iters, val_interval=max_iters)
default_hooks = dict(checkpoint=dict(interval=100), logger=dict(interval=20))
# So short a training needs a shorter memory than the 0.999 of long ones.
custom_hooks = [
    *_base_.custom_hooks,
    dict(type='mmwsss.ReliabilityGatedPseudoLabelHook'),
    dict(type='mmwsss.TeacherHook', momentum=0.98),
    dict(type='mmwsss.PseudoLabelProbeHook', num_images=32, interval=100),
    dict(type='mmwsss.PseudoLabelVisualizationHook', interval=100),
]
