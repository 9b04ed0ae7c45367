# CrossArch on real smoke crops, half of them without smoke, three seeds: a MobileOne
# teacher, a ViT alone, the ViT with transfer, each with a dense CRF as well. Minutes a
# run on a CPU. Masks of train choose one threshold per network; those of val score.
#   python tools/run_recipe.py configs/recipes/crossarch_smoke.py --jobs 3
# The crops are in VOC layout. From photos and masks of your own such crops are made by
#   python tools/prepare_data.py crops PHOTOS MASKS OUT --size 192
_base_ = './_base_/crossarch_real.py'

config = 'configs/crossarch_smoke.py'
work_dir = 'work_dirs/recipes/crossarch_smoke'
seeds = [0, 1, 2]

configs = dict(teacher=dict(config='configs/crossarch_smoke_teacher.py'))
values = dict(
    data='../shared/data/smoke',
    train_list='../shared/data/smoke/ImageSets/Segmentation/train.txt',
    classes='../shared/data/smoke/classes.txt',
)
parts = dict(
    cnn={
        'model.student': dict(
            _delete_=True,
            type='mmwsss.CNNBranch',
            backbone=dict(
                type='mmpretrain.MobileOne',
                arch='s0',
                deploy=True,
                out_indices=(2, 3),
                frozen_stages=2,
            ),
            weights='../shared/data/weights/mobileone-s0_in1k_fp16.safetensors',
            unstride=['stage4.0.branch_reparam'],
            pcm=dict(type='mmwsss.PixelCorrelation', channels=64),
        ),
        'optim_wrapper.optimizer.lr': 1e-4,
        'param_scheduler.0.end': 136,
        'train_cfg.max_iters': 136,
    },
)
