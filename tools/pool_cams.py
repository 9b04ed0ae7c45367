"""CAMs of the frames of clips, pooled over time and gated by motion.

python tools/pool_cams.py CONFIG cams --clips data/clips.json --window 3 --out pooled
python tools/pool_cams.py CONFIG cams --clips data/clips.json --motion 0.5 --out gated
"""

from mmwsss.apis.cli import run_tool


def main() -> int:
    """Import late, so that a missing package is reported like any other mistake."""
    from mmwsss.apis.pool_cams import pool_cams_command

    return pool_cams_command()


if __name__ == '__main__':
    run_tool(main)
