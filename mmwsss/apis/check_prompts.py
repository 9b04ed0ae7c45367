"""Whether prompts tell photos with an object from photos without, by CLIP."""

import argparse
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from mmengine.logging import print_log
from torch import Tensor

from mmwsss.apis.cli import Counts, parse_and_run
from mmwsss.apis.jobs import device_of, rank_and_size
from mmwsss.apis.outputs import OutputFolder, file_hash, make_missing
from mmwsss.apis.photos import (
    Photo,
    PhotoList,
    add_photo_arguments,
    find_photos,
    say_made,
)
from mmwsss.datasets.embedding_store import EmbeddingStore, Prompts
from mmwsss.errors import InputError
from mmwsss.functional import prompt_margin, separability

WARN_BELOW = 0.6


@dataclass(frozen=True, kw_only=True)
class PromptOptions:
    """What makes the embeddings; sent to every worker process.

    Attributes:
        model: See ``FrozenCLIP``.
        weights: See ``FrozenCLIP``.
        class_words: One prompt word per class.
        background_words: One or more.
        template: A sentence with one ``{}``.
        out: Folder of the embeddings.
        device: For example ``'cuda:0'``; None finds one.
    """

    model: str
    weights: str | None
    class_words: Sequence[str]
    background_words: Sequence[str]
    template: str = 'a photo of a {}.'
    out: Path
    device: str | None = None


def check_prompts_command() -> int:
    """Parse the command line, embed what is missing, say what the prompts can tell."""
    return parse_and_run(add_arguments, run)


def run(args: argparse.Namespace, counts: Counts) -> None:
    """Do what the options say."""
    _, found = find_photos(args)
    options = PromptOptions(
        model=args.model,
        weights=args.weights,
        class_words=tuple(args.class_words or found.class_names),
        background_words=tuple(args.background_words),
        template=args.template,
        out=args.out,
        device=args.device,
    )
    embed_photos(
        found,
        options,
        jobs=args.jobs,
        overwrite=args.overwrite,
        counts=counts,
        dry_run=args.dry_run,
        max_unreadable=args.max_unreadable,
    )
    if rank_and_size()[0] == 0 and not args.dry_run:
        store = EmbeddingStore(options.out)
        # Without those that could not be read.
        made = [p for p in found.photos if store.path(p.id).is_file()]
        for name, auc in check_prompts(replace(found, photos=made), args.out).items():
            found_text = 'needs photos with and without it'
            print(f'{name}: {found_text if auc is None else f"AUC {auc:.3f}"}')
    say_made(args, counts, 'embeddings of photos')


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options, and what they are for."""
    parser.description = (
        'Area under the ROC curve of each class: how often a photo with '
        "the class is nearer to the class's prompt, compared with all background "
        'prompts, than a photo without (0.5 says nothing). The embeddings stay in OUT '
        'for CLIPFilter. Stopped at any moment, the same command goes on; with other '
        'words no photo is embedded again.'
    )
    parser.add_argument('config', help='config of the data set')
    parser.add_argument('--model', required=True, help='of open_clip, or a config file')
    parser.add_argument('--weights', help='a file or a tag of open_clip')
    parser.add_argument(
        '--class-words', nargs='+', help="one per class (default: the classes' names)"
    )
    parser.add_argument(
        '--background-words',
        nargs='+',
        required=True,
        help='what else a photo may show, above all what stands beside the objects',
    )
    parser.add_argument(
        '--template', default='a photo of a {}.', help='default: a photo of a {}.'
    )
    parser.add_argument('--out', type=Path, required=True, help='the embeddings')
    add_photo_arguments(parser, what='embeddings')


def embed_photos(
    found: PhotoList,
    options: PromptOptions,
    *,
    jobs: int = 1,
    overwrite: bool = False,
    show: bool = True,
    counts: Counts | None = None,
    dry_run: bool = False,
    max_unreadable: int = 0,
) -> int:
    """Make the embeddings that are missing, and those of the prompts.

    Args:
        found: The photos.
        options: What makes the embeddings.
        jobs: Processes.
        overwrite: Replace embeddings of another model.
        show: Show a progress bar.
        counts: See ``make_missing``.
        dry_run: The same.
        max_unreadable: The same.

    Returns:
        Number of photos embedded, by all ranks together.

    Raises:
        InputError: Bad input; what is done stays done.
    """
    if len(options.class_words) != len(found.class_names):
        raise InputError(
            f'--class-words needs {len(found.class_names)} words, one per class '
            f'({", ".join(found.class_names)}), got {len(options.class_words)}'
        )
    made = make_missing(
        partial(_folder, found, options),
        partial(_build, options),
        {photo.id: photo for photo in found.photos},
        what='embeddings',
        jobs=jobs,
        overwrite=overwrite,
        show=show,
        counts=counts,
        dry_run=dry_run,
        max_unreadable=max_unreadable,
    )
    if rank_and_size()[0] == 0 and not dry_run:
        texts = _clip(options).text_features.numpy()
        store = EmbeddingStore(options.out)
        store.write_prompts(Prompts(texts, len(options.class_words)))
    return made


def check_prompts(found: PhotoList, folder: Path) -> dict[str, float | None]:
    """AUC of each class from stored embeddings; None without photos of both kinds."""
    store = EmbeddingStore(folder)
    prompts = store.read_prompts()
    images = torch.stack(
        [torch.from_numpy(store.read(photo.id)[0]) for photo in found.photos]
    )
    margins = prompt_margin(
        images, torch.from_numpy(prompts.texts), num_classes=prompts.num_classes
    )
    aucs = {}
    for k, name in enumerate(found.class_names):
        shows = torch.tensor([k in photo.classes for photo in found.photos])
        both = bool(shows.any()) and not shows.all()
        aucs[name] = None
        if both:
            pos, neg = margins[shows, k], margins[~shows, k]
            aucs[name] = check_prompt_separability(pos, neg, name=name)
    return aucs


def check_prompt_separability(pos: Tensor, neg: Tensor, *, name: str = '') -> float:
    """How well image-level scores tell photos with an object from others.

    Args:
        pos: (P,) scores of photos with it, such as ``functional.prompt_margin``.
        neg: (Q,) scores of photos without.
        name: Of the class, for the warning.

    Returns:
        The area under the ROC curve; below 0.6 a warning says that the prompts are not
        fit to filter anything.
    """
    auc = float(separability(pos, neg))
    if auc < WARN_BELOW:
        print_log(
            f'the prompts hardly tell photos with {name or "the object"} from photos '
            f'without it (AUC {auc:.2f}, 0.5 says nothing): CLIPFilter would drop and '
            'keep by chance; find other words for the class and its background',
            'current',
            logging.WARNING,
        )
    return auc


def _folder(found: PhotoList, options: PromptOptions) -> OutputFolder:
    store = EmbeddingStore(options.out)
    weights = options.weights
    if weights is not None and Path(weights).is_file():
        weights = file_hash(Path(weights))
    return OutputFolder(
        options.out,
        what='embeddings',
        settings={'model': str(options.model), 'weights': weights},
        inputs={p.id: p.record(found.class_names) for p in found.photos},
        files=lambda image_id: [store.path(image_id)],
        notes={'weights': str(options.weights)},
    )


# ----------------------------------------------------------------------- in a worker
def _clip(options: PromptOptions):
    from mmwsss.models.encoders import FrozenCLIP

    return FrozenCLIP(
        model=options.model,
        weights=options.weights,
        class_names=options.class_words,
        background_words=options.background_words,
        templates=(options.template,),
        num_attentions=0,
    )


def _build(options: PromptOptions, number: int) -> Callable[[Photo], None]:
    """The function from a photo to its file; loads CLIP."""
    device = device_of(number, options.device)
    return partial(_make, _clip(options).to(device), EmbeddingStore(options.out))


def _make(clip, store: EmbeddingStore, photo: Photo) -> None:
    image = photo.pixels()[None].to(clip.text_features) / 255
    whole, cells = clip.image_features(image)[0], clip.cell_features(image)[0]
    store.write(photo.id, whole.cpu().numpy(), cells.cpu().numpy())
