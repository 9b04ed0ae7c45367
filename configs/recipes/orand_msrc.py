# ORANDNet on real photos (MSRC v2), three seeds: class maps of a trained MobileOne and
# relevance of a frozen ViT, joined; IRNet; DeepLabV3 with and without scale scheduling:
#   python tools/run_recipe.py configs/recipes/orand_msrc.py --jobs 3
_base_ = './_base_/orand.py'

work_dir = 'work_dirs/recipes/orand_msrc'
seeds = [0, 1, 2]

configs = dict(
    first=dict(config='configs/cam_mobileone_msrc.py'),
    second=dict(config='configs/cam_vit_msrc.py'),
    orandnet=dict(config='configs/orandnet_msrc.py'),
    irnet=dict(config='configs/irnet_msrc.py'),
    segmentor=dict(config='configs/deeplabv3_mobileone_msrc_scale.py'),
)
values = dict(
    data='../shared/data/msrc',
    num_classes='17',
    train_list='../shared/data/msrc/ImageSets/Segmentation/train.txt',
    checkpoint='iter_300.pth',
)
stages = [*_base_.two_classifiers, *_base_.rest]
