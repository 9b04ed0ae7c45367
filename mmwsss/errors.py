"""What the tools turn into a sentence or an exit code, and how a tool is called."""

import sys
from pathlib import Path

# A name of its own in the command mmwsss; the others have that of the file.
_VERBS = {'run_recipe': 'recipe'}


class InputError(ValueError):
    """Something the user gave is unusable.

    The message is one sentence that names the offending value (a path, a class,
    an image id) and what to do about it. Tools print it without a traceback.
    """


class UnreadablePhoto(InputError):
    """A photo whose pixels cannot be read; other photos are not concerned."""


class MissingWeights(InputError):
    """A network's pretrained weights are no file here."""


class Terminated(KeyboardInterrupt):
    """SIGTERM came; the process ends as after Ctrl-C, but with exit code 143."""


def tool(name: str) -> str:
    """How a tool is called, for messages.

    Args:
        name: Of its file in tools/, without ``.py``.

    Returns:
        ``mmwsss VERB`` where the command ``mmwsss`` runs, or where mmwsss was installed
        and there is no tools/ to be seen; else ``python tools/NAME.py``.
    """
    started = Path(sys.argv[0] if sys.argv else '')
    package = Path(__file__).parent
    by_verb = started.stem == 'mmwsss' or started == package / '__main__.py'
    if by_verb or (package / '.mim').is_dir():
        return f'mmwsss {_VERBS.get(name, name.replace("_", "-"))}'
    return f'python tools/{name}.py'
