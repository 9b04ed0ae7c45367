# What every run shares. The randomness of data and dropout is a function of the seed
# and the iteration, so a resumed run ends where an uninterrupted one does. Checkpoints
# are written whole, with a digest, and go on at the exact sample without looking at
# past ones; tools/train.py exchanges IterBasedTrainLoop for the loop that does it
# (mmwsss.ResumableTrainLoop), also in configs that know nothing of this package.
default_scope = 'mmseg'
custom_imports = dict(
    imports=[
        'mmwsss.models',
        'mmwsss.datasets',
        'mmwsss.engine',
        'mmwsss.evaluation',
    ],
    allow_failed_imports=False,
)
randomness = dict(seed=0)
env_cfg = dict(
    cudnn_benchmark=False,
    mp_cfg=dict(mp_start_method='fork', opencv_num_threads=0),
    dist_cfg=dict(backend='nccl'),
)
custom_hooks = [
    dict(type='mmwsss.ProgressHook'),
    dict(type='mmwsss.IterationSeedHook'),
]
vis_backends = [dict(type='LocalVisBackend')]
visualizer = dict(
    type='SegLocalVisualizer', vis_backends=vis_backends, name='visualizer'
)
log_processor = dict(by_epoch=False)
log_level = 'INFO'
load_from = None
resume = False

# The model gets RGB in [0, 1]; each frozen encoder normalises for itself.
data_preprocessor = dict(
    type='SegDataPreProcessor',
    mean=[0, 0, 0],
    std=[255, 255, 255],
    bgr_to_rgb=True,
    pad_val=0,
    seg_pad_val=255,
)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
tta_model = dict(type='SegTTAModel')
