# irnet_msrc on the synthetic benchmark:
#   python tools/make_synthetic.py data/synthetic
_base_ = './irnet_msrc.py'

# Frequently modified
data_root = 'data/synthetic'
num_classes = 9  # background included
input_root = 'work_dirs/irnet_synth_input'
cam_root = f'{input_root}/cams'  # of the train photos
label_root = f'{input_root}/ir_labels/SegmentationClass'
long_side = 288  # of a training photo in pixels, times 0.5 to 1.5
crop_size = (192, 192)

model = dict(data_preprocessor=dict(size=crop_size))

train_pipeline = [
    dict(type='mmwsss.LoadPhoto'),
    dict(
        type='mmwsss.LoadPseudoLabels', label_root=label_root, num_classes=num_classes
    ),
    # Drawn photos are small: enlarged, their things cover more cells.
    dict(
        type='RandomResize',
        scale=(long_side, long_side),
        ratio_range=(0.5, 1.5),
        keep_ratio=True,
        interpolation='bicubic',
        backend='pillow',
    ),
    dict(type='mmwsss.RandomCropWithBox', crop_size=crop_size),
    dict(type='RandomFlip', prob=0.5),
    dict(type='mmwsss.PackPseudoLabels'),
]
test_dataset = dict(
    data_root=data_root,
    pipeline=[
        dict(type='mmwsss.LoadPhoto'),
        dict(type='mmwsss.LoadMask', num_classes=num_classes),
        dict(type='mmwsss.LoadCAMs', cam_root=cam_root),
        dict(type='mmwsss.PackCAMs'),
    ],
)
train_dataloader = dict(dataset=dict(data_root=data_root, pipeline=train_pipeline))
train_eval_dataloader = dict(dataset=test_dataset)
val_dataloader = dict(dataset=test_dataset)
test_dataloader = dict(dataset=test_dataset)
