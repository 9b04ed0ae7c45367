"""Score label maps or stored CAMs against masks.

python tools/eval_pseudo_labels.py PRED GT --list val.txt --classes classes.txt
python tools/eval_pseudo_labels.py CAMS GT --json train.json --curve train.png
python tools/eval_pseudo_labels.py CAMS GT --threshold-from train.json
"""

from mmwsss.apis.cli import run_tool


def main() -> int:
    """Import late, so that a missing package is reported like any other mistake."""
    from mmwsss.apis.eval_pseudo_labels import eval_pseudo_labels_command

    return eval_pseudo_labels_command()


if __name__ == '__main__':
    run_tool(main)
