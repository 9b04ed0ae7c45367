"""CAMs of two or more stores joined in a new one, class by class.

python tools/fuse_cams.py configs/orandnet_msrc.py cams_a cams_b --mode or --out either
python tools/fuse_cams.py CONFIG cams_a cams_b --mode and --offset 0 0.15 --out both
python tools/fuse_cams.py configs/orandnet_msrc.py cams_a cams_b \
  --checkpoint work_dirs/orandnet_msrc --out cams_orand
"""

from mmwsss.apis.cli import run_tool


def main() -> int:
    """Import late, so that a missing package is reported like any other mistake."""
    from mmwsss.apis.fuse_cams import fuse_cams_command

    return fuse_cams_command()


if __name__ == '__main__':
    run_tool(main)
