"""Whether CLIP's prompts tell photos with an object from photos without.

python tools/check_prompts.py CONFIG --model ViT-B-16 --weights openai \
  --class-words smoke --background-words chimney cloud steam sky --out embeddings
"""

from mmwsss.apis.cli import run_tool


def main() -> int:
    """Import late, so that a missing package is reported like any other mistake."""
    from mmwsss.apis.check_prompts import check_prompts_command

    return check_prompts_command()


if __name__ == '__main__':
    run_tool(main)
