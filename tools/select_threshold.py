"""A threshold for stored CAMs that no mask has chosen, and how sure it is.

python tools/select_threshold.py configs/aesipe_msrc.py --cams cams
python tools/select_threshold.py configs/aesipe_msrc.py --cams cams --masks my_masks
python tools/make_pseudo_labels.py configs/aesipe_msrc.py --cams cams --out labels \
  --background auto
"""

from mmwsss.apis.cli import run_tool


def main() -> int:
    """Import late, so that a missing package is reported like any other mistake."""
    from mmwsss.apis.select_threshold import select_threshold_command

    return select_threshold_command()


if __name__ == '__main__':
    run_tool(main)
