"""Verbs over the same functions as tools/, with the options that those have.

What such a verb adds to its tool: configs by name, ``--data``, files that are not
written over, the last line with counts, and the log for machines. The options are
read by the module in apis/ that does the work, so ``--help`` takes its import.
"""

import argparse
import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import NoReturn

import click

from mmwsss.apis.cli import Counts
from mmwsss.command.common import Run, refuse_existing
from mmwsss.command.found import changes, find_config


@dataclass(frozen=True, kw_only=True)
class Tool:
    """A tool as a verb.

    Attributes:
        module: In apis/, with ``add_arguments`` and ``run``.
        example: A command line below the help.
        config: Its first argument is a config.
        files: Options that name a file to write; the log stands beside the first.
    """

    module: str
    example: str
    config: bool = True
    files: tuple[str, ...] = ()


TOOLS = {
    'prepare-data': Tool(
        module='prepare',
        config=False,
        example='mmwsss prepare-data voc data/VOCdevkit/VOC2012\n'
        'mmwsss prepare-data check voc data/VOCdevkit/VOC2012',
    ),
    'split-clips': Tool(
        module='split_clips',
        config=False,
        example='mmwsss split-clips clips.json --out lists --val 0.2 --test 0.2',
    ),
    'check-prompts': Tool(
        module='check_prompts',
        example='mmwsss check-prompts clipdino_refine_voc --data data/VOC2012 '
        '--model ViT-B-16 --weights openai --background-words sky grass road '
        '--out work_dirs/embeddings',
    ),
    'find-shortcuts': Tool(
        module='find_shortcuts',
        example='mmwsss find-shortcuts crossarch_synth work_dirs/cams '
        '--weights weights.json --regions work_dirs/regions',
        files=('weights',),
    ),
    'fuse-cams': Tool(
        module='fuse_cams',
        example='mmwsss fuse-cams orandnet_msrc cams_a cams_b --mode or --out cams_or',
    ),
    'pool-cams': Tool(
        module='pool_cams',
        example='mmwsss pool-cams smoke.py cams --clips clips.json --window 3 '
        '--out pooled',
    ),
    'select-threshold': Tool(
        module='select_threshold',
        example='mmwsss select-threshold aesipe_msrc --cams work_dirs/cams',
        files=('json',),
    ),
    'make-pseudo-labels': Tool(
        module='make_pseudo_labels',
        example='mmwsss make-pseudo-labels aesipe_msrc --cams work_dirs/cams '
        '--background auto --refine PAMR --out work_dirs/labels',
    ),
    'eval-pseudo-labels': Tool(
        module='eval_pseudo_labels',
        config=False,
        example='mmwsss eval-pseudo-labels work_dirs/cams '
        'data/VOC2012/SegmentationClass --json cams.json --curve cams.png',
        files=('json', 'curve'),
    ),
    'eval-co-occurrence': Tool(
        module='eval_co_occurrence',
        config=False,
        example='mmwsss eval-co-occurrence work_dirs/cams masks/ --list val.txt '
        '--json co_occurrence.json',
        files=('json',),
    ),
}


class _Parser(argparse.ArgumentParser):
    """Says what is wrong with a command line as click does."""

    def error(self, message: str) -> NoReturn:
        raise click.UsageError(message)


class _Help(argparse.HelpFormatter):
    """Usage as click writes it; the example stays as it is."""

    def add_usage(self, usage, actions, groups, prefix=None) -> None:
        super().add_usage(usage, actions, groups, prefix or 'Usage: ')

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        if text.startswith('Example'):
            return text
        return super()._fill_text(text, width, indent)


def tool_verb(name: str) -> click.Command:
    """The click command of one of ``TOOLS``; it leaves its words to argparse."""

    @click.command(
        name,
        add_help_option=False,
        context_settings={'ignore_unknown_options': True},
    )
    @click.argument('words', nargs=-1, type=click.UNPROCESSED)
    def command(words: tuple[str, ...]) -> None:
        _run(name, words)

    return command


def parse(name: str, words: Sequence[str]) -> argparse.Namespace:
    """Words of a verb's command line, its config found by name.

    Raises:
        click.UsageError: They cannot be read.
        InputError: There is no such config, or a folder of ``--data``.
    """
    tool = TOOLS[name]
    example = tool.example.replace('\n', '\n  ')
    parser = _Parser(
        prog=f'mmwsss {name}', formatter_class=_Help, epilog=f'Example:\n  {example}'
    )
    _module(name).add_arguments(parser)
    if tool.config:
        parser.add_argument(
            '--data', type=Path, help="folder of the data set, in place of the config's"
        )
    if tool.files:
        parser.add_argument(
            '--overwrite', action='store_true', help='replace files that are there'
        )
    args = parser.parse_args(words)
    if tool.config:
        config = find_config(args.config)
        args.config = str(config)
        args.cfg_options = {
            **changes(config, (), data=args.data),
            **(args.cfg_options or {}),
        }
    return args


def _module(name: str) -> ModuleType:
    return importlib.import_module(f'mmwsss.apis.{TOOLS[name].module}')


def _run(name: str, words: Sequence[str]) -> None:
    args, counts, work = parse(name, words), Counts(), _module(name).run
    if getattr(args, 'dry_run', False):
        work(args, counts)
        return
    files = {option: getattr(args, option) for option in TOOLS[name].files}
    files = {option: file for option, file in files.items() if file}
    for option, file in files.items():
        refuse_existing(file, overwrite=args.overwrite, option=f'--{option}')
    with Run(name, **_place_of_log(args, list(files.values()))) as run:
        try:
            work(args, counts)
        finally:
            run.ok(count=counts.ok)
            run.skipped(count=counts.skipped)
            run.counts['failed'] += counts.failed
    if counts.failed:
        raise SystemExit(1)


def _place_of_log(args: argparse.Namespace, files: Sequence[Path]) -> dict:
    """Arguments of ``Run``: beside a file, in a folder, nowhere."""
    out = getattr(args, 'out', None)
    if not files and out is not None and out.suffix == '.json':
        files = [out]
    return {'folder': None, 'file': files[0]} if files else {'folder': out}
