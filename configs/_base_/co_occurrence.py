# The drawn benchmark whose smoke never comes without a chimney; draw it with:
#   python tools/make_co_occurrence.py data/co_occurrence
data_root = 'data/co_occurrence'
num_classes = 2
photo_side = 48
# 600 photos, the shortest side enlarged up to here and cut back: the paper's
# recipe shifts photos by up to 4 pixels.
shift = 8

dataset = dict(
    type='mmwsss.ImageLabelDataset',
    data_root=data_root,
    image_labels='image_labels.json',
    data_prefix=dict(img_path='JPEGImages', seg_map_path='SegmentationClass'),
)
train_pipeline = [
    dict(type='mmwsss.LoadPhoto'),
    dict(
        type='RandomResize',
        scale=(photo_side + shift, photo_side + shift),
        ratio_range=(photo_side / (photo_side + shift), 1.0),
        keep_ratio=True,
    ),
    dict(type='mmwsss.RandomCropWithBox', crop_size=(photo_side, photo_side)),
    dict(type='RandomFlip', prob=0.5),
    dict(type='mmwsss.PackWSSSInputs'),
]
test_pipeline = [
    dict(type='mmwsss.LoadPhoto'),
    dict(type='mmwsss.LoadMask', num_classes=num_classes),
    dict(type='mmwsss.PackWSSSInputs'),
]
train_dataloader = dict(
    batch_size=32,
    num_workers=1,
    persistent_workers=True,
    sampler=dict(type='mmwsss.SeededStreamSampler', shuffle=True),
    dataset=dict(
        **dataset,
        ann_file='ImageSets/Segmentation/train.txt',
        pipeline=train_pipeline,
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
test_dataloader = dict(
    batch_size=1,
    num_workers=1,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        **dataset,
        ann_file='ImageSets/Segmentation/test.txt',
        pipeline=test_pipeline,
        test_mode=True,
    ),
)
