# AE-SIPE on PASCAL VOC 2012, ResNet-50, as released: sipe_r50_voc with affinity
# enhancement of its CAMs.
_base_ = './sipe_r50_voc.py'

model = dict(
    enhancement=['pamr', 'prototypes', 'is_cam'],
    train_seed_features='hierarchical',
    bg_rescale=0.8,
)
