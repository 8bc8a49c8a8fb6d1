import pytest

from mmdet_ohem.whole_file import whole_file


def test_a_file_appears_when_it_is_whole(tmp_path):
    path = tmp_path / 'new' / 'table.md'
    with whole_file(path) as partial:
        partial.write_text('half')
        assert not path.exists() and partial.suffix == '.md'
        partial.write_text('whole')
    assert path.read_text() == 'whole'
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize('error', [OSError, KeyboardInterrupt])
def test_what_fails_leaves_what_was_there(error, tmp_path):
    path = tmp_path / 'table.md'
    path.write_text('before')
    with pytest.raises(error), whole_file(path) as partial:
        partial.write_text('half')
        raise error
    assert path.read_text() == 'before'
    assert list(tmp_path.iterdir()) == [path]
