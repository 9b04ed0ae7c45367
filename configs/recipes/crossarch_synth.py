# The table of CrossArch on the drawn benchmark, where half of the photos without smoke
# have a chimney: student with transfer against teacher, student alone and two controls,
# five seeds.
#   python tools/run_recipe.py configs/recipes/crossarch_synth.py --jobs 4
_base_ = './_base_/crossarch_synth.py'

work_dir = 'work_dirs/recipes/crossarch_synth'
seeds = [0, 1, 2, 3, 4]
rows = {
    'teacher': ['cnn', 'short', 'alone', 'direct'],
    'student alone': ['alone', 'grad'],
    'student with transfer': [],
    'same architecture': ['cnn'],
    'untrained teacher': ['untrained'],
}
