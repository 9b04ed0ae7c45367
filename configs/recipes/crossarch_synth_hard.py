# Hard photos where the shortcut is not rare (p = 0.5, where the targets are set): the
# two attempts of crossarch_synth_shortcut that held for fewer chimneys, five seeds:
#   python tools/run_recipe.py configs/recipes/crossarch_synth_hard.py --jobs 4
_base_ = './crossarch_synth_shortcut.py'

work_dir = 'work_dirs/recipes/crossarch_synth_hard'
seeds = [0, 1, 2, 3, 4]

rows = {
    '_delete_': True,
    'hard photos, 0.5': ['hard'],
    'hard photos, half of all, 0.5': ['hard', 'half'],
}
