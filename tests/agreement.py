"""Whether trainings agree: more processes, more workers, the same once more.

    python tests/agreement.py --iterations 8 --seed 3 --json agreement.json

Toy networks learn from eight drawn photos, four a step: in one process, in two and in
four that share the four photos (gloo), with 0, 2 and 4 processes that load photos, and
once more in a fresh process with the same seed. The table has the largest absolute
difference from the first run; 0 means that all bits are the same.
"""

import argparse
import contextlib
import gc
import os
import tempfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import tiny_run
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from mmengine.config import Config
from mmengine.hooks import Hook

from mmwsss.apis.train import build_training
from mmwsss.files import write_json

GLOBAL_BATCH = 4
PROCESSES, WORKERS = (2, 4), (2, 4)
FIRST = 'one process'
# Plain SGD: Adam scales every gradient to one size, also those that are zero but for
# rounding, such as that of the bias of an attention's keys.
_SGD = dict(type='SGD', lr=0.05, momentum=0.9)


# ------------------------------------------------------------------------- the works
def segmentor(root: Path, *, dropout: bool = False) -> dict:
    """One-stage segmentor with reliability gate, history and teacher."""
    content = tiny_run.gated_config(root)
    content['optim_wrapper']['optimizer'] = _SGD
    if not dropout:
        content['model']['decode_head']['dropout_ratio'] = 0.0
    return content


def segmentor_with_dropout(root: Path) -> dict:
    """The same with dropout, as shipped."""
    return segmentor(root, dropout=True)


def _cam_network(root: Path, model: dict) -> dict:
    content = tiny_run.config(root)
    resnet = dict(
        **dict(type='ResNet', depth=18, base_channels=4, stem_channels=4),
        strides=(1, 2, 2, 1),
    )
    content['model'] = dict(
        backbone={**resnet, **model.pop('backbone')},
        num_classes=len(tiny_run.CLASSES),
        data_preprocessor=content['model']['data_preprocessor'],
        **model,
    )
    content['optim_wrapper']['optimizer'] = {**_SGD, 'lr': 0.01}
    return content


def sipe(root: Path) -> dict:
    """SIPE with its batch norms frozen, as shipped."""
    model = dict(
        **dict(type='mmwsss.SIPE', side_channels=(3, 4, 5, 6)),
        backbone=dict(norm_eval=True, frozen_stages=2),
    )
    return _cam_network(root, model)


def classifier(root: Path) -> dict:
    """CAM classifier with its batch norms frozen, as shipped."""
    return _cam_network(
        root, dict(type='mmwsss.CAMClassifier', backbone=dict(norm_eval=True))
    )


def classifier_with_batch_norms(root: Path) -> dict:
    """The same, its batch norms trained."""
    return _cam_network(
        root, dict(type='mmwsss.CAMClassifier', backbone=dict(norm_eval=False))
    )


WORKS: dict[str, Callable[[Path], dict]] = {
    work.__name__: work
    for work in (
        segmentor,
        segmentor_with_dropout,
        sipe,
        classifier,
        classifier_with_batch_norms,
    )
}


# ---------------------------------------------------------------------- one training
class _Losses(Hook):
    """The loss of each iteration, as a mean over the processes."""

    def __init__(self) -> None:
        self.found: list[float] = []

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        loss = outputs['loss'].detach().double()
        if dist.is_initialized():
            dist.all_reduce(loss)
            loss /= dist.get_world_size()
        self.found.append(loss.item())


def _train(work: str, folder: Path, *, workers: int, seed: int, iterations: int):
    size = dist.get_world_size() if dist.is_initialized() else 1
    content = Config(WORKS[work](folder.parent / 'data'))
    content.train_dataloader.batch_size = GLOBAL_BATCH // size
    content.train_dataloader.num_workers = workers
    content.train_cfg = dict(type='IterBasedTrainLoop', max_iters=iterations)
    content.default_hooks.checkpoint.interval = iterations
    content.randomness = dict(seed=seed)
    content.work_dir = str(folder)
    content.experiment_name = f'{work} {folder.name}'
    content.log_level = 'ERROR'
    runner = build_training(content, launcher='none' if size == 1 else 'pytorch')
    losses = _Losses()
    runner.register_hook(losses)
    runner.train()
    if runner.rank == 0:
        # What a checkpoint holds: of a shared history all parts.
        (saved,) = folder.glob(f'iter_{iterations}.pth')
        state = torch.load(saved, weights_only=True)['state_dict']
        torch.save({'losses': losses.found, 'state': state}, folder / 'found.pt')


def _run(rank: int, size: int, plan: dict, runs: Sequence[tuple[str, int]]) -> None:
    """One of ``size`` processes that train everything, one after the other."""
    torch.set_num_threads(1)
    # Gloo is for the CPU.
    os.environ.update(CUDA_VISIBLE_DEVICES='', MASTER_ADDR='localhost')
    folder = Path(plan['folder'])
    if size > 1:
        os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(size))
        store = f'file://{folder}/store_{size}'
        dist.init_process_group('gloo', init_method=store, rank=rank, world_size=size)
    with (
        open(folder / f'log_{size}_{rank}.txt', 'a') as log,
        contextlib.redirect_stdout(log),
        contextlib.redirect_stderr(log),
    ):
        for name, workers in runs:
            for work in plan['works']:
                _train(
                    work,
                    folder / f'{work}, {name}',
                    workers=workers,
                    seed=plan['seed'],
                    iterations=plan['iterations'],
                )
    if size > 1:
        # Nobody hangs up while another still talks.
        gc.collect()
        dist.barrier()
        dist.destroy_process_group()


# ------------------------------------------------------------------- the comparison
def _difference(first: dict, other: dict) -> dict[str, float | None]:
    losses = [abs(a - b) for a, b in zip(first['losses'], other['losses'], strict=True)]
    assert first['state'].keys() == other['state'].keys()
    weights, histories = [], []
    for name, value in first['state'].items():
        if value.numel():
            away = (value.double() - other['state'][name].double()).abs().max().item()
            # Probabilities of a history are stored in 255 steps.
            kind = histories if value.dtype == torch.uint8 else weights
            kind.append(away)
    return {
        'first_loss': losses[0],
        'losses': max(losses),
        'weights': max(weights),
        'history': max(histories, default=None),
    }


def compare(
    works: Sequence[str],
    *,
    iterations: int,
    seed: int,
    processes: Sequence[int] = PROCESSES,
    workers: Sequence[int] = WORKERS,
) -> list[dict]:
    """Train everything and compare with one process that loads photos itself.

    Returns:
        A row for each work and run: ``work``, ``run``, and the largest absolute
        differences ``first_loss`` (of the first iteration), ``losses`` (of all),
        ``weights`` (of the last checkpoint) and ``history`` (of predictions, in it; in
        steps of 255; None without one).
    """
    alone = [(FIRST, 0), *((f'{n} workers', n) for n in workers)]
    again = 'the same seed again'
    shared = {n: f'{n} processes' for n in processes}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tiny_run.draw(folder / 'data')
        plan = dict(folder=name, works=list(works), seed=seed, iterations=iterations)
        for size, runs in (
            (1, alone),
            (1, [(again, 0)]),
            *((size, [(run, 0)]) for size, run in shared.items()),
        ):
            mp.spawn(_run, (size, plan, runs), nprocs=size)

        def found(work: str, run: str) -> dict:
            return torch.load(folder / f'{work}, {run}/found.pt', weights_only=True)

        names = [again, *(run for run, _ in alone[1:]), *shared.values()]
        return [
            {'work': work, 'run': run}
            | _difference(found(work, FIRST), found(work, run))
            for work in works
            for run in names
        ]


def table(rows: Iterable[dict]) -> str:
    """The rows in Markdown."""
    lines = [
        '| training | run | loss of the first iteration | losses | weights | history |',
        '|---|---|---|---|---|---|',
    ]
    for row in rows:
        figures = [
            '' if row[name] is None else '0' if not row[name] else f'{row[name]:.2g}'
            for name in ('first_loss', 'losses', 'weights', 'history')
        ]
        cells = [row['work'].replace('_', ' '), row['run'], *figures]
        lines.append(f'| {" | ".join(cells)} |')
    return '\n'.join(lines)


def main() -> None:
    """Parse the command line, print the table, write the JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--works', nargs='+', choices=WORKS, default=list(WORKS))
    parser.add_argument('--iterations', type=int, default=8)
    parser.add_argument('--seed', type=int, default=3)
    parser.add_argument('--json', type=Path, help='receives the rows')
    args = parser.parse_args()
    rows = compare(args.works, iterations=args.iterations, seed=args.seed)
    print(table(rows))
    if args.json is not None:
        write_json(
            args.json,
            {'iterations': args.iterations, 'seed': args.seed, 'rows': rows},
        )


if __name__ == '__main__':
    main()
