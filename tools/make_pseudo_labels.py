"""Label maps of all photos of a data set, from stored CAMs or a trained segmentor.

python tools/make_pseudo_labels.py CONFIG --cams DIR --background 0.25 --out labels
python tools/make_pseudo_labels.py CONFIG --cams DIR --ir 0.30 0.05 --out ir_labels \
    --refine "DenseCRF(gt_prob=0.7, bilateral_xy=50, bilateral_weight=10)"
python tools/make_pseudo_labels.py CONFIG --cams DIR --out labels --refine PAMR \
    "TrainedRefiner(config='configs/irnet_msrc.py', checkpoint='work_dirs/irnet_msrc')"
python tools/make_pseudo_labels.py CONFIG --checkpoint CHECKPOINT --out labels
"""

from mmwsss.apis.cli import run_tool


def main() -> int:
    """Import late, so that a missing package is reported like any other mistake."""
    from mmwsss.apis.make_pseudo_labels import make_pseudo_labels_command

    return make_pseudo_labels_command()


if __name__ == '__main__':
    run_tool(main)
