"""Lists of clips for training and validation that share no camera.

python tools/split_clips.py data/smoke/clips.json --out data/smoke --val 0.2 --test 0.2
python tools/split_clips.py clips.json --check train_clips.txt val_clips.txt
"""

from mmwsss.apis.cli import run_tool


def main() -> int:
    """Import late, so that a missing package is reported like any other mistake."""
    from mmwsss.apis.split_clips import split_clips_command

    return split_clips_command()


if __name__ == '__main__':
    run_tool(main)
