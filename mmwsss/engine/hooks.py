"""Hooks: they own time, the model owns tensors."""

from pathlib import Path

import torch
from mmengine.dist import get_rank
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper

from mmwsss.errors import InputError
from mmwsss.functional import cosine
from mmwsss.models.labelers import ReliabilityGate
from mmwsss.registry import HOOKS

from .checkpoint_hook import check_checkpoint_hook
from .random_state import iteration_seed


@HOOKS.register_module()
class ProgressHook(Hook):
    """Tells the model how far training is: ``model.progress`` in [0, 1].

    Derived from the iteration, so it is right after a resume without any state.
    """

    priority = 'VERY_HIGH'

    def before_train_iter(self, runner, batch_idx: int, data_batch=None) -> None:
        """Set the progress of the iteration that begins."""
        unwrapped(runner.model).progress = runner.iter / runner.max_iters


@HOOKS.register_module()
class IterationSeedHook(Hook):
    """Seeds torch from (seed, rank, iteration) before every iteration.

    Dropout is then a function of the iteration, whatever else draws numbers, and a
    resumed run draws what the uninterrupted one would have drawn, also with
    checkpoints that hold no random state.
    """

    priority = 'VERY_HIGH'

    def before_train_iter(self, runner, batch_idx: int, data_batch=None) -> None:
        """Seed every generator of torch; on CUDA this waits for nothing."""
        torch.manual_seed(iteration_seed(runner.seed, get_rank(), runner.iter))


@HOOKS.register_module()
class TeacherHook(Hook):
    """Averages the decode head into the teacher after every iteration.

    Args:
        momentum: share of the teacher that an iteration leaves. Early on it is lower,
            1 - 1 / (iteration + 1): then the teacher is the plain mean of all heads so
            far, and not a memory of the random start.
    """

    def __init__(self, *, momentum: float = 0.999) -> None:
        if not 0 <= momentum < 1:
            raise ValueError(f'momentum must be in [0, 1), got {momentum}')
        self.momentum = momentum

    def before_run(self, runner) -> None:
        """Refuse a model without a teacher."""
        if getattr(unwrapped(runner.model), 'teacher_head', None) is None:
            raise InputError(
                'TeacherHook is among the hooks, but the model has no teacher; give '
                "the model loss_teacher=dict(type='mmwsss.TeacherLoss') or take the "
                'hook out'
            )

    def after_train_iter(
        self, runner, batch_idx: int, data_batch=None, outputs=None
    ) -> None:
        """Move the teacher."""
        early = 1 - 1 / (runner.iter + 1)
        unwrapped(runner.model).update_teacher(min(self.momentum, early))


@HOOKS.register_module()
class ReliabilityGatedPseudoLabelHook(Hook):
    """Takes a ``ReliabilityGate`` through explore, repair and consolidate.

    All positions are fractions of the training, so that one config serves 30,000 and
    80,000 iterations. Between the two starts the base gate rises along a cosine.

    Args:
        repair_start: from here reliable predictions repair labels.
        consolidate_start: from here unreliable agreed labels are dropped as well, and
            the gate is at its end.
        gate_start: base gate at ``repair_start``.
        gate_end: base gate from ``consolidate_start`` on.
        log_interval: iterations between two entries of the gates of all classes.
    """

    priority = 'VERY_HIGH'

    def __init__(
        self,
        *,
        repair_start: float = 0.44,
        consolidate_start: float = 0.625,
        gate_start: float = 0.55,
        gate_end: float = 0.825,
        log_interval: int = 50,
    ) -> None:
        if not 0 <= repair_start < consolidate_start:
            raise ValueError(
                'repair_start must come before consolidate_start, got '
                f'{repair_start} and {consolidate_start}'
            )
        self.repair_start = repair_start
        self.consolidate_start = consolidate_start
        self.gate_start = gate_start
        self.gate_end = gate_end
        self.log_interval = log_interval

    def before_run(self, runner) -> None:
        """Make room in the history for the training photos."""
        gate = find_gate(runner.model)
        if gate.history is not None:
            # Once more here: other trainers than ours do not call check_hooks.
            check_checkpoint_hook(runner)
            gate.history.prepare(*training_labels(runner.train_dataloader.dataset))

    def before_train_iter(self, runner, batch_idx: int, data_batch=None) -> None:
        """Set the phase of the iteration that begins."""
        progress = runner.iter / runner.max_iters
        find_gate(runner.model).set_phase(
            self.phase_at(progress),
            cosine(
                progress,
                start=self.gate_start,
                end=self.gate_end,
                begin=self.repair_start,
                finish=self.consolidate_start,
            ),
        )

    def phase_at(self, progress: float) -> str:
        """'explore', 'repair' or 'consolidate'."""
        if progress < self.repair_start:
            return 'explore'
        return 'repair' if progress < self.consolidate_start else 'consolidate'

    def after_train_iter(
        self, runner, batch_idx: int, data_batch=None, outputs=None
    ) -> None:
        """Log the gates of all classes now and then."""
        if not self.every_n_train_iters(runner, self.log_interval):
            return
        gates = find_gate(runner.model).gates.tolist()
        classes = runner.train_dataloader.dataset.metainfo['classes']
        for name, gate in zip(classes, gates, strict=True):
            runner.visualizer.add_scalar(f'gate/{name}', gate, runner.iter + 1)


def check_hooks(runner) -> None:
    """Refuse a training whose model waits for a hook that is not there.

    A config that sets ``custom_hooks`` replaces the list of its base. Without their
    hooks schedules would stay at the start, the gate would never repair anything and
    the teacher would remain the random head it began as, all without a word. And in
    several processes a history needs a checkpoint hook that can save it.

    Raises:
        InputError: Names the hook and the line to add.
    """
    model = unwrapped(runner.model)
    needs = {
        ProgressHook: hasattr(model, 'progress'),
        ReliabilityGatedPseudoLabelHook: any(
            isinstance(module, ReliabilityGate) for module in model.modules()
        ),
        TeacherHook: getattr(model, 'teacher_head', None) is not None,
    }
    for hook, needed in needs.items():
        if needed and not any(isinstance(other, hook) for other in runner.hooks):
            raise InputError(
                f'the model needs {hook.__name__}, which is not among the hooks; add '
                f"dict(type='mmwsss.{hook.__name__}') to custom_hooks (a config that "
                'sets custom_hooks begins with *_base_.custom_hooks)'
            )
    check_checkpoint_hook(runner)


def unwrapped(model: torch.nn.Module) -> torch.nn.Module:
    """The model inside DistributedDataParallel, or the model itself."""
    return model.module if is_model_wrapper(model) else model


def find_gate(model: torch.nn.Module) -> torch.nn.Module:
    """The model's one ReliabilityGate."""
    gates = [m for m in model.modules() if isinstance(m, ReliabilityGate)]
    if len(gates) != 1:
        raise InputError(
            'ReliabilityGatedPseudoLabelHook needs a model with one '
            f'mmwsss.ReliabilityGate, this one has {len(gates)}; use '
            'mmwsss.ReliabilityGatedLabeler as its labeler or take the hook out'
        )
    return gates[0]


def training_labels(dataset) -> tuple[list[str], torch.Tensor]:
    """Ids and image labels (M, K) of all training photos, also inside wrappers."""
    if hasattr(dataset, 'datasets'):
        parts = [training_labels(part) for part in dataset.datasets]
        ids = [image_id for part, _ in parts for image_id in part]
        return ids, torch.cat([labels for _, labels in parts])
    if not hasattr(dataset, 'get_data_info') and hasattr(dataset, 'dataset'):
        return training_labels(dataset.dataset)
    ids, labels = [], []
    for index in range(len(dataset)):
        info = dataset.get_data_info(index)
        if 'image_label' not in info:
            raise InputError(
                f'{type(dataset).__name__} has no image labels, which the history of '
                'predictions needs; use mmwsss.ImageLabelDataset or set history=None '
                'in the ReliabilityGate'
            )
        ids.append(info.get('img_id') or Path(info['img_path']).stem)
        labels.append(torch.as_tensor(info['image_label']))
    return ids, torch.stack(labels)
