"""Train the tiny CLIP and DINO towers of the synthetic benchmark.

    python tools/train_tiny_towers.py --out mmwsss/datasets/tiny_towers

Writes clip.safetensors, dino.safetensors (half precision) and their JSON configs. The
photos come from a stream of their own, so the benchmark's are never seen; no mask is
used. On two cores it takes about half an hour.
"""

import argparse
from pathlib import Path

import torch
from tqdm import tqdm

from mmwsss.apis.cli import run_tool
from mmwsss.apis.tiny_towers import (
    draw_training_photos,
    save_clip,
    save_dino,
    train_clip,
    train_dino,
)


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--out', type=Path, required=True, help='folder to write to')
    parser.add_argument('--seed', type=int, default=0, help='of the two trainings')
    parser.add_argument('--photo-seed', type=int, default=1)
    parser.add_argument('--photos', type=int, default=3000)
    parser.add_argument('--clip-iterations', type=int, default=2000)
    parser.add_argument('--dino-iterations', type=int, default=600)
    parser.add_argument('--threads', type=int, default=2)
    return parser.parse_args()


def main() -> None:
    """Draw, train one tower after the other, write each when it is done."""
    args = parse_args()
    torch.set_num_threads(args.threads)
    with tqdm(total=args.photos, desc='photos') as bar:
        photos = draw_training_photos(
            args.photos, seed=args.photo_seed, progress=lambda _: bar.update()
        )
    jobs = (
        ('clip', train_clip, save_clip, args.clip_iterations),
        ('dino', train_dino, save_dino, args.dino_iterations),
    )
    for name, train, save, iterations in jobs:
        with tqdm(total=iterations, desc=name) as bar:

            def show(_: int, numbers: dict[str, float], bar: tqdm = bar) -> None:
                bar.update()
                bar.set_postfix(numbers)

            tower = train(photos, seed=args.seed, iterations=iterations, report=show)
        path = save(tower, args.out)
        print(f'{path}: {path.stat().st_size / 1e6:.2f} MB')


if __name__ == '__main__':
    run_tool(main)
