import sys

import fake_cams
import numpy as np
import pytest
import torch
import torch.nn.functional as F

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


def drawn(seed, *, plain=False, low=40, side=128):
    """A red disc on a grey photo, its cone-shaped CAM, which is 0.5 at the edge."""
    generator = torch.Generator().manual_seed(seed)
    top, left = (side // 4 + torch.rand(2, generator=generator) * side / 2).tolist()
    y, x = torch.meshgrid(torch.arange(side), torch.arange(side), indexing='ij')
    distance = ((y - top) ** 2 + (x - left) ** 2).sqrt()
    pixels = torch.randint(low, low + 80, (3, side, side), generator=generator)
    if not plain:
        pixels[0][distance < side / 5] += 100
    cam = (1 - distance / (2 * side / 5)).clamp(min=0)
    return pixels.to(torch.uint8), F.interpolate(cam[None, None], scale_factor=0.25)[0]


def photos(count, **given):
    for seed in range(count):
        pixels, cam = drawn(seed, **given)
        yield TaggedPhoto(pixels, cam, (seed % 2,))


def test_the_threshold_follows_the_object():
    choice = select_threshold(photos(40))
    assert abs(choice.threshold - 0.5) < 0.08
    assert choice.low <= choice.threshold <= choice.high
    assert choice.high - choice.low < 0.2
    assert choice.photos == 40
    assert 0 <= choice.moved < 0.1
    assert len(choice.information) == len(THRESHOLDS)
    # The discs are elsewhere in other photos: the same masks say little there.
    assert choice.shared < 0.4
    assert not choice.doubtful
    assert f'{choice.threshold:.3g}' in choice.described
    # Other scales of the same CAMs have other thresholds; the masks are the same.
    squared = (TaggedPhoto(p.pixels, p.cams**3, p.classes) for p in photos(40))
    assert abs(select_threshold(squared).threshold ** (1 / 3) - choice.threshold) < 0.05


def test_exposure_does_not_matter():
    bright = select_threshold(photos(30, low=75))
    dark = select_threshold(
        TaggedPhoto(p.pixels // 4, p.cams, p.classes) for p in photos(30, low=75)
    )
    assert abs(bright.threshold - dark.threshold) < 0.05


def test_masks_that_follow_what_all_photos_share_are_doubtful():
    """Every photo is light above and dark below; the CAMs find that, no object."""

    def skies():
        for seed in range(20):
            generator = torch.Generator().manual_seed(seed)
            pixels = torch.randint(0, 60, (3, 64, 64), generator=generator)
            pixels[:, :32] += 150
            rows = torch.linspace(1, 0, 16)[:, None].expand(16, 16)
            cam = rows + 0.02 * torch.rand(16, 16, generator=generator)
            yield TaggedPhoto(pixels.to(torch.uint8), cam[None], (seed % 2,))

    choice = select_threshold(skies())
    assert choice.shared > 0.9
    assert choice.doubtful
    assert 'DOUBTFUL' in choice.described


def test_photos_without_a_tag_stand_beside_one_class():
    def one_class(negatives):
        for seed in range(30):
            pixels, cam = drawn(seed, plain=negatives and seed % 2 == 0)
            if negatives and seed % 2 == 0:
                yield TaggedPhoto(pixels, cam[:0], ())
            else:
                yield TaggedPhoto(pixels, cam, (0,))

    with_others = select_threshold(one_class(True))
    assert with_others.photos == 15
    assert with_others.shared < 0.3
    alone = select_threshold(one_class(False))
    assert alone.shared is None
    assert not alone.doubtful
    assert 'nothing confirms it' in alone.described


def test_photos_that_tell_nothing():
    with pytest.raises(InputError, match='no photo has a tag'):
        select_threshold([])
    pixels, cam = drawn(0)
    with pytest.raises(InputError, match='no photo has a tag'):
        select_threshold([TaggedPhoto(pixels, cam[:0], ())])
    flat = [TaggedPhoto(pixels, torch.ones_like(cam), (0,))]
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
    refused = fake_cams.refusal(
        make_pseudo_labels_command, monkeypatch, config, '--checkpoint', checkpoint,
        '--out', tmp_path / 'no', '--background', 'auto',
    )  # fmt: skip
    assert 'have a background of their own' in refused
