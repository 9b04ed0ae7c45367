"""What the verbs share: options, counts with a last line, a log for machines."""

import json
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import IO

import click

from mmwsss.apis.cli import find_sentence
from mmwsss.errors import InputError

LOG = 'log.jsonl'
# As in apis/train.py, which takes seconds to import.
LAUNCHERS = ('none', 'pytorch', 'slurm', 'mpi')


# ------------------------------------------------------------------------- the options
def verb(name: str, *, example: str) -> Callable:
    """A click command with an example below its help.

    Args:
        name: Of the verb.
        example: A command line, or several lines, without an indent.
    """
    lines = '\n'.join(f'  {line}' for line in example.splitlines())
    return click.command(name, epilog=f'\b\nExample:\n{lines}')


class ConfigName(click.ParamType):
    """A config or recipe: a file, or the name of one that mmwsss brings along."""

    name = 'config'

    def __init__(self, *, folder: str = '') -> None:
        self.folder = folder

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> Path:
        """The file; raises InputError with near matches for an unknown name."""
        from mmwsss.command.found import find_config

        return find_config(str(value), folder=self.folder)


FILE = click.Path(path_type=Path)
config_argument = click.argument('config', type=ConfigName(), metavar='CONFIG')
dry_run_option = click.option(
    '--dry-run',
    is_flag=True,
    help='Say what would be read and written, and how much; write nothing.',
)
cfg_options_option = click.option(
    '--cfg-options',
    multiple=True,
    metavar='KEY=VALUE',
    help='Override a value of the config, for example train_cfg.max_iters=100; may be '
    'given several times.',
)
data_option = click.option(
    '--data', type=FILE, help="Folder of the data set, in place of the config's."
)
device_option = click.option(
    '--device', help='For example cuda:0; default: the GPUs in turn, or the CPU.'
)
jobs_option = click.option(
    '--jobs', default=1, show_default=True, help='Processes that share the photos.'
)

# The default as in apis/photos.py, which takes seconds to import.
max_unreadable_option = click.option(
    '--max-unreadable',
    default=10,
    show_default=True,
    metavar='N',
    help='Photos that cannot be read and are left out, before the run stops.',
)


def _trust(context: click.Context, option: click.Parameter, given: bool) -> None:
    if given:
        from mmwsss.checkpoints import trust_checkpoints

        trust_checkpoints()


trust_option = click.option(
    '--trust',
    is_flag=True,
    expose_value=False,
    callback=_trust,
    help='Read checkpoints even where that can run code in them; only for older files '
    'of people you trust.',
)


def overwrite_option(what: str) -> Callable:
    """The option ``--overwrite``, which replaces ``what``."""
    return click.option('--overwrite', is_flag=True, help=f'Replace {what}.')


def out_option(text: str) -> Callable:
    """The required option ``--out``, described by a sentence."""
    return click.option('--out', type=FILE, required=True, help=text)


def refuse_existing(path: Path, *, overwrite: bool, option: str = '--out') -> None:
    """Raise InputError for a file, or a folder with files, that would be replaced."""
    if overwrite or not path.exists():
        return
    if path.is_dir() and not any(path.iterdir()):
        return
    raise InputError(
        f'{path} is there already; give another {option}, or add --overwrite to '
        'replace it'
    )


# ------------------------------------------------------------------------ the dry run
def show_plan(
    *,
    reads: Mapping[str, object],
    writes: Mapping[str, object],
    notes: Mapping[str, object] | None = None,
    to_make: int,
    there: int = 0,
) -> None:
    """Print what a dry run has to say.

    Args:
        reads: What would be read: a name and a path, or a path with a number.
        writes: What would be written.
        notes: Whatever else is worth a line.
        to_make: Number of outputs that would be made.
        there: Number of outputs that are there and would stay.
    """
    for head, entries in (('would read', reads), ('would write', writes)):
        for name, value in entries.items():
            print(f'{head:<12} {name}: {value}')
    for name, value in (notes or {}).items():
        print(f'{name}: {value}')
    print(f'dry run: {to_make} to make, {there} there already; nothing was written')


# ------------------------------------------------------------------ counts and the log
class Run:
    """Counts what a verb does, logs it for machines and prints the last line.

    As a context: on the way out it prints ``N ok, M skipped, K failed`` and ends the
    process with 1 where nothing came out (neither made nor there already). Bad input
    (InputError) inside is printed as one sentence before that line, exit code 1.

    ``FOLDER/log.jsonl`` gets one JSON object a line: ``begin`` (verb, version,
    options), ``ok``, ``skipped`` and ``failed`` (item, and the reason), whatever
    ``note`` is given, ``error`` and ``end`` (the counts, seconds); each with ``time``.
    It is appended to, and begun when something is counted, so that a refused command
    leaves no trace. Ranks above 0 of torchrun stay silent.

    Args:
        verb: Name of the verb.
        folder: Receives the log; None writes none.
        file: In place of a folder: the one file that is written. Its log stands
            beside it, ``NAME.log.jsonl`` for ``NAME.json``.
    """

    def __init__(
        self, verb: str, *, folder: Path | None, file: Path | None = None
    ) -> None:
        self.verb = verb
        self.counts = {'ok': 0, 'skipped': 0, 'failed': 0}
        self._silent = int(os.environ.get('RANK', 0)) > 0
        path = None if folder is None else Path(folder) / LOG
        if file is not None:
            path = file.with_name(f'{file.stem}.{LOG}')
        self._path = None if self._silent else path
        self._waiting: list[str] = []
        self._stream: IO[str] | None = None
        self._begin = time.monotonic()

    @property
    def is_first_rank(self) -> bool:
        """Whether this process speaks, and clears away, for all of torchrun's."""
        return not self._silent

    def start(self) -> None:
        """Begin the log, before anything is counted: the work itself begins now."""
        self._open()

    # ------------------------------------------------------------------------ counting
    def ok(self, item: str | None = None, *, count: int = 1) -> None:
        """Count what was made; an item is named in the log."""
        self._count('ok', item, count, None)

    def skipped(
        self, item: str | None = None, *, count: int = 1, reason: str = 'there already'
    ) -> None:
        """Count what was left alone."""
        self._count('skipped', item, count, reason)

    def failed(self, item: str, *, reason: str) -> None:
        """Count what could not be made, and say so at once."""
        if not self._silent:
            click.echo(f'failed: {item}: {reason}', err=True)
        self._count('failed', item, 1, reason)

    def note(self, event: str, facts: Mapping[str, object]) -> None:
        """A line of the log that counts nothing; the facts are ready for JSON."""
        self._log({'event': event, **facts})

    def _count(self, event: str, item: str | None, count: int, reason) -> None:
        if not count:
            return
        self.counts[event] += count
        entry = {'event': event, 'item': item, 'count': count, 'reason': reason}
        self._log({k: v for k, v in entry.items() if v is not None})
        self._open()

    # ---------------------------------------------------------------------- the context
    def __enter__(self) -> 'Run':
        from mmwsss import __version__

        context = click.get_current_context(silent=True)
        options = {} if context is None else context.params
        self._log(
            {
                'event': 'begin',
                'verb': self.verb,
                'version': __version__,
                'options': options,
            }
        )
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        sentence = find_sentence(error)
        if error is not None:
            stopped = isinstance(error, KeyboardInterrupt)
            reason = sentence or ('stopped' if stopped else repr(error))
            self._log({'event': 'error', 'reason': reason})
            # What stopped it is a failure, if nothing was counted as one.
            self.counts['failed'] = self.counts['failed'] or int(not stopped)
        seconds = round(time.monotonic() - self._begin, 1)
        self._log({'event': 'end', **self.counts, 'seconds': seconds})
        self._close()
        if error is not None and sentence is None:
            return
        if sentence is not None:
            click.echo(f'error: {sentence}', err=True)
        if not self._silent:
            click.echo(
                '{ok} ok, {skipped} skipped, {failed} failed'.format(**self.counts)
            )
        if sentence is not None or not self.counts['ok'] + self.counts['skipped']:
            raise SystemExit(1)

    # -------------------------------------------------------------------------- the log
    def _log(self, entry: Mapping[str, object]) -> None:
        if self._path is None:
            return
        entry = {'time': time.strftime('%Y-%m-%dT%H:%M:%S%z'), **entry}
        line = json.dumps(entry, ensure_ascii=False, default=str) + '\n'
        if self._stream is None:
            self._waiting.append(line)
        else:
            self._stream.write(line)
            self._stream.flush()

    def _open(self) -> None:
        if self._path is None or self._stream is not None:
            return
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._stream = self._path.open('a', encoding='utf-8')
        self._stream.writelines(self._waiting)
        self._stream.flush()

    def _close(self) -> None:
        if self._path is not None and self._path.exists():
            self._open()
        if self._stream is not None:
            self._stream.close()
