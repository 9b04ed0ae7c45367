"""Scores CAMs or label maps on objects and on what always accompanies them.

python tools/eval_co_occurrence.py work_dirs/cams data/co_occurrence/SegmentationClass \
    --distractors data/co_occurrence/DistractorMask \
    --list data/co_occurrence/ImageSets/Segmentation/test.txt \
    --val-list data/co_occurrence/ImageSets/Segmentation/val.txt
"""

from mmwsss.apis.cli import run_tool


def main() -> int:
    """Import late, so that a missing package is reported like any other mistake."""
    from mmwsss.apis.eval_co_occurrence import eval_co_occurrence_command

    return eval_co_occurrence_command()


if __name__ == '__main__':
    run_tool(main)
