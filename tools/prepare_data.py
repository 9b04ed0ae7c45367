"""Image labels from seven formats of tags, VOC 2012 or COCO 2014; checks a data set.

python tools/prepare_data.py voc data/VOCdevkit/VOC2012
python tools/prepare_data.py tags export.json --images photos/
python tools/prepare_data.py check voc data/VOCdevkit/VOC2012  # opens every photo
"""

from mmwsss.apis.cli import run_tool


def main() -> int:
    """Import late, so that a missing package is reported like any other mistake."""
    from mmwsss.apis.prepare import prepare_command

    return prepare_command()


if __name__ == '__main__':
    run_tool(main)
