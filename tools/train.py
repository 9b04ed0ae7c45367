"""Train: python tools/train.py CONFIG [--work-dir DIR] [--resume] [--amp]."""

from mmwsss.apis.cli import run_tool


def main() -> int:
    """Import late, so that a missing package is reported like any other mistake."""
    from mmwsss.apis.train import train_command

    return train_command()


if __name__ == '__main__':
    run_tool(main)
