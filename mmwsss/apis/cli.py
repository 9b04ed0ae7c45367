"""What all command line tools share: one sentence instead of a traceback."""

import argparse
import errno
import os
import re
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mmwsss.apis.waiting_threads import wait_briefly
from mmwsss.errors import InputError, Terminated

if TYPE_CHECKING:
    from sys import UnraisableHookArgs

# A stop that Python dropped is raised again after so long.
_AGAIN_S = 0.05
# What a system says where a file cannot be written, whoever tried to.
_NO_WRITING = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG)
# As torch tells it.
_DEAD_WORKER = re.compile(
    r'DataLoader worker \(pid\(?s?\)? ([\d, ]+)\) (?:is killed|exited unexpectedly)'
)
_DATA_LOADER = os.path.join('torch', 'utils', 'data', 'dataloader.py')
# Not every error of gloo or NCCL: a wrong tensor in a collective is a defect.
_DEAD_RANK = re.compile(
    r'Connection (?:closed|reset|refused)|Broken pipe|[Tt]imed? ?out|'
    r'remote process|DistStoreError|Socket'
)


@dataclass
class Counts:
    """What has come out of a tool so far, also of one that stops.

    Attributes:
        ok: Outputs that were made; in a dry run those that would be.
        skipped: Outputs that were there.
        failed: What is wrong; the exit code is 1.
    """

    ok: int = 0
    skipped: int = 0
    failed: int = 0


def parse_and_run(
    add_arguments: Callable[[argparse.ArgumentParser], None],
    run: Callable[[argparse.Namespace, Counts], None],
) -> int:
    """A tool's main function: read the command line, do what it says.

    The command ``mmwsss`` has verbs over the same two functions.
    """
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    counts = Counts()
    run(parser.parse_args(), counts)
    return int(counts.failed > 0)


def run_tool(main: Callable[[], int | None]) -> None:
    """Run a tool's main function and leave the process with its exit code.

    An InputError is printed as one sentence and exits with 1, Ctrl-C exits with 130
    and SIGTERM with 143; every other exception is a defect and keeps its traceback.
    ``MMWSSS_TRACEBACK=1`` in the environment keeps all tracebacks: what a config makes
    a class do may be that class's fault.
    """
    wait_briefly()
    try:
        with terminated_like_ctrl_c():
            code = main()
    except KeyboardInterrupt as stop:
        code = _stopped(stop)
    except Exception as error:
        _forget_workers()
        code = _told(error)
    sys.exit(code or 0)


def _stopped(stop: KeyboardInterrupt) -> int:
    print('\nstopped', file=sys.stderr)
    return 143 if isinstance(stop, Terminated) else 130


def _stop_behind(error: BaseException | None) -> KeyboardInterrupt | None:
    """Ctrl-C or SIGTERM that someone's ``except:`` has made another error of."""
    if error is None or isinstance(error, KeyboardInterrupt):
        return error
    cause, context = error.__cause__, error.__context__
    found = _stop_behind(context)
    return found if found or cause is context else _stop_behind(cause)


def _told(error: Exception) -> int:
    # A stop may meet a full disk while it tidies up; both are told.
    stop, sentence = _stop_behind(error), find_sentence(error)
    if stop is None and sentence is None:
        raise error
    if os.environ.get('MMWSSS_TRACEBACK') == '1':
        traceback.print_exception(error)
    if sentence is not None:
        print(f'error: {sentence}', file=sys.stderr)
    return 1 if stop is None else _stopped(stop)


@contextmanager
def terminated_like_ctrl_c() -> Iterator[None]:
    """Let SIGTERM raise Terminated, so that everything is tidied up on the way out.

    Python drops what is raised in a finalizer or while a process forks, and tells
    ``sys.unraisablehook``; Ctrl-C and SIGTERM are then raised again, a moment later.
    Signals reach the main thread alone; elsewhere nothing is changed.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(signum: int, frame: object) -> None:
        # The same again, from a launcher and its group say, must not cut this off.
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        raise Terminated

    def dropped(what: 'UnraisableHookArgs') -> None:
        if not isinstance(what.exc_value, KeyboardInterrupt):
            tell(what)
        elif isinstance(what.exc_value, Terminated):
            signal.signal(signal.SIGTERM, stop)
            again.append(_soon(signal.SIGTERM))
        else:
            again.append(_soon(signal.SIGINT))

    again: list[threading.Timer] = []
    before, tell = signal.signal(signal.SIGTERM, stop), sys.unraisablehook
    sys.unraisablehook = dropped
    try:
        yield
    finally:
        for timer in again:
            timer.cancel()
        sys.unraisablehook = tell
        signal.signal(signal.SIGTERM, before)


def _forget_workers() -> None:
    """Keep torch's loaders from raising their error with each worker that ends."""
    on_main_thread = threading.current_thread() is threading.main_thread()
    if on_main_thread and hasattr(signal, 'SIGCHLD'):
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)


def _soon(number: signal.Signals) -> threading.Timer:
    # A true signal: it ends the waiting of a system call, too.
    main = threading.main_thread().ident
    timer = threading.Timer(_AGAIN_S, signal.pthread_kill, [main, number])
    timer.daemon = True
    timer.start()
    return timer


def add_trust_argument(parser: argparse.ArgumentParser) -> None:
    """Add ``--trust``, which lets older checkpoints be unpickled."""
    parser.add_argument(
        '--trust',
        action=_Trust,
        nargs=0,
        default=argparse.SUPPRESS,
        help='read checkpoints even where that can run code in them; only for older '
        'files of people you trust',
    )


class _Trust(argparse.Action):
    def __call__(self, parser, namespace, values, option_string=None) -> None:
        # Imported late, so that --help needs no torch.
        from mmwsss.checkpoints import trust_checkpoints

        trust_checkpoints()


def find_sentence(error: BaseException | None) -> str | None:
    """What went wrong and is no defect: a sentence for the user, None for a defect.

    That is the message of the InputError behind an exception, since MMEngine's
    registries raise the error again with the class name in front, and a data loader's
    worker hands over its traceback as text. And what the system does to a process: a
    full disk, a killed worker, another rank that is gone.
    """
    found, told_by_system = None, None
    while error is not None:
        missing_package = isinstance(error, ImportError) and 'mmwsss' in str(error)
        if isinstance(error, InputError) or missing_package:
            found = error
        told_by_system = told_by_system or _told_by_system(error)
        # A better sentence says ``from None``.
        hidden = error.__suppress_context__
        error = error.__cause__ or (None if hidden else error.__context__)
    if found is None:
        return told_by_system
    marker = f'{type(found).__module__}.{type(found).__qualname__}: '
    # A name that a sentence quotes may have line ends.
    return str(found).rpartition(marker)[2].strip().replace('\n', '\\n')


def _told_by_system(error: BaseException) -> str | None:
    if isinstance(error, OSError) and error.errno in _NO_WRITING:
        return cannot_write(error.filename or 'a file', error)
    if isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG:
        return f'the name {error.filename} is too long for a file; give a shorter one'
    if _in_the_middle_of_a_batch(error):
        return _killed_worker('')
    if not isinstance(error, RuntimeError):
        return None
    worker = _DEAD_WORKER.search(str(error))
    if worker:
        return _killed_worker(f' (pid {worker[1]})')
    if int(os.environ.get('WORLD_SIZE', 1)) > 1 and _DEAD_RANK.search(str(error)):
        return (
            'another process of this run ended, its message says why; start all of '
            f'them again, a training with --resume (seen here: {_first_line(error)})'
        )
    return None


def _in_the_middle_of_a_batch(error: BaseException) -> bool:
    """Whether a worker process was killed while it handed over what it had loaded."""
    return isinstance(error, ConnectionError | EOFError) and any(
        frame.f_code.co_filename.endswith(_DATA_LOADER)
        for frame, _ in traceback.walk_tb(error.__traceback__)
    )


def _killed_worker(number: str) -> str:
    return (
        f'a process that loads photos{number} was killed, perhaps for lack of memory; '
        'set num_workers or batch_size lower and run the same command again, a '
        'training with --resume'
    )


def _first_line(error: BaseException) -> str:
    line = str(error).strip().partition('\n')[0]
    return line if len(line) <= 200 else f'{line[:197]}...'


def cannot_write(path: object, error: OSError) -> str:
    """The sentence for a file that the system did not let us write."""
    return (
        f'{path} cannot be written ({error.strerror or error}); make room there or '
        'give another folder, and run the same command again to go on'
    )
