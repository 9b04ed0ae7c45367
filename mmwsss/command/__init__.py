"""The command ``mmwsss``: one verb for each thing to do, over the functions of apis/.

A verb is a module here with a click command named ``command``. It is imported when it
is called and not before, so that ``mmwsss --help`` needs neither torch nor the mm
packages; what a verb does is imported when it does it, so that its ``--help`` is quick
as well. ``tools`` has the verbs without a module of their own.
"""

import importlib
import sys

import click

import mmwsss
from mmwsss.command.tools import TOOLS, tool_verb
from mmwsss.errors import Terminated

# Verb -> what it does, in the order of the work. The module is named as the verb.
VERBS = {
    'doctor': 'check a data set or the installation, and say what to do',
    'convert': 'tags from other formats; masks to and from annotators',
    'prepare-data': 'image labels of VOC and COCO, crops, and a check of lists',
    'split-clips': 'lists of clips that share no camera',
    'check-prompts': "whether CLIP's prompts tell the classes apart",
    'find-shortcuts': 'photos that a classifier gets wrong, and why',
    'configs': 'list the configs and recipes that are found by name',
    'train': 'train a network from image labels or from pseudo-labels',
    'test': 'score a trained network with mIoU',
    'make-cams': 'class activation maps of all photos, one file each',
    'fuse-cams': 'CAMs of several stores joined in a new one',
    'pool-cams': 'CAMs of frames pooled over time and gated by motion',
    'select-threshold': 'a threshold for CAMs that no mask has chosen',
    'make-pseudo-labels': 'label maps from CAMs or from a trained network',
    'eval-pseudo-labels': 'score CAMs or label maps against masks',
    'eval-co-occurrence': 'score objects and what accompanies them apart',
    'label': 'photos and their tags to masks',
    'evaluate': 'score a run: CAMs, refined labels and the segmentor',
    'recipe': 'run a method of several stages; run again, it goes on',
    'report': 'one HTML page of a scored run',
    'export': 'write a trained segmentor as ONNX',
}


class Verbs(click.Group):
    """A group that imports a verb when it is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """All verbs, in the order of the work."""
        return list(VERBS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        """The verb's click command; None for an unknown verb."""
        if name not in VERBS:
            return None
        if name in TOOLS:
            return tool_verb(name)
        module = importlib.import_module(f'{__name__}.{name.replace("-", "_")}')
        return module.command

    def format_commands(
        self, ctx: click.Context, formatter: click.HelpFormatter
    ) -> None:
        """The verbs with their sentence, none of them imported."""
        with formatter.section('Verbs'):
            formatter.write_dl(list(VERBS.items()))


@click.group(
    cls=Verbs,
    invoke_without_command=True,
    context_settings={'help_option_names': ['-h', '--help']},
    epilog='\b\nExample:\n  mmwsss train clipdino_refine_voc --data data/VOC2012',
)
@click.version_option(mmwsss.__version__, prog_name='mmwsss')
@click.pass_context
def group(context: click.Context) -> None:
    """Image tags in, masks and a trained segmentation network out.

    `mmwsss VERB --help` shows the options of a verb and an example.
    """
    if context.invoked_subcommand is None:
        print(context.get_help())


def main() -> None:
    """Run the command line and leave the process with its exit code.

    0 when something came out, 1 for bad input or when nothing came out, 2 for a
    command line that cannot be read, 130 after Ctrl-C, 143 after SIGTERM.
    """
    from mmwsss.apis.cli import run_tool

    run_tool(_run)


def _run() -> int | None:
    try:
        return group.main(prog_name='mmwsss', standalone_mode=False)
    except click.exceptions.Abort as abort:
        # Click's word for Ctrl-C, and for SIGTERM.
        stopped = isinstance(abort.__cause__, Terminated)
        raise (Terminated if stopped else KeyboardInterrupt) from None
    except click.ClickException as error:
        print(f'error: {_sentence(error)}', file=sys.stderr)
        return error.exit_code


def _sentence(error: click.ClickException) -> str:
    sentence = error.format_message().rstrip('.')
    context = getattr(error, 'ctx', None)
    if context is None:
        return sentence
    return f'{sentence}; see {context.command_path} --help'
