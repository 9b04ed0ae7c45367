"""Test: python tools/test.py CONFIG CHECKPOINT [--tta] [--out DIR]."""

from mmwsss.apis.cli import run_tool


def main() -> int:
    """Import late, so that a missing package is reported like any other mistake."""
    from mmwsss.apis.train import test_command

    return test_command()


if __name__ == '__main__':
    run_tool(main)
