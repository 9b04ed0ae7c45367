"""What all command line tools share: one sentence instead of a traceback."""

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
    except InputError as error:
        print(f'error: {error}', file=sys.stderr)
        code = 1
    except KeyboardInterrupt:
        print('\nstopped', file=sys.stderr)
        code = 130
    sys.exit(code or 0)
