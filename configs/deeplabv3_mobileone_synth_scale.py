# deeplabv3_mobileone_synth with scale scheduling: smaller pairs of photos and labels
# early in the training. Without: model.data_preprocessor.scales="[(0.0, 1.0)]"
_base_ = './deeplabv3_mobileone_synth.py'

# Frequently modified
# (progress, scale): half the size for a quarter of the training, then three quarters.
scales = ((0.0, 0.5), (0.25, 0.75), (0.5, 1.0))

model = dict(
    data_preprocessor=dict(
        type='mmwsss.ScaleScheduledDataPreProcessor',
        scales=scales,
        curve='steps',
        divisor=16,
    ),
)
