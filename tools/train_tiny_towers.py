"""Train the tiny CLIP and DINO towers of the synthetic benchmark.

    python tools/train_tiny_towers.py --out mmwsss/datasets/tiny_towers

Writes clip.safetensors, dino.safetensors (half precision) and their JSON configs. The
photos come from a stream of their own, so the benchmark's are never seen; no mask is
used. No network is needed.
"""

import argparse
from collections.abc import Callable
from functools import partial
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
    train_scout,
)


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--out', type=Path, required=True, help='folder to write to')
    parser.add_argument('--seed', type=int, default=0, help='of the trainings')
    parser.add_argument('--photo-seed', type=int, default=1)
    parser.add_argument('--photos', type=int, default=12000)
    parser.add_argument('--scout-iterations', type=int, default=1500)
    parser.add_argument('--clip-iterations', type=int, default=2500)
    parser.add_argument('--dino-iterations', type=int, default=2500)
    parser.add_argument('--threads', type=int, default=2)
    return parser.parse_args()


def shown(name: str, train: Callable, *, seed: int, iterations: int):
    """Train with a progress bar."""
    with tqdm(total=iterations, desc=name) as bar:

        def report(_: int, numbers: dict[str, float]) -> None:
            bar.update()
            bar.set_postfix(numbers)

        return train(seed=seed, iterations=iterations, report=report)


def main() -> None:
    """Draw, train one network after the other, write each tower when it is done."""
    args = parse_args()
    torch.set_num_threads(args.threads)
    with tqdm(total=args.photos, desc='photos') as bar:
        photos = draw_training_photos(
            args.photos, seed=args.photo_seed, progress=lambda _: bar.update()
        )
    scout = shown(
        'scout',
        partial(train_scout, photos),
        seed=args.seed,
        iterations=args.scout_iterations,
    )
    jobs = (
        ('clip', train_clip, save_clip, args.clip_iterations),
        ('dino', train_dino, save_dino, args.dino_iterations),
    )
    for name, train, save, iterations in jobs:
        tower = shown(
            name, partial(train, photos, scout), seed=args.seed, iterations=iterations
        )
        path = save(tower, args.out)
        print(f'{path}: {path.stat().st_size / 1e6:.2f} MB')


if __name__ == '__main__':
    run_tool(main)
