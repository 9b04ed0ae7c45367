# AE-SIPE from image labels to a DeepLabV3 on the synthetic benchmark, which the first
# stage draws:
#   python tools/run_recipe.py configs/recipes/aesipe_synth.py
_base_ = './_base_/aesipe.py'

config = 'configs/aesipe_synth.py'
work_dir = 'work_dirs/recipes/aesipe_synth'

configs = dict(
    irnet=dict(config='configs/irnet_synth.py'),
    segmentor=dict(config='configs/deeplabv3_mobileone_synth.py'),
)
values = dict(
    data='data/synthetic',
    num_classes='9',
    train_list='data/synthetic/ImageSets/Segmentation/train.txt',
    checkpoint='iter_300.pth',
)
stages = [
    dict(
        name='draw the photos',
        command=['tools/make_synthetic.py', '{data}'],
        outputs=['{data}/image_labels.json'],
    ),
    *_base_.stages,
]
