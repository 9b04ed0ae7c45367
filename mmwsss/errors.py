"""The one exception that the tools turn into a sentence and exit code 1."""


class InputError(ValueError):
    """Something the user gave is unusable.

    The message is one sentence that names the offending value (a path, a class,
    an image id) and what to do about it. Tools print it without a traceback.
    """
