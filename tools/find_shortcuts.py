"""Photos that a classifier gets wrong: weights, and what it takes for objects there.

python tools/make_cams.py CONFIG CHECKPOINT --all-classes --out cams
python tools/find_shortcuts.py CONFIG cams --weights weights.json --regions regions
"""

from mmwsss.apis.cli import run_tool


def main() -> int:
    """Import late, so that a missing package is reported like any other mistake."""
    from mmwsss.apis.find_shortcuts import find_shortcuts_command

    return find_shortcuts_command()


if __name__ == '__main__':
    run_tool(main)
