"""How CAMs become labels: small texts of the command line, parsed and applied."""

import ast
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from mmwsss.apis.cam_scores import GivenThreshold
from mmwsss.apis.config_names import find_config
from mmwsss.errors import InputError
from mmwsss.functional import add_background, otsu_threshold

BACKGROUND_HELP = (
    'a number (a threshold: the score of the background everywhere), "own" (the one '
    'that the scores bring along), "own*0.8" (that one times 0.8), "power:4" '
    '((1 - best CAM)^4), or "best:FILE.json" (the threshold that '
    'eval_pseudo_labels.py --json found best; "best*2:FILE.json" twice that, at most '
    '1), or "otsu" (a threshold that cuts the best CAM of each photo into two groups)'
)

# Those that need nothing but a photo, its scores and files of their own.
SCORE_REFINERS = ('PAMR', 'PAR', 'DenseCRF', 'SAMMerge', 'CLIPFilter', 'TrainedRefiner')


@dataclass(frozen=True)
class BackgroundRule:
    """Where the score of the background comes from.

    Attributes:
        kind: ``'threshold'``, ``'own'``, ``'power'`` or ``'otsu'``.
        value: The threshold, the factor or the exponent; 0 for ``'otsu'``.
        source: Where a threshold was chosen, '' where it was given.
    """

    kind: str
    value: float
    source: str = field(default='', compare=False)

    @classmethod
    def parse(cls, text: str) -> 'BackgroundRule':
        """Read a rule as a user writes it, see ``BACKGROUND_HELP``.

        Raises:
            InputError: It is none, or the file of a best threshold is not one.
        """
        if text.startswith('best'):
            return cls._best(text)
        if text == 'otsu':
            return cls('otsu', 0.0)
        name, sign, number = 'threshold', '', text
        if text.startswith('own'):
            name, sign, number = 'own', '*', text.removeprefix('own') or '*1'
        elif text.startswith('power'):
            name, sign, number = 'power', ':', text.removeprefix('power')
        try:
            if not number.startswith(sign):
                raise ValueError
            value = float(number.removeprefix(sign))
            # Also refuses nan.
            if not (0 <= value <= 1 if name == 'threshold' else 0 < value < 1000):
                raise ValueError
        except ValueError:
            raise _no_rule(text) from None
        return cls(name, value)

    @classmethod
    def _best(cls, text: str) -> 'BackgroundRule':
        """The best threshold of an evaluation, maybe times a factor."""
        times, _, file = text.removeprefix('best').partition(':')
        try:
            if not file or (times and not times.startswith('*')):
                raise ValueError
            factor = float(times.removeprefix('*') or 1)
            if not 0 < factor < 1000:
                raise ValueError
        except ValueError:
            raise _no_rule(text) from None
        found = GivenThreshold.read(Path(file))
        source = found.source if factor == 1 else f'{factor:g} times {found.source}'
        # Six digits are what is shown and recorded.
        return cls('threshold', float(f'{min(1.0, factor * found.value):g}'), source)

    def __str__(self) -> str:
        if self.kind == 'otsu':
            return self.kind
        if self.kind == 'threshold':
            return f'{self.value:g}'
        return f'own*{self.value:g}' if self.kind == 'own' else f'power:{self.value:g}'

    @property
    def described(self) -> str:
        """The rule, and where its number comes from."""
        return f'{self} ({self.source})' if self.source else str(self)

    def scores(self, cams: Tensor, own: Tensor | None) -> Tensor:
        """Scores (1, C, h, w) of CAMs (K, h, w) and their own background (h, w)."""
        if self.kind == 'power':
            return add_background(cams[None], power=self.value)
        if self.kind == 'threshold':
            background = torch.full_like(cams[:1], self.value)
        elif self.kind == 'otsu':
            background = otsu_threshold(cams.amax(0)).expand_as(cams[:1])
        elif own is None:
            raise InputError(
                f'--background {self} needs scores with a background of their own, but '
                'these CAMs have none; give a threshold, for example --background 0.25'
            )
        else:
            background = own[None] * self.value
        return torch.cat([background, cams])[None]


def _no_rule(text: str) -> InputError:
    return InputError(
        f'the background {text!r} is none of: {BACKGROUND_HELP}; thresholds lie in '
        '[0, 1]'
    )


def parse_refiner(text: str) -> dict:
    """A refiner's config from ``Name`` or ``Name(argument=value, ...)``.

    Values are Python literals; nothing is evaluated. A ``config`` may be the name of
    one that mmwsss brings along, or a work directory, as everywhere on the command
    line; it becomes its file.

    Raises:
        InputError: The text is no refiner, or there is no such config.
    """
    hint = f'{text!r} is no refiner; write it as PAMR or "DenseCRF(gt_prob=0.7)"'
    try:
        call = ast.parse(text.strip(), mode='eval').body
    except SyntaxError:
        raise InputError(hint) from None
    arguments = {}
    if isinstance(call, ast.Call):
        if call.args or any(word.arg is None for word in call.keywords):
            raise InputError(f'{hint}, with a name before each value')
        try:
            arguments = {w.arg: ast.literal_eval(w.value) for w in call.keywords}
        except ValueError:
            raise InputError(
                f'{hint}, with numbers, texts or lists as values'
            ) from None
        call = call.func
    if not isinstance(call, ast.Name):
        raise InputError(hint)
    if isinstance(arguments.get('config'), str):
        arguments['config'] = str(find_config(arguments['config']))
    return {'type': f'mmwsss.{call.id}', **arguments}


def build_refiners(configs: Sequence[dict], device: str) -> list:
    """Build a chain of refiners, (image, scores, image_label) -> scores, in order."""
    from mmwsss.registry import MODELS

    built = []
    for config in configs:
        name = config['type'].removeprefix('mmwsss.')
        if name not in SCORE_REFINERS:
            raise InputError(
                f'{name!r} is no refiner of scores; those are '
                f'{", ".join(SCORE_REFINERS)} (a trained IRNet or AffinityNet: '
                'TrainedRefiner(config="...", checkpoint="..."))'
            )
        try:
            built.append(MODELS.build(dict(config)).to(device).eval())
        except InputError:
            raise
        except (TypeError, ValueError) as error:
            # Python's own sentence names the unknown or missing argument.
            raise InputError(f'the refiner {name} cannot be built: {error}') from None
    return built
