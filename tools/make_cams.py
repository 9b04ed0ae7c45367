"""CAMs of all photos of a data set into a store, one .npz each.

python tools/make_cams.py configs/sipe_msrc.py work_dirs/sipe_msrc --out cams --jobs 4
torchrun --nproc_per_node 4 tools/make_cams.py CONFIG CHECKPOINT --out cams
python tools/make_cams.py CONFIG --import-npy DIR --trust-pickle --out cams
"""

from mmwsss.apis.cli import run_tool


def main() -> int:
    """Import late, so that a missing package is reported like any other mistake."""
    from mmwsss.apis.make_cams import make_cams_command

    return make_cams_command()


if __name__ == '__main__':
    run_tool(main)
