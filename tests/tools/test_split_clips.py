import fake_cams
import fake_clips
import pytest

from mmwsss.apis.split_clips import split_clips_command
from mmwsss.datasets import load_clips

pytestmark = pytest.mark.mm


@pytest.fixture
def clips(tmp_path):
    content = {
        f'{camera}{n}': {'frames': [f'{camera}/{n}'], 'labels': [], 'group': camera}
        for camera in 'abcde'
        for n in range(4)
    }
    return fake_clips.write(tmp_path, content)


def run(monkeypatch, *arguments):
    monkeypatch.setattr('sys.argv', ['split_clips.py', *map(str, arguments)])
    return split_clips_command()


def test_lists_are_written_and_pass_the_check(clips, tmp_path, monkeypatch, capsys):
    out = tmp_path / 'lists'
    assert run(monkeypatch, clips, '--out', out, '--val', 0.2, '--test', 0.2) == 0
    assert '12 clips of 3 groups' in capsys.readouterr().out
    files = [out / f'{name}_clips.txt' for name in ('train', 'val', 'test')]
    assert sorted(out.iterdir()) == sorted(files)
    ids = [path.read_text().split() for path in files]
    assert sorted(map(len, ids)) == [4, 4, 12]
    assert sorted(i for own in ids for i in own) == sorted(load_clips(clips).clips)
    assert run(monkeypatch, clips, '--check', *files) == 0
    files[1].write_text(files[1].read_text() + ids[0][0] + '\n')
    message = fake_cams.refusal(
        split_clips_command, monkeypatch, clips, '--check', *files
    )
    assert 'is in two splits' in message


def test_lists_are_not_lost(clips, tmp_path, monkeypatch):
    run(monkeypatch, clips, '--out', tmp_path / 'a')
    before = fake_cams.contents(tmp_path / 'a')
    assert set(before) == {'train_clips.txt', 'val_clips.txt'}
    arguments = (clips, '--out', tmp_path / 'a', '--seed', 4)
    message = fake_cams.refusal(split_clips_command, monkeypatch, *arguments)
    assert 'is there already' in message
    assert fake_cams.contents(tmp_path / 'a') == before
    run(monkeypatch, *arguments, '--overwrite')
    assert fake_cams.contents(tmp_path / 'a') != before
    message = fake_cams.refusal(split_clips_command, monkeypatch, clips)
    assert 'give --out' in message
    message = fake_cams.refusal(
        split_clips_command, monkeypatch, clips, '--out', tmp_path, '--val', 1.2
    )
    assert 'positive and sum to 1' in message
