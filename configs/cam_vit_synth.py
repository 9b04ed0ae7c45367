# cam_vit_msrc, ImageNet weights included, on the synthetic benchmark:
#   python tools/make_synthetic.py data/synthetic
_base_ = './cam_vit_msrc.py'

# Frequently modified
data_root = 'data/synthetic'
num_classes = 9  # background included
long_side = (224, 320)  # of a training photo in pixels, uniform
crop_size = (224, 224)

model = dict(
    num_classes=num_classes - 1,
    data_preprocessor=dict(size=crop_size),
    # Drawn photos are small: enlarged, their things cover more cells.
    test_scales=(2.0,),
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
test_dataset = dict(
    data_root=data_root,
    pipeline=[
        dict(type='mmwsss.LoadPhoto'),
        dict(type='mmwsss.LoadMask', num_classes=num_classes),
        dict(type='mmwsss.PackWSSSInputs'),
    ],
)
train_dataloader = dict(dataset=dict(data_root=data_root, pipeline=train_pipeline))
train_eval_dataloader = dict(dataset=test_dataset)
val_dataloader = dict(dataset=test_dataset)
test_dataloader = dict(dataset=test_dataset)
