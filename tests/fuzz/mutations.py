"""Strategies that damage a good input, and the one property that all readers keep."""

import copy
import json
import os
import signal
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st

from mmwsss.apis.cli import find_sentence

# Inputs of each test; the long run asks for more: MMWSSS_FUZZ_INPUTS=20000.
INPUTS = int(os.environ.get('MMWSSS_FUZZ_INPUTS', 0))
# No reader takes that long on a few kB; a guard against hanging.
_LIMIT_S = 60
# Bytes that parsers look at twice.
_BYTES = st.sampled_from(
    [b'', b'\0', b'\xff', b'\x80', b'"', b'{', b'[', b'<', b'&', b',']
)
_TEXTS = st.sampled_from(
    ['', ' ', '\0', '\n', 'ä', '..', '../../out', '/etc/passwd', 'a' * 300, 'cat', '1',
     'background', '-1', '%s', '{run}', '{', 'nan', '\ud7ff', 'a/../b', 'C:\\x', 'null']
)  # fmt: skip
_NUMBERS = st.sampled_from(
    [0, 1, -1, 2, 255, 256, 65536, 2**31, 2**63, 10**30, 0.5, -0.5, 1e308, 1e-320,
     float('nan'), float('inf'), -float('inf')]
)  # fmt: skip
LEAVES = st.one_of(
    st.none(), st.booleans(), _NUMBERS, _TEXTS, st.just([]), st.just({}),
    st.just([[]]), st.just({'': None}), st.just([1, 'a', None]),
).map(copy.deepcopy)  # fmt: skip


def fuzzed(inputs: int, given) -> Callable:
    """The decorator of a test: so many inputs, the same in every run of the suite."""
    chosen = settings(
        max_examples=INPUTS or inputs,
        # Long runs look somewhere else every time, and say how to come back.
        derandomize=not INPUTS,
        print_blob=bool(INPUTS),
        database=None,
        deadline=None,
        # The inputs are small as they are, and making them smaller takes minutes.
        phases=[Phase.explicit, Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    return lambda test: chosen(given(test))


@st.composite
def damaged(draw, content: bytes) -> bytes:
    """Bytes that are cut, turned over, left out, doubled or replaced."""
    for _ in range(draw(st.integers(1, 4))):
        if not content:
            return content
        # Near the start is where the headers are.
        limit = draw(st.sampled_from([min(64, len(content)), len(content)]))
        at = draw(st.integers(0, limit - 1))
        kind = draw(st.sampled_from(['turn', 'cut', 'out', 'double', 'put', 'move']))
        length = draw(st.integers(1, 16))
        rest = content[at + length :]
        if kind == 'turn':
            turned = content[at] ^ (1 << draw(st.integers(0, 7)))
            content = content[:at] + bytes([turned]) + content[at + 1 :]
        elif kind == 'cut':
            content = content[:at]
        elif kind == 'out':
            content = content[:at] + rest
        elif kind == 'double':
            content = content[: at + length] + content[at:]
        elif kind == 'put':
            content = content[:at] + draw(_BYTES) + rest
        else:
            content = content[:at] + rest + content[at : at + length]
    return content


@st.composite
def changed(draw, tree: object) -> object:
    """A tree of dicts and lists of which parts are replaced, left out or doubled."""
    tree = copy.deepcopy(tree)
    for _ in range(draw(st.integers(1, 3))):
        places = list(_places(tree))
        if not places:
            return draw(LEAVES)
        holder, key = draw(st.sampled_from(places))
        kind = draw(st.sampled_from(['replace', 'replace', 'out', 'double', 'rename']))
        if kind == 'replace':
            holder[key] = draw(LEAVES)
        elif kind == 'out':
            del holder[key]
        elif isinstance(holder, list):
            holder.append(copy.deepcopy(holder[key]))
        elif kind == 'rename':
            holder[draw(_TEXTS)] = holder.pop(key)
        else:
            holder[key] = [holder[key]]
    return tree


def _places(tree):
    entries = ()
    if isinstance(tree, dict):
        entries = tree.items()
    elif isinstance(tree, list):
        entries = enumerate(tree)
    for key, value in entries:
        yield tree, key
        yield from _places(value)


def json_or_bytes(content: bytes) -> st.SearchStrategy[bytes]:
    """A JSON file whose content is changed, or its bytes."""
    trees = changed(json.loads(content))
    return st.one_of(
        trees.map(lambda tree: json.dumps(tree).encode()), damaged(content)
    )


class _Hangs(BaseException):
    """No reader catches it."""


@contextmanager
def _limited():
    def stop(signum, frame):
        raise _Hangs

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, _LIMIT_S)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def check(read: Callable[[], object]) -> None:
    """Reading gives a result or one sentence that says what to do about it."""
    with _limited():
        try:
            read()
        except Exception as error:
            said = find_sentence(error)
            if said is None:
                raise
            assert '\n' not in said, said
            assert 20 < len(said) < 2000, said


def listing(folder: Path) -> dict[str, tuple[int, int]]:
    """Files below a folder with size and time, to see that nothing is written."""
    return {
        str(path): (path.stat().st_size, path.stat().st_mtime_ns)
        for path in sorted(folder.rglob('*'))
    }
