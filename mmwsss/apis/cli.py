"""What all command line tools share: one sentence instead of a traceback."""

import argparse
import sys
from collections.abc import Callable

from mmwsss.errors import InputError


def run_tool(main: Callable[[], int | None]) -> None:
    """Run a tool's main function and leave the process with its exit code.

    An InputError is printed as one sentence and exits with 1, Ctrl-C exits with 130;
    every other exception is a defect and keeps its traceback.
    """
    try:
        code = main()
    except KeyboardInterrupt:
        print('\nstopped', file=sys.stderr)
        code = 130
    except Exception as error:
        sentence = find_sentence(error)
        if sentence is None:
            raise
        print(f'error: {sentence}', file=sys.stderr)
        code = 1
    sys.exit(code or 0)


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
    """The message of the InputError behind an exception, if there is one.

    MMEngine's registries raise the error again with the class name in front, and a
    data loader's worker hands over its traceback as text; the original sentence is
    what the user should see.
    """
    found = None
    while error is not None:
        missing_package = isinstance(error, ImportError) and 'mmwsss' in str(error)
        if isinstance(error, InputError) or missing_package:
            found = str(error)
        error = error.__cause__ or error.__context__
    if found is None:
        return None
    marker = f'{InputError.__module__}.{InputError.__qualname__}: '
    return found.rpartition(marker)[2].strip()
