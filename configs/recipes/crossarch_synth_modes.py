# What is transferred, how it is compared and how much it counts, on the drawn
# benchmark, three seeds; the first row is that of crossarch_synth:
#   python tools/run_recipe.py configs/recipes/crossarch_synth_modes.py --jobs 4
_base_ = './_base_/crossarch_synth.py'

work_dir = 'work_dirs/recipes/crossarch_synth'
summary = 'modes'
seeds = [0, 1, 2]
parts = dict(
    channel={'model.loss_kt.mode': 'channel'},
    spatial={'model.loss_kt.mode': 'spatial'},
    spatial_map={
        'model.loss_kt.mode': 'spatial_map',
        # The mean of the map and its negative would be zero everywhere.
        'model.teacher_target': 'cam',
    },
    gram={'model.loss_kt.mode': 'gram', 'model.teacher_target': 'feature'},
    logits={
        'model.loss_kt.mode': 'logits',
        'model.projection': None,
        'values': dict(kind='grad'),
    },
    feature={'model.teacher_target': 'feature', 'values': dict(kind='grad')},
    cam={'model.teacher_target': 'cam'},
    l1={'model.loss_kt.metric': 'l1'},
    l2={'model.loss_kt.metric': 'l2'},
    kl={'model.loss_kt.metric': 'kl'},
    std={'model.loss_kt.normalize': 'std'},
    lambda_01={'model.loss_kt.loss_weight': 0.1},
    lambda_03={'model.loss_kt.loss_weight': 0.3},
    lambda_3={'model.loss_kt.loss_weight': 3.0},
    together={
        'model.paradigm': 'co_training',
        'model.teacher_checkpoint': None,
    },
    mutual={'model.detach': 'mutual'},
)
# L1 and L2 are the same number for global, channel and spatial.
rows = {
    'student with transfer': [],
    'global, l1': ['l1'],
    'global, l2': ['l2'],
    'channel, cosine': ['channel'],
    'channel, kl': ['channel', 'kl'],
    'spatial, cosine': ['spatial'],
    'spatial_map, cosine': ['spatial_map'],
    'spatial_map, l1': ['spatial_map', 'l1'],
    'spatial_map, l2': ['spatial_map', 'l2'],
    'gram, cosine': ['gram', 'grad'],
    'gram, l1': ['gram', 'l1', 'grad'],
    'gram, l2': ['gram', 'l2', 'grad'],
    'logits, kl': ['logits', 'kl'],
    'logits, l1': ['logits', 'l1'],
    'logits, l2': ['logits', 'l2'],
    'global, cosine, features': ['feature'],
    'global, cosine, normalized': ['std'],
    'lambda 0.1': ['lambda_01'],
    'lambda 0.3': ['lambda_03'],
    'lambda 3': ['lambda_3'],
    'co-training': ['together'],
    'co-training, mutual': ['together', 'mutual'],
}
