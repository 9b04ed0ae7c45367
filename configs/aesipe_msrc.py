# AE-SIPE on real photos (MSRC v2): sipe_msrc with affinity enhancement of its CAMs.
_base_ = './sipe_msrc.py'

model = dict(
    enhancement=['pamr', 'prototypes', 'is_cam'],
    # As published both kinds of seeds are 'hierarchical'. After so short a training
    # these leave most classes without a prototype, and the GSC loss empties their CAMs.
    train_seed_features='deepest',
    test_seed_features='deepest',
)
