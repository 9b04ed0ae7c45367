# deeplabv3_mobileone_msrc on the synthetic benchmark:
#   python tools/make_synthetic.py data/synthetic
_base_ = './deeplabv3_mobileone_msrc.py'

# Frequently modified
data_root = 'data/synthetic'
num_classes = 9  # background included
label_root = 'work_dirs/deeplabv3_synth_input/SegmentationClass'
crop_size = (192, 192)

model = dict(
    data_preprocessor=dict(size=crop_size),
    decode_head=dict(num_classes=num_classes),
    auxiliary_head=dict(num_classes=num_classes),
)

train_pipeline = [
    dict(type='mmwsss.LoadPhoto'),
    dict(
        type='mmwsss.LoadPseudoLabels', label_root=label_root, num_classes=num_classes
    ),
    # Drawn photos are small: enlarged, their things cover more cells.
    dict(
        type='RandomResize',
        scale=(288, 288),
        ratio_range=(0.75, 1.5),
        keep_ratio=True,
    ),
    dict(type='mmwsss.RandomCropWithBox', crop_size=crop_size),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PhotoMetricDistortion'),
    dict(type='mmwsss.PackPseudoLabels'),
]
test_dataset = dict(
    data_root=data_root,
    pipeline=[
        dict(type='mmwsss.LoadPhoto'),
        dict(type='Resize', scale=(288, 288), keep_ratio=True),
        dict(type='mmwsss.LoadMask', num_classes=num_classes),
        dict(type='mmwsss.PackWSSSInputs'),
    ],
)
train_dataloader = dict(dataset=dict(data_root=data_root, pipeline=train_pipeline))
train_eval_dataloader = dict(dataset=test_dataset)
val_dataloader = dict(dataset=test_dataset)
test_dataloader = dict(dataset=test_dataset)
