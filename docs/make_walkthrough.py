"""Writes docs/walkthrough.md by doing it:  python docs/make_walkthrough.py.

Plays someone who has photos with tags: every command of the page is run as it stands
there, from the root of a clone, on one thread, and what it says goes on the page. The
photos are those of MSRC v2 in ../shared/data; of their masks only those of the photos
that are held out for scoring are used. Stopped, it goes on; to begin again, remove
data/walkthrough and work_dirs/walkthrough.
"""

import csv
import json
import os
import re
import resource
import shlex
import shutil
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / 'docs' / 'walkthrough.md'
MSRC = ROOT.parent / 'shared' / 'data' / 'msrc'
CLASSES = ('car', 'cow', 'flower', 'sheep')
# Photos of something else, so that there are some without any class.
OTHER_PHOTOS = {'train': 14, 'val': 4}
# Every so many of the photos that show one of the classes.
EVERY = {'train': 1, 'val': 2}
DATA = ROOT / 'data' / 'walkthrough'
WORK = ROOT / 'work_dirs' / 'walkthrough'


@dataclass(frozen=True)
class Command:
    """A command of the page.

    Attributes:
        text: As it stands there.
        show: Lines of what it says that are shown: those with a match.
    """

    text: str
    show: str = r'\S'

    @property
    def page(self) -> str:
        """In lines of a page's width."""
        return self.text.replace('\n', ' \\\n  ')


@dataclass(frozen=True)
class Step:
    """A section of the page: words, commands, words behind them.

    Attributes:
        title: Heading.
        text: In front of the commands.
        commands: In order.
        after: Behind them; ``{NAME}`` is filled in from what came out.
        by_hand: What a person does before the commands run.
    """

    title: str
    text: str
    commands: Sequence[Command]
    after: str = ''
    by_hand: Callable[[], None] | None = None


CLASS_LIST = 'work_dirs/walkthrough/masks/classes.txt'
SEEN = r'^(classes|train photos|val photos)|Iter\(train\) \[ *(40|50|60|80)/|ok,'
STEPS = [
    Step(
        'Tags to one file',
        'The tags become the one JSON that everything reads.',
        [
            Command(
                'mmwsss convert tags data/walkthrough/tags.csv\n'
                '--images data/walkthrough/photos\n'
                '--out data/walkthrough/image_labels.json'
            )
        ],
    ),
    Step(
        'What would go wrong',
        'Photos that cannot be read, doubles, tags that tell nothing: better now.',
        [
            Command(
                'mmwsss doctor data/walkthrough/photos\n'
                '--labels data/walkthrough/image_labels.json',
                r'^(photos|classes|opened|sizes|threads|errors|ERROR|WARNING|NOTE)|'
                r'^  |ok,',
            )
        ],
        'It is right: these two are the same photo in MSRC v2 as well. They stay.',
    ),
    Step(
        'Train on the tags',
        'The config is for 16 other classes; `--data` makes it learn these four. '
        '80 steps are few: it was made for 400.',
        [
            Command(
                'mmwsss train dual_frozen_msrc_refine --data data/walkthrough\n'
                '--max-iters 80 --work-dir work_dirs/walkthrough/first',
                SEEN + r'|Iter\(val\).*mIoU',
            )
        ],
    ),
    Step(
        'Masks of all photos',
        'The work directory stands for config and checkpoint. Where the best class '
        'scores between the two numbers, the mask is 255, undecided.',
        [
            Command(
                'mmwsss label work_dirs/walkthrough/first work_dirs/walkthrough/first\n'
                'data/walkthrough/photos --tags data/walkthrough/image_labels.json\n'
                '--low 0.4 --high 0.6 --out work_dirs/walkthrough/masks',
                r'contradict|ok,',
            )
        ],
        'The {num_flagged} masks are of photos in which the network, asked without '
        'tags, sees a class that they do not name; {undecided} of all pixels are '
        'undecided. By eye: cows and sheep are found with soft outlines, their thin '
        'legs are not. Cars and flowers are overgrown: most masks of cars take walls '
        'and road along, those of large flowers the leaves. Hardly a photo without a '
        'car shows a street, so that no tag says that streets are not cars. Photos '
        'of empty streets and of leaves, without a tag, would help more than a '
        'longer training.',
    ),
    Step(
        'Correct one',
        '`look_first.txt` has the photos worst first. The first line of it, in a file '
        'of its own, goes to the annotation tool.',
        [
            Command(
                'mmwsss convert masks work_dirs/walkthrough/masks\n'
                '--format x-anylabeling '
                f'--classes {CLASS_LIST}\n--images data/walkthrough/photos\n'
                '--ids work_dirs/walkthrough/to_correct.txt\n'
                '--out work_dirs/walkthrough/annotator'
            )
        ],
        'The photo {photo} ({tags}) opens in X-AnyLabeling with what the network drew, '
        'and the undecided band as a shape "ignore". Instead of them someone draws the '
        '{num_drawn} animals by hand, legs and the one at the edge of the photo '
        'included, and saves.',
        by_hand=lambda: choose_photo(),
    ),
    Step(
        'Back from the annotation tool',
        '',
        [
            Command(
                'mmwsss convert annotations work_dirs/walkthrough/annotator\n'
                f'--format x-anylabeling --classes {CLASS_LIST}\n'
                '--images data/walkthrough/photos --out work_dirs/walkthrough/corrected'
            )
        ],
        by_hand=lambda: correct_photo(),
    ),
    Step(
        'Train DeepLabV3 on the masks',
        'Each label comes from the first folder that has it: the corrected one, then '
        'the others. The held-out photos are not among them.',
        [
            Command(
                'mmwsss train deeplabv3_mobileone_msrc --data data/walkthrough\n'
                '--labels work_dirs/walkthrough/corrected\n'
                '--labels work_dirs/walkthrough/masks\n'
                '--max-iters 60 --work-dir work_dirs/walkthrough/second',
                SEEN,
            )
        ],
    ),
    Step(
        'What is it worth',
        'Masks of the held-out photos were no part of anything so far.',
        [
            Command(
                'mmwsss test work_dirs/walkthrough/second work_dirs/walkthrough/second',
                r'\| +(background|car|cow|flower|sheep|Class)|Iter\(test\).*mIoU|ok,',
            ),
            Command(
                'mmwsss evaluate work_dirs/walkthrough/first\n'
                'work_dirs/walkthrough/first --num-pictures 4\n'
                '--out work_dirs/walkthrough/evaluation',
                r'^val|ok,',
            ),
        ],
        'The {num_val} photos are few, and 80 and 60 steps are short, so these figures '
        'say that the way works and roughly how far it goes, no more. {worth} One '
        'corrected mask of {num_train} changes nothing that could be measured; the '
        'point is that it is one command away. What masks do wrong the second network '
        'learns: better labels are worth more here than more of its steps.',
    ),
    Step(
        'A page to look at, and a file to use elsewhere',
        '',
        [
            Command('mmwsss report work_dirs/walkthrough/evaluation', r'written|ok,'),
            Command(
                'mmwsss export work_dirs/walkthrough/second\n'
                'work_dirs/walkthrough/second --out work_dirs/walkthrough/second.onnx',
                r'written|onnxruntime|note|ok,',
            ),
        ],
    ),
]
# The outlines of the objects of a photo as someone drew them by eye: class and corners.
DRAWN = {
    '5_1_s': [
        (
            'cow',
            (
                '50,15 72,11 95,10 143,12 182,18 208,29 227,43 236,60 239,80 '
                '248,102 252,115 251,104 257,103 261,117 269,127 269,147 263,160 '
                '259,177 247,183 237,167 229,152 226,137 217,128 210,127 204,133 '
                '203,147 210,163 207,167 197,153 187,135 185,143 183,167 182,172 '
                '175,175 172,147 169,133 168,110 163,104 140,106 121,113 100,95 '
                '90,100 82,122 78,147 77,167 82,182 74,182 68,173 60,137 57,143 '
                '57,160 50,166 45,162 47,133 48,107 50,100 47,80 44,55 43,37 45,23'
            ),
        ),
        ('cow', ('313,18 320,10 320,50 317,63 313,60 312,37')),
    ],
}


def main() -> None:
    """Make the photos, run the commands, write the page."""
    if not DATA.is_dir():
        make_photos()
    done = []
    for step in STEPS:
        if step.by_hand is not None:
            step.by_hand()
        done.append([run(command) for command in step.commands])
    PAGE.write_text(render(done))
    print(f'written: {PAGE.relative_to(ROOT)}')


# ------------------------------------------------------------------ someone's photos
def make_photos() -> None:
    """Photos, a table of their tags, and masks of the photos to score on."""
    for folder in ('photos', 'masks'):
        (DATA / folder).mkdir(parents=True)
    names = json.loads((MSRC / 'image_labels.json').read_text())
    rows, held_out = [], []
    for split in ('train', 'val'):
        for image_id in chosen(names['labels'], split):
            file = f'{image_id}.jpg'
            shutil.copy(MSRC / 'JPEGImages' / file, DATA / 'photos' / file)
            tags = [n for n in names['labels'][image_id] if n in CLASSES]
            rows.append([file, *tags])
            if split == 'val':
                held_out.append(image_id)
                copy_mask(image_id, names['classes'])
    with (DATA / 'tags.csv').open('w', newline='') as stream:
        csv.writer(stream).writerows([['photo', 'tags'], *rows])
    (DATA / 'val.txt').write_text(''.join(f'{name}\n' for name in held_out))


def chosen(labels: dict[str, Sequence[str]], split: str) -> list[str]:
    """Photos that show one of the classes, and some that show none."""
    ids = (MSRC / f'ImageSets/Segmentation/{split}.txt').read_text().split()
    some = [i for i in ids if set(labels[i]) & set(CLASSES)]
    others = [i for i in ids if not set(labels[i]) & set(CLASSES)]
    step = len(others) // OTHER_PHOTOS[split]
    return some[:: EVERY[split]] + others[::step][: OTHER_PHOTOS[split]]


def copy_mask(image_id: str, names: Sequence[str]) -> None:
    """A mask with the chosen classes alone; everything else is background."""
    with Image.open(MSRC / 'SegmentationClass' / f'{image_id}.png') as image:
        mask = np.asarray(image)
    values = np.zeros(256, np.uint8)
    values[255] = 255
    for value, name in enumerate(names, 1):
        values[value] = CLASSES.index(name) + 1 if name in CLASSES else 0
    Image.fromarray(values[mask]).save(DATA / 'masks' / f'{image_id}.png')


# ---------------------------------------------------------------------- the commands
def run(command: Command) -> dict:
    """What a command said and how long it took; from the last run if it ran then."""
    file = WORK / 'said.json'
    said = json.loads(file.read_text()) if file.is_file() else {}
    key = ' '.join(command.text.split())
    if key in said:
        return said[key]
    words = shlex.split(command.text)
    print('$', shlex.join(words), flush=True)
    before, begin = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    done = subprocess.run(
        [sys.executable, '-m', *words],
        cwd=ROOT,
        env={**os.environ, 'OMP_NUM_THREADS': '1', 'COLUMNS': '88'},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        print(done.stdout)
        sys.exit(f'it left with {done.returncode}')
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    said[key] = {
        'output': done.stdout,
        'seconds': round(time.monotonic() - begin, 1),
        'cpu': round(cpu, 1),
        'date': time.strftime('%Y-%m-%d'),
    }
    WORK.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(said, indent=1))
    print(done.stdout[-600:], said[key]['seconds'], 's')
    return said[key]


# ---------------------------------------------------------------------- the annotator
def choose_photo() -> None:
    """What someone writes into a file: the photo that is looked at first."""
    first = (WORK / 'masks' / 'look_first.txt').read_text().splitlines()[0]
    (WORK / 'to_correct.txt').write_text(f'{first}\n')


def correct_photo() -> None:
    """What someone does in the annotation tool: draws the shapes of a photo anew."""
    image_id = (WORK / 'to_correct.txt').read_text().strip()
    if image_id not in DRAWN:
        sys.exit(f'draw the outline of {image_id} and put it into DRAWN')
    file = WORK / 'annotator' / f'{image_id}.json'
    content = json.loads(file.read_text())
    # One of its own shapes is the pattern, as for a copy that is dragged into place.
    pattern = content['shapes'][0]
    content['shapes'] = [
        {**pattern, 'label': label, 'points': corners(text)}
        for label, text in DRAWN[image_id]
    ]
    file.write_text(json.dumps(content, indent=1))


def corners(text: str) -> list[list[float]]:
    """Points x, y of ``'x,y x,y'``."""
    return [[float(x) for x in point.split(',')] for point in text.split()]


# --------------------------------------------------------------------------- the page
HEAD = """# Walkthrough

<!-- Made by docs/make_walkthrough.py, which runs the commands; edit that file. -->

Tags in, masks and a trained network out: every command that someone with photos of
their own types, what it said, and how long it took. What the options mean says
[Own data](own_data.md); `python docs/make_walkthrough.py` in a clone does all of it.

{machine}

Photos: {num_train} train photos of MSRC v2, {num_others} of them without any of the
classes {classes}, and {num_val} val photos with masks, which are held out. The tags are
those of the data set, which were made from its masks, so none is missing or wrong;
yours will be less good. In `data/walkthrough` lie `photos`, `tags.csv`, and for scoring
`masks` and `val.txt`.
"""


def render(done: Sequence[Sequence[dict]]) -> str:
    """The page.

    Args:
        done: What each command of each step said.
    """
    facts = found_facts()
    head = HEAD.format(machine=machine(done), **facts)
    parts = [*(filled(part) for part in head.split('\n\n'))]
    parts = ['\n\n'.join(parts) + '\n']
    for step, said in zip(STEPS, done, strict=True):
        parts.append(f'## {step.title}\n')
        if step.text:
            parts.append(filled(step.text) + '\n')
        for command, each in zip(step.commands, said, strict=True):
            parts.append(f'```bash\n{command.page}\n```\n')
            parts.append(f'```text\n{shown(command, each)}\n```\n')
        if step.after:
            parts.append(filled(step.after.format(**facts)) + '\n')
    page = '\n'.join(parts)
    for line in page.splitlines():
        if str(ROOT) in line or '/tmp/' in line:
            sys.exit(f'a path of this machine is on the page: {line}')
    return page


def found_facts() -> dict[str, object]:
    """What came out, for the words of the page."""
    with (DATA / 'tags.csv').open(newline='') as stream:
        rows = {row[0].partition('.')[0]: row[1:] for row in csv.reader(stream)}
    held_out = set((DATA / 'val.txt').read_text().split())
    train = {k: tags for k, tags in rows.items() if k not in {'photo', *held_out}}
    lines = (WORK / 'masks' / 'manifest.jsonl').read_text().splitlines()
    records = [json.loads(line) for line in lines]
    flagged = [r for r in records if r['flagged']]
    undecided = sum(r['undecided'] for r in records) / len(records)
    image_id = (WORK / 'to_correct.txt').read_text().strip()
    record = next(r for r in records if r['id'] == image_id)
    numbers = json.loads((WORK / 'evaluation' / 'metrics.json').read_text())['numbers']
    return {
        'classes': ', '.join(CLASSES),
        'num_train': len(train),
        'num_others': sum(not tags for tags in train.values()),
        'num_val': len(held_out),
        'num_masks': len(records),
        'num_flagged': len(flagged),
        'undecided': f'{undecided:.0%}',
        'photo': image_id,
        'tags': ' and '.join(record['tags']),
        'num_drawn': {1: 'one', 2: 'two'}.get(len(DRAWN[image_id]), 'several'),
        'worth': worth({n['key']: n['miou'] for n in numbers}),
    }


def worth(scores: dict[str, float]) -> str:
    """What was measured, in a sentence."""
    said = json.loads((WORK / 'said.json').read_text())
    (test,) = [v['output'] for k, v in said.items() if k.startswith('mmwsss test ')]
    second = float(re.findall(r'mIoU: +([\d.]+)', test)[-1])
    return (
        f'Without tags the first network reaches {scores["val/segmentor"]:.1f} mIoU on '
        f'them and DeepLabV3, trained on its masks, {second:.1f}. With tags, and '
        f'undecided pixels left out, the masks of the same photos reach '
        f'{score_of_masks():.1f}, and the refined CAMs of the first network '
        f'{scores["val/refined"]:.1f} on all pixels: after so short a training it '
        'draws better labels for itself than it predicts, and `mmwsss label --kind '
        'refined` is the one to take.'
    )


def score_of_masks() -> float:
    """Percent mIoU of the decided pixels of held-out photos."""
    counts = np.zeros((len(CLASSES) + 1,) * 2)
    for image_id in (DATA / 'val.txt').read_text().split():
        maps = [
            np.asarray(Image.open(folder / f'{image_id}.png'))
            for folder in (DATA / 'masks', WORK / 'masks' / 'SegmentationClass')
        ]
        kept = (maps[0] != 255) & (maps[1] != 255)
        np.add.at(counts, (maps[0][kept], maps[1][kept]), 1)
    hits = np.diag(counts)
    return 100 * float(np.mean(hits / (counts.sum(0) + counts.sum(1) - hits)))


def filled(text: str) -> str:
    """Words in lines of a page's width; paragraphs stay apart."""
    return '\n\n'.join(
        part if part.startswith(('#', '<')) else textwrap.fill(part, 88)
        for part in text.split('\n\n')
    )


def machine(done: Sequence[Sequence[dict]]) -> str:
    """On what it ran, when, and how long."""
    every = [each for said in done for each in said]
    cpu = sum(each['cpu'] for each in every)
    return filled(
        f'Machine: a CPU with {os.cpu_count()} cores, of which one was used, no GPU; '
        f'{every[-1]["date"]}, seed 0, torch {torch.__version__.partition("+")[0]}. '
        f'The {len(every)} commands took {cpu / 60:.0f} minutes of CPU time. The '
        'machine had other work at the same time, so that seconds by the clock are '
        'several times those of the CPU.'
    )


# What other packages say on their own behalf.
_CHATTER = r'site-packages|warnings\.warn|OneDL'


def shown(command: Command, said: dict) -> str:
    """The lines that are shown, shortened, and the time."""
    lines, gap = [], False
    for line in said['output'].replace(f'{ROOT}/', '').splitlines():
        if re.search(_CHATTER, line) or not re.search(command.show, line):
            gap = True
            continue
        if gap and lines:
            lines.append('...')
        gap = False
        lines.append(shortened(line))
    return '\n'.join([*lines, f'# {said["cpu"]:.0f} s of CPU, {said["seconds"]:.0f} s'])


def shortened(line: str) -> str:
    """A line of a log without its time, and not longer than a page is wide."""
    line = re.sub(r'^[\d/]+ [\d:]+ - mmengine - INFO - ', '', line)
    line = re.sub(r'(eta|time|data_time|memory): \S+ +', '', line)
    return line if len(line) <= 100 else f'{line[:97]}...'


if __name__ == '__main__':
    main()
