# ORANDNet on the synthetic benchmark, which the first stage draws: a MobileOne's class
# maps and a frozen ViT's relevance:
#   python tools/run_recipe.py configs/recipes/orand_synth.py
_base_ = './_base_/orand.py'

work_dir = 'work_dirs/recipes/orand_synth'

configs = dict(
    first=dict(config='configs/cam_mobileone_synth.py'),
    second=dict(config='configs/cam_vit_synth.py'),
    orandnet=dict(config='configs/orandnet_synth.py'),
    irnet=dict(config='configs/irnet_synth.py'),
    segmentor=dict(config='configs/deeplabv3_mobileone_synth_scale.py'),
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
    *_base_.two_classifiers,
    *_base_.rest,
]
