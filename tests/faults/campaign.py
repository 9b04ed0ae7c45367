"""Kills trainings and tools again and again, and looks whether anything was lost.

    python tests/faults/campaign.py --kills 200 --inside 60 --stops 200 --seed 0 \\
        --out faults

Each trial starts a work (a training, a tool, a recipe, on drawn photos), kills it with
SIGKILL, starts it again, kills it again, and lets it end at last. Then what it left
behind is compared, bit by bit, with what it leaves behind undisturbed. After every kill
nothing may be torn under its final name and nothing that was finished may be missing.
Kills come at random moments, or inside a save: between the steps of writing a file of
state, or in the middle of a write, of which some bytes are left. Other trials send
SIGTERM at random moments: each must end its work, with exit code 143.

Children are forked from this process, which has imported everything, so that a start
takes no time. One seed draws the same works, steps and moments; where a moment falls
depends on the machine.

After the kills come the other faults of scenarios.py. OUT.md is a table, OUT.json tells
of every trial.
"""

import argparse
import json
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(TESTS), str(TESTS.parent)]

import torch  # noqa: E402
from faults.children import Child, Ended, run  # noqa: E402
from faults.mounts import Refused  # noqa: E402
from faults.scenarios import SCENARIOS  # noqa: E402
from faults.works import WORKS, Work, leftovers  # noqa: E402

# Shares of the kills; worker processes take their time to start.
SHARES = {
    'train': 5,
    'train, validating': 6,
    'make_cams': 6,
    'make_cams --jobs 2': 1,
    'make_pseudo_labels': 5,
    'label': 6,
    'run_recipe': 6,
}
_KILLS_A_TRIAL = (1, 4)
# After SIGTERM; the second where it came before or after the tool itself.
_STOPPED = (143, -signal.SIGTERM)


@dataclass
class Kill:
    """One kill or stop.

    Attributes:
        kind: ``'moment'`` (a random one), ``'inside'`` (a save) or ``'sigterm'`` (at a
            random moment).
        moment: In seconds after the start.
        step: Of those inside saves.
        hit: That step in words.
        code: The exit code, negative for a signal.
    """

    kind: str
    moment: float | None = None
    step: int | None = None
    hit: str = ''
    code: int = 0


@dataclass
class Trial:
    """One work from its first start to its end.

    Attributes:
        work: Its name.
        kills: Those that hit it.
        lost: What was finished and is gone, or is torn.
        differences: What is not as undisturbed.
    """

    work: str
    kills: list[Kill] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    differences: list[str] = field(default_factory=list)


@dataclass
class Undisturbed:
    """A work and how it runs when nobody kills it."""

    work: Work
    outcome: dict[str, str]
    seconds: float
    steps: int


def undisturbed(work: Work, out: Path) -> Undisturbed:
    """Run a work once in peace."""
    ended = run(lambda: work.start(out), saves_in=out)
    assert ended.code == 0, f'{work.name}:\n{ended.output}'
    assert not leftovers(out)
    return Undisturbed(work, work.outcome(out), ended.seconds, ended.steps)


def one_trial(
    expected: Undisturbed, out: Path, rng: random.Random, *, kind: str
) -> Trial:
    """Kill or stop a work some times, let it end and compare."""
    work, trial = expected.work, Trial(expected.work.name)
    before: set[str] = set()
    for _ in range(rng.randint(*_KILLS_A_TRIAL)):
        kill = Kill(kind)
        if kind == 'inside':
            # Later starts have fewer steps before them.
            kill.step = rng.randint(1, max(1, expected.steps // (1 + len(trial.kills))))
        else:
            kill.moment = round(rng.uniform(0, expected.seconds), 3)
        child = Child(
            lambda: work.start(out),
            saves_in=out,
            die_at=kill.step,
            seed=rng.getrandbits(32),
        )
        ended, heard = _end(child, kill, work, out)
        kill.code, kill.hit = ended.code, ended.last_step
        if ended.code == 0:
            # It was faster, or had nothing left to save.
            if not heard:
                trial.lost.append(f'SIGTERM after {kill.moment} s did nothing')
            break
        if not ended.killed and ended.code not in _STOPPED:
            trial.lost.append(f'exit code {ended.code}: {ended.output[-500:]}')
        trial.kills.append(kill)
        try:
            now = work.saved(out) if out.exists() else set()
        except Exception as error:
            trial.lost.append(f'{type(error).__name__}: {error}')
            now = before
        trial.lost += sorted(f'{name} is gone' for name in before - now)
        before = now
    ended = run(lambda: work.start(out))
    if ended.code:
        trial.lost.append(f'exit code {ended.code}: {ended.output[-500:]}')
        return trial
    found = work.outcome(out)
    trial.differences = sorted(
        name
        for name in expected.outcome.keys() | found.keys()
        if expected.outcome.get(name) != found.get(name)
        # What a stopped training saved is one of the last checkpoints that are kept.
        and (kind, name) != ('sigterm', 'checkpoints')
    )
    trial.differences += [f'left behind: {name}' for name in leftovers(out)]
    return trial


def _end(child: Child, kill: Kill, work: Work, out: Path) -> tuple[Ended, bool]:
    """How a child ended, and whether it heard what was sent."""
    if kill.kind == 'inside':
        return child.wait(), True
    if kill.kind == 'moment':
        return child.kill_after(kill.moment), True
    running = child.stop_after(kill.moment)
    done = work.saved(out) if running and out.exists() else set()
    ended = child.wait()
    if not running or ended.code:
        return ended, True
    # What was at its last thing may well end.
    return ended, len(work.saved(out) - done) <= 1


def campaign(
    folder: Path, *, kills: int, inside: int, stops: int, seed: int
) -> list[Trial]:
    """So many kills, that many of them inside a save, and so many SIGTERMs."""
    rng, trials, counted = random.Random(seed), [], Counter()
    works = {}
    for kind in WORKS:
        inputs = folder / kind.__name__
        works[kind.name] = undisturbed(kind(inputs), folder / f'{kind.__name__}_whole')
        told = works[kind.name]
        print(f'{kind.name}: {told.seconds:.1f} s, {told.steps} steps in saves')
    wanted = {'moment': kills - inside, 'inside': inside, 'sigterm': stops}
    while any(counted[kind] < number for kind, number in wanted.items()):
        (name,) = rng.choices(list(SHARES), list(SHARES.values()))
        # All kinds in proportion, to the end.
        kind = min(
            (kind for kind, number in wanted.items() if number),
            key=lambda kind: counted[kind] / wanted[kind],
        )
        out = folder / f'trial_{len(trials)}'
        trial = one_trial(works[name], out, rng, kind=kind)
        trials.append(trial)
        counted[kind] += len(trial.kills)
        bad = trial.lost + trial.differences
        print(
            f'{counted["moment"] + counted["inside"]:4d} kills, {counted["inside"]} '
            f'inside saves, {counted["sigterm"]} SIGTERM: {name}, '
            f'{"; ".join(map(str, bad)) if bad else "as undisturbed"}',
            flush=True,
        )
        if not bad:
            shutil.rmtree(out, ignore_errors=True)
    return trials


# -------------------------------------------------------------------------- the report
def table(trials: list[Trial], faults: list[dict]) -> str:
    """Both tables as Markdown."""
    lines = [
        '| what was stopped | SIGKILL | of them inside a save | SIGTERM | survived | '
        'differences | lost |',
        '|---|---|---|---|---|---|---|',
    ]
    names = [*(n for n in SHARES if any(t.work == n for t in trials)), 'together']
    for name in names:
        rows = [t for t in trials if name in (t.work, 'together')]
        kinds = Counter(k.kind for t in rows for k in t.kills)
        fine = [t for t in rows if not t.lost and not t.differences]
        cells = [
            name,
            kinds['moment'] + kinds['inside'],
            kinds['inside'],
            kinds['sigterm'],
            sum(len(t.kills) for t in fine),
            sum(len(t.differences) for t in rows),
            sum(len(t.lost) for t in rows),
        ]
        lines.append(f'| {" | ".join(map(str, cells))} |')
    steps = Counter(
        k.hit.split()[0] for t in trials for k in t.kills if k.kind == 'inside'
    )
    told = ', '.join(f'{kind} {number}' for kind, number in steps.items())
    lines += ['', f'Steps that the kills inside saves hit: {told or "none"}.']
    codes = Counter(k.code for t in trials for k in t.kills if k.kind == 'sigterm')
    told = ', '.join(f'{code} {number}' for code, number in codes.items())
    lines += [f'Exit codes after SIGTERM: {told or "none"}.', '']
    lines += ['| fault | how | ends with | afterwards |', '|---|---|---|---|']
    for fault in faults:
        cells = (fault[key] for key in ('fault', 'how', 'ended', 'afterwards'))
        lines.append(f'| {" | ".join(cells)} |')
    return '\n'.join(lines) + '\n'


def other_faults(folder: Path, words: str = '') -> list[dict]:
    """All scenarios that bear these words, each with what came of it."""
    rows = []
    chosen = [scenario for scenario in SCENARIOS if words in scenario.fault]
    for number, scenario in enumerate(chosen):
        row = {'fault': scenario.fault, 'how': scenario.how}
        try:
            row |= scenario.play(folder / f'fault_{number}')
        except Refused as refused:
            row |= {'ended': f'not tried: {refused}', 'afterwards': ''}
        except Exception as error:
            row |= {'ended': 'FAILED', 'afterwards': f'{type(error).__name__}: {error}'}
        rows.append(row)
        print(f'{row["fault"]}: {row["ended"]}; {row["afterwards"]}', flush=True)
    return rows


def main() -> int:
    """Read the command line, kill, compare, report."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--kills', type=int, default=200)
    parser.add_argument('--inside', type=int, default=60, help='of them in a save')
    parser.add_argument('--stops', type=int, default=200, help='SIGTERMs')
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--out', type=Path, default=Path('faults'), help='OUT.md ...')
    parser.add_argument('--only', default='', help='faults with these words, no kills')
    args = parser.parse_args()
    torch.set_num_threads(1)
    begin = time.monotonic()
    folder = Path(tempfile.mkdtemp(prefix='mmwsss_faults_'))
    trials = []
    if not args.only:
        trials = campaign(
            folder,
            kills=args.kills,
            inside=args.inside,
            stops=args.stops,
            seed=args.seed,
        )
    faults = other_faults(folder, args.only)
    text = table(trials, faults)
    content = {
        'seed': args.seed,
        'seconds': round(time.monotonic() - begin),
        'trials': [asdict(trial) for trial in trials],
        'faults': faults,
    }
    args.out.with_suffix('.md').write_text(text)
    args.out.with_suffix('.json').write_text(json.dumps(content, indent=1) + '\n')
    print(f'\n{text}\n{content["seconds"]} s')
    bad = any(t.lost or t.differences for t in trials)
    bad = bad or any(row['ended'] == 'FAILED' for row in faults)
    if bad:
        print(f'the folders of what went wrong are in {folder}')
    else:
        shutil.rmtree(folder)
    return int(bad)


if __name__ == '__main__':
    sys.exit(main())
