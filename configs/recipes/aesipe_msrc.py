# AE-SIPE from image labels to a DeepLabV3 on real photos (MSRC v2), three seeds:
#   python tools/run_recipe.py configs/recipes/aesipe_msrc.py --jobs 3
_base_ = './_base_/aesipe.py'

config = 'configs/aesipe_msrc.py'
work_dir = 'work_dirs/recipes/aesipe_msrc'
seeds = [0, 1, 2]

configs = dict(
    irnet=dict(config='configs/irnet_msrc.py'),
    segmentor=dict(config='configs/deeplabv3_mobileone_msrc.py'),
)
values = dict(
    data='../shared/data/msrc',
    num_classes='17',
    train_list='../shared/data/msrc/ImageSets/Segmentation/train.txt',
    checkpoint='iter_300.pth',
)
