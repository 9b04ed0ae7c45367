import sys
from dataclasses import replace
from functools import partial

import fake_cams
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from mmwsss.apis.cam_scores import evaluate_store
from mmwsss.apis.label_folders import evaluate_folders
from mmwsss.apis.make_cams import make_cams_command
from mmwsss.apis.make_pseudo_labels import make_pseudo_labels_command
from mmwsss.apis.photos import Photo
from mmwsss.apis.select_threshold import (
    THRESHOLDS,
    TaggedPhoto,
    select_for_store,
    select_threshold,
    select_threshold_command,
)
from mmwsss.datasets.cam_store import CAMStore, StoredCAMs
from mmwsss.errors import InputError
from mmwsss.files import read_json
from mmwsss.functional import color_words, threshold_information


def drawn(seed, *, low=40, side=128):
    """A red disc on a grey photo, its cone-shaped CAM, which is 0.5 at the edge."""
    generator = torch.Generator().manual_seed(seed)
    top, left = (side // 4 + torch.rand(2, generator=generator) * side / 2).tolist()
    y, x = torch.meshgrid(torch.arange(side), torch.arange(side), indexing='ij')
    distance = ((y - top) ** 2 + (x - left) ** 2).sqrt()
    pixels = torch.randint(low, low + 80, (3, side, side), generator=generator)
    pixels[0][distance < side / 5] += 100
    cam = (1 - distance / (2 * side / 5)).clamp(min=0)
    return pixels.to(torch.uint8), F.interpolate(cam[None, None], scale_factor=0.25)[0]


def photos(count, **given):
    for seed in range(count):
        pixels, cam = drawn(seed, **given)
        yield TaggedPhoto(pixels, cam)


def test_the_threshold_follows_the_object():
    choice = select_threshold(photos(40))
    assert abs(choice.threshold - 0.5) < 0.08
    assert choice.low <= choice.threshold <= choice.high
    assert choice.high - choice.low < 0.2
    assert choice.photos == 40
    assert 0 <= choice.moved < 0.1
    assert len(choice.information) == len(THRESHOLDS)
    # Masks of another size say clearly less.
    assert choice.rival < 0.9
    assert not choice.doubtful
    assert f'{choice.threshold:.3g}' in choice.described
    # Other scales of the same CAMs have other thresholds; the masks are the same.
    squared = (TaggedPhoto(p.pixels, p.cams**3) for p in photos(40))
    assert abs(select_threshold(squared).threshold ** (1 / 3) - choice.threshold) < 0.05


def test_exposure_does_not_matter():
    bright = select_threshold(photos(30, low=75))
    dark = select_threshold(
        TaggedPhoto(p.pixels // 4, p.cams) for p in photos(30, low=75)
    )
    assert abs(bright.threshold - dark.threshold) < 0.05


def skies(count):
    """Light above a horizon, dark below, and a red disc, for which the CAMs are."""
    y, x = torch.meshgrid(torch.arange(64), torch.arange(64), indexing='ij')
    for seed in range(count):
        generator = torch.Generator().manual_seed(seed)
        horizon, top, left = (20 + 24 * torch.rand(3, generator=generator)).tolist()
        ground, distance = y > horizon, ((y - top) ** 2 + (x - left) ** 2).sqrt()
        pixels = torch.randint(0, 60, (3, 64, 64), generator=generator)
        pixels[:, ~ground] += 150
        pixels[0][distance < 10] = 200 + pixels[0][distance < 10] % 50
        cam = torch.maximum((1 - distance / 20).clamp(min=0), 0.3 * ground)
        cam = cam + 0.02 * torch.rand(64, 64, generator=generator)
        small = F.interpolate(cam[None, None], (32, 32), mode='area')[0]
        yield TaggedPhoto(pixels.to(torch.uint8), small.clamp(0, 1))


def test_masks_do_not_follow_the_skyline():
    choice = select_threshold(skies(30))
    assert abs(choice.threshold - 0.5) < 0.1
    # The colours alone do: they say most about all that lies below the horizon.
    alone = torch.stack(
        [
            threshold_information(
                color_words(F.interpolate(p.pixels[None].float(), (32, 32)), levels=2),
                p.cams,
                thresholds=torch.tensor(THRESHOLDS),
                num_words=8,
            )[0]
            for p in skies(30)
        ]
    )
    assert THRESHOLDS[int(alone.mean(0).argmax())] < 0.32


def test_two_kinds_of_photos_that_want_different_thresholds_are_doubtful():
    """The edge of the object lies at 0.25 in some of the CAMs, at 0.75 in others."""
    all_photos = list(photos(24))

    def mixed(count):
        return select_threshold(
            TaggedPhoto(photo.pixels, photo.cams ** (2.0 if n < count else 0.415))
            for n, photo in enumerate(all_photos)
        )

    low, high = mixed(24), mixed(0)
    # Somewhere between the two the best threshold jumps.
    both = max(map(mixed, range(6, 13)), key=lambda choice: choice.rival)
    assert abs(low.threshold - 0.25) < 0.08
    assert abs(high.threshold - 0.75) < 0.08
    for sure in (low, high):
        assert not sure.doubtful
        assert 'DOUBTFUL' not in sure.described
    assert both.rival > 0.95
    assert both.doubtful
    assert abs(both.rival_threshold - both.threshold) > 0.3
    assert f'{both.rival_threshold:.3g} fits {both.rival:.0%}' in both.described
    # Either of the two is enough.
    assert replace(both, moved=0.0).doubtful
    assert replace(low, moved=0.21).doubtful
    assert 'DOUBTFUL, so look at some masks' in both.described


def test_masks_of_one_size_have_no_rival():
    pixels, cam = drawn(0)
    stamp = (cam > 0.5).float()
    small = stamp * (torch.arange(32) % 8 == 0)
    choice = select_threshold([TaggedPhoto(pixels, small)])
    assert (choice.rival, choice.rival_threshold) == (0.0, None)
    assert not choice.doubtful
    assert 'clearly larger' not in choice.described


def test_photos_without_a_tag_say_nothing():
    tagged = list(photos(15))
    empty = [TaggedPhoto(p.pixels, p.cams[:0]) for p in photos(5)]
    assert select_threshold([*empty, *tagged]) == select_threshold(tagged)


def test_photos_that_tell_nothing():
    with pytest.raises(InputError, match='no photo has a tag'):
        select_threshold([])
    pixels, cam = drawn(0)
    with pytest.raises(InputError, match='no photo has a tag'):
        select_threshold([TaggedPhoto(pixels, cam[:0])])
    flat = [TaggedPhoto(pixels, torch.ones_like(cam))]
    with pytest.raises(InputError, match='may all be constant'):
        select_threshold(flat)


def test_a_store(tmp_path):
    from PIL import Image

    store, found = CAMStore(tmp_path / 'cams'), []
    for seed in range(12):
        pixels, cam = drawn(seed)
        path = tmp_path / f'{seed}.png'
        Image.fromarray(pixels.movedim(0, -1).numpy()).save(path)
        classes = (seed % 3,) if seed else ()
        stored = StoredCAMs(
            classes=np.array(classes, dtype=np.int64),
            cams=cam[: len(classes)].numpy(),
            size=(128, 128),
        )
        store.write(str(seed), stored)
        found.append(Photo(id=str(seed), path=str(path), classes=classes))
    choice = select_for_store(tmp_path / 'cams', found)
    assert choice.photos == 11
    assert abs(choice.threshold - 0.5) < 0.15
    assert choice == select_for_store(tmp_path / 'cams', found)
    Image.new('RGB', (128, 120)).save(tmp_path / '3.png')
    with pytest.raises(InputError, match='make the CAMs again'):
        select_for_store(tmp_path / 'cams', found)


def test_the_tools(tmp_path, monkeypatch, capsys):
    config, checkpoint = fake_cams.write(tmp_path)
    store, labels = tmp_path / 'cams', tmp_path / 'labels'

    def run(command, *arguments):
        monkeypatch.setattr(sys, 'argv', ['tool.py', *map(str, arguments)])
        assert command() == 0
        return capsys.readouterr().out

    run(make_cams_command, config, checkpoint, '--kind', 'cam', '--out', store)
    said = run(
        select_threshold_command, config, '--cams', store, '--json', tmp_path / 'a.json'
    )
    assert 'chosen without masks on 6 tagged photos' in said
    chosen = read_json(tmp_path / 'a.json')
    assert chosen['threshold'] in chosen['thresholds']
    assert len(chosen['information']) == len(chosen['thresholds'])
    auto = run(
        make_pseudo_labels_command, config, '--cams', store, '--out', labels,
        '--background', 'auto',
    )  # fmt: skip
    assert f'background {chosen["threshold"]:g} (threshold' in auto
    plain = [config, '--cams', store, '--background', f'{chosen["threshold"]:g}']
    run(make_pseudo_labels_command, *plain, '--out', tmp_path / 'same')
    for name, content in fake_cams.contents(labels).items():
        if name.endswith('.png'):
            assert fake_cams.contents(tmp_path / 'same')[name] == content
    # What it loses: that of the labels at this threshold, and nothing was chosen.
    masks = tmp_path / 'data/SegmentationClass'
    given = [config, '--cams', store, '--json', tmp_path / 'b.json', '--masks']
    said = run(select_threshold_command, *given, masks)
    loss = read_json(tmp_path / 'b.json')
    compared = loss.pop('masks')
    assert loss == chosen
    names = ['background', *fake_cams.CLASSES]
    of_labels = partial(evaluate_folders, labels / 'SegmentationClass', masks)
    at_choice = of_labels(ids=None, classes=names, undecided='leave_out')
    assert compared['photos'] == 8
    assert compared['miou'] == pytest.approx(at_choice['miou'], abs=0.01)
    best = evaluate_store(store, masks, ids=None, classes=names)['policies']['best']
    assert compared['oracle_miou'] >= best['miou'] - 0.5
    assert compared['points'] >= 0
    assert compared['points'] == pytest.approx(
        compared['oracle_miou'] - compared['miou'], abs=0.011
    )
    assert 'masks of 8 photos, which chose nothing' in said
    assert f'{compared["points"]:.2f} points' in said
    (masks / 'photo_3.png').unlink()
    assert 'masks of 7 photos' in run(select_threshold_command, *given, masks)
    for folder, message in ((labels, 'no mask of the 8'), (tmp_path / 'x', 'correct')):
        assert message in fake_cams.refusal(
            select_threshold_command, monkeypatch, *given, folder
        )
    refused = fake_cams.refusal(
        make_pseudo_labels_command, monkeypatch, config, '--checkpoint', checkpoint,
        '--out', tmp_path / 'no', '--background', 'auto',
    )  # fmt: skip
    assert 'have a background of their own' in refused
