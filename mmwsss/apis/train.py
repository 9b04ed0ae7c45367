"""What tools/train.py and tools/test.py do: a config, a Runner, the launcher."""

import argparse
import atexit
import gc
import os
from pathlib import Path

import torch
import torch.distributed as dist
from mmengine.config import Config, DictAction
from mmengine.runner import Runner

from mmwsss.apis.cli import add_trust_argument
from mmwsss.apis.config_files import dataset_config, merge_options, read_config_file
from mmwsss.apis.host_memory import keep_freed_memory
from mmwsss.apis.pretrained_weights import check_pretrained, naming_pretrained
from mmwsss.apis.resumable import make_resumable, resume_newest
from mmwsss.engine.hooks import check_hooks
from mmwsss.errors import InputError, tool

LAUNCHERS = ('none', 'pytorch', 'slurm', 'mpi')


def train_command() -> int:
    """Parse MMSegmentation's training arguments and train."""
    parser = argparse.ArgumentParser(
        prog='train.py', description='Train a segmentor from image labels.'
    )
    _add_common_arguments(parser)
    parser.add_argument(
        '--resume',
        action='store_true',
        help='go on from the latest whole checkpoint in the work dir, if there is one',
    )
    parser.add_argument(
        '--amp', action='store_true', help='mixed precision (needs a GPU)'
    )
    parser.add_argument(
        '--profile',
        type=int,
        metavar='N',
        help='print which operations N iterations spend their time on, the sixth and '
        'the following',
    )
    args = parser.parse_args()
    # Here and not where the runner is made: it stays so for the whole process.
    keep_freed_memory()
    cfg = load_config(args.config, args.cfg_options, args.work_dir)
    build_training(
        cfg,
        launcher=args.launcher,
        resume=args.resume,
        amp=args.amp,
        profile=args.profile,
    ).train()
    return 0


def build_training(
    cfg: Config,
    *,
    launcher: str = 'none',
    resume: bool = False,
    amp: bool = False,
    profile: int | None = None,
) -> Runner:
    """A checked runner, ready for ``train()``.

    Also for a plain config of MMSegmentation: parts of MMEngine that could lose
    something are exchanged, see ``make_resumable``.

    Args:
        cfg: Of ``load_config``; changed here.
        launcher: One of ``LAUNCHERS``.
        resume: Go on from the latest whole checkpoint in the work dir, if there is
            one, see ``resume_newest``.
        amp: Mixed precision, which needs a GPU.
        profile: Iterations whose operations are timed and printed.

    Raises:
        InputError: Something of the config or the machine does not fit.
    """
    check_pretrained(cfg)
    cfg.resume = resume
    make_resumable(cfg)
    _stop_at_nan(cfg)
    if resume:
        resume_newest(cfg)
    if amp:
        _use_amp(cfg)
    if profile is not None:
        _add_profiler(cfg, profile)
    prepare_launcher(cfg, launcher)
    on_gpu = torch.cuda.is_available()
    if on_gpu:
        _pin_batches(cfg)
    runner = Runner.from_cfg(cfg)
    if on_gpu:
        _copy_ahead(runner)
    check_hooks(runner)
    return runner


def _pin_batches(cfg: Config) -> None:
    """Load training batches into memory that a GPU can copy from by itself."""
    if cfg.get('train_dataloader'):
        cfg.train_dataloader.setdefault('pin_memory', True)


def _copy_ahead(runner: Runner) -> None:
    """Do not wait for the copy of a batch: the GPU does its work in order anyway."""
    model = getattr(runner.model, 'module', runner.model)
    # MMSegmentation's preprocessor hands the argument of MMEngine's not on.
    model.data_preprocessor._non_blocking = True


def _stop_at_nan(cfg: Config) -> None:
    hooks, name = cfg.get('custom_hooks') or [], 'mmwsss.FiniteLossHook'
    if all(hook.get('type') != name for hook in hooks):
        cfg.custom_hooks = [*hooks, dict(type=name)]


def test_command() -> int:
    """Parse MMSegmentation's testing arguments and test."""
    parser = argparse.ArgumentParser(
        prog='test.py', description='Score a trained segmentor.'
    )
    _add_common_arguments(parser, checkpoint=True)
    parser.add_argument('--out', help='folder for the predicted label maps')
    parser.add_argument(
        '--tta', action='store_true', help='several scales and flips (cfg.tta_model)'
    )
    args = parser.parse_args()
    cfg = load_config(args.config, args.cfg_options, args.work_dir)
    run_test(
        cfg, args.checkpoint, launcher=args.launcher, tta=args.tta, label_dir=args.out
    )
    return 0


def run_test(
    cfg: Config,
    checkpoint: str | Path,
    *,
    launcher: str = 'none',
    tta: bool = False,
    label_dir: str | Path | None = None,
) -> dict:
    """Score a checkpoint on the config's test photos.

    Args:
        cfg: Of ``load_config``; changed here.
        checkpoint: A file.
        launcher: One of ``LAUNCHERS``.
        tta: Several scales and flips, by ``cfg.tta_model``.
        label_dir: Receives the predicted label maps; None writes none.

    Returns:
        The metrics by name, in percent.

    Raises:
        InputError: The checkpoint is not there, the config has nothing for ``tta``, or
            label maps would take the place of the masks.
    """
    if not Path(checkpoint).is_file():
        raise InputError(
            f'checkpoint {checkpoint} does not exist; {tool("train")} writes '
            'checkpoints into its work dir'
        )
    cfg.load_from = str(checkpoint)
    if tta:
        use_tta(cfg)
    if label_dir:
        _keep_masks(cfg, Path(label_dir))
        cfg.test_evaluator = dict(
            type='IoUMetric', iou_metrics=['mIoU'], output_dir=str(label_dir)
        )
    prepare_launcher(cfg, launcher)
    with naming_pretrained(cfg):
        runner = Runner.from_cfg(cfg)
    return runner.test()


def _keep_masks(cfg: Config, label_dir: Path) -> None:
    """Refuse the folder of the masks, which predictions would be written over."""
    if cfg.get('test_dataloader') is None:
        return
    dataset = dataset_config(cfg, 'test_dataloader')
    masks = (dataset.get('data_prefix') or {}).get('seg_map_path')
    if masks is None:
        return
    if label_dir.resolve() == Path(dataset.get('data_root') or '', masks).resolve():
        raise InputError(
            f'{label_dir} is the folder of the masks that are scored against; give '
            'another --out'
        )


def _add_common_arguments(parser, *, checkpoint: bool = False) -> None:
    parser.add_argument('config', help='config file')
    if checkpoint:
        parser.add_argument('checkpoint', help='checkpoint file')
    parser.add_argument('--work-dir', help='folder for logs and checkpoints')
    add_trust_argument(parser)
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=DictAction,
        help='override config values, for example train_cfg.max_iters=100',
    )
    parser.add_argument('--launcher', choices=LAUNCHERS, default='none')
    # torch.distributed.launch passes the rank as an argument.
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0)


def load_config(path: str, options: dict | None, work_dir: str | None) -> Config:
    """Read a config; the work dir comes from the command line, then the config."""
    if not Path(path).is_file():
        raise InputError(
            f'config {path} does not exist; the configs of mmwsss lie in configs/'
        )
    cfg = read_config_file(path)
    if options:
        merge_options(cfg, options)
    if work_dir:
        cfg.work_dir = work_dir
    elif cfg.get('work_dir') is None:
        cfg.work_dir = str(Path('work_dirs') / Path(path).stem)
    return cfg


def prepare_launcher(cfg: Config, launcher: str) -> None:
    """Set the launcher; without a GPU start gloo here.

    MMEngine's own start calls ``torch.cuda.set_device`` and hands device ids to
    DistributedDataParallel, which both fail on a machine without a GPU.
    """
    cfg.launcher = launcher
    if launcher != 'pytorch' or torch.cuda.is_available():
        return
    missing = [v for v in ('RANK', 'WORLD_SIZE', 'MASTER_ADDR') if v not in os.environ]
    if missing:
        raise InputError(
            f'--launcher pytorch needs the variable {missing[0]}, which torchrun '
            'sets; start it with: torchrun --nproc-per-node N -m mmwsss train CONFIG '
            '--launcher pytorch'
        )
    if not dist.is_initialized():
        dist.init_process_group('gloo')
        atexit.register(_leave_group)
    # An explicit None keeps MMEngine from filling in the local rank's GPU.
    cfg.model_wrapper_cfg = {
        'type': 'MMDistributedDataParallel',
        'broadcast_buffers': False,
        'find_unused_parameters': cfg.get('find_unused_parameters', False),
        **(cfg.get('model_wrapper_cfg') or {}),
        'device_ids': None,
    }


def _leave_group() -> None:
    """End gloo's threads while Python is still there.

    A thread of gloo that lets go of a tensor needs Python, and aborts the process where
    that is ending. The threads end with the group, once no model holds it.
    """
    gc.collect()
    if dist.is_initialized():
        dist.destroy_process_group()


def _use_amp(cfg: Config) -> None:
    if not torch.cuda.is_available():
        raise InputError('--amp needs a GPU and none was found; leave it out')
    cfg.optim_wrapper.type = 'AmpOptimWrapper'
    cfg.optim_wrapper.setdefault('loss_scale', 'dynamic')


def _add_profiler(cfg: Config, num_iters: int) -> None:
    if num_iters < 1:
        raise InputError(f'--profile needs a number of iterations, got {num_iters}')
    on_gpu = torch.cuda.is_available()
    # The first iterations build, tune and allocate what the others use.
    schedule = dict(wait=3, warmup=2, active=num_iters, repeat=1)
    total = 5 + num_iters
    if cfg.train_cfg.get('max_iters', 0) < total:
        raise InputError(
            f'--profile {num_iters} needs a training of {total} iterations or more, '
            'see train_cfg.max_iters; or profile fewer'
        )
    device = 'cuda' if on_gpu else 'cpu'
    hook = dict(
        type='ProfilerHook',
        by_epoch=False,
        profile_times=total,
        activity_with_cuda=on_gpu,
        schedule=schedule,
        on_trace_ready=dict(
            type='log_trace', sort_by=f'self_{device}_time_total', row_limit=30
        ),
    )
    cfg.custom_hooks = [*cfg.get('custom_hooks', []), hook]


def use_tta(cfg: Config) -> None:
    """Test with the config's tta_model and tta_pipeline."""
    if 'tta_model' not in cfg or 'tta_pipeline' not in cfg:
        raise InputError('--tta needs tta_model and tta_pipeline in the config')
    cfg.test_dataloader.dataset.pipeline = cfg.tta_pipeline
    cfg.tta_model.module = cfg.model
    cfg.model = cfg.tta_model
