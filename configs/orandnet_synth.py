# orandnet_msrc on the synthetic benchmark:
#   python tools/make_synthetic.py data/synthetic
_base_ = './orandnet_msrc.py'

# Frequently modified
data_root = 'data/synthetic'
num_classes = 9  # background included
input_root = 'work_dirs/orandnet_synth_input'
cam_roots = [f'{input_root}/cams_a', f'{input_root}/cams_b']

train_pipeline = [
    dict(type='mmwsss.LoadPhoto'),
    dict(type='mmwsss.LoadCAMStores', cam_roots=cam_roots),
    dict(type='RandomFlip', prob=0.5),
    dict(type='mmwsss.PackCAMStores'),
]
test_dataset = dict(
    data_root=data_root,
    pipeline=[
        dict(type='mmwsss.LoadPhoto'),
        dict(type='mmwsss.LoadMask', num_classes=num_classes),
        dict(type='mmwsss.LoadCAMStores', cam_roots=cam_roots),
        dict(type='mmwsss.PackCAMStores'),
    ],
)
train_dataloader = dict(dataset=dict(data_root=data_root, pipeline=train_pipeline))
train_eval_dataloader = dict(dataset=test_dataset)
val_dataloader = dict(dataset=test_dataset)
test_dataloader = dict(dataset=test_dataset)
