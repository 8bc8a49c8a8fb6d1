"""What `import mmdet_ohem` says where mmcv is missing or does not fit."""

import importlib.metadata
import sys

import pytest

import mmdet_ohem


def pretend_installed(monkeypatch, **versions: str) -> None:
    def version(name: str) -> str:
        if name.replace('-', '_') not in versions:
            raise importlib.metadata.PackageNotFoundError(name)
        return versions[name.replace('-', '_')]

    monkeypatch.setattr(importlib.metadata, 'version', version)


@pytest.mark.parametrize(
    'versions, words',
    [
        ({}, 'mmcv is not installed'),
        (dict(mmcv_lite='2.1.0'), 'mmcv-lite is installed, which has no operators'),
        (dict(mmcv='2.2.0'), 'mmcv 2.2.0 is installed'),
        (dict(mmcv='1.7.1'), 'mmcv 1.7.1 is installed'),
    ],
)
def test_an_unfit_mmcv_is_one_sentence(monkeypatch, versions, words):
    pretend_installed(monkeypatch, **versions)
    with pytest.raises(RuntimeError, match=f'needs mmcv 2.0.0.*README.*{words}'):
        mmdet_ohem._check_mmcv()


def test_the_fork_of_mmcv_fits_from_its_first_version(monkeypatch):
    pretend_installed(monkeypatch, onedl_mmcv='2.3.6')
    mmdet_ohem._check_mmcv()


def test_mmcv_2_2_fits_beside_the_fork_of_mmdetection(monkeypatch):
    pretend_installed(monkeypatch, mmcv='2.2.0', onedl_mmdetection='3.5.1')
    mmdet_ohem._check_mmcv()
    pretend_installed(monkeypatch, mmcv='2.2.0', mmdet='3.3.0')
    with pytest.raises(RuntimeError, match='below 2.2.0 .* but mmcv 2.2.0 is inst'):
        mmdet_ohem._check_mmcv()
    pretend_installed(monkeypatch, mmcv='1.7.1', onedl_mmdetection='3.5.1')
    with pytest.raises(RuntimeError, match='newer, with compiled .* mmcv 1.7.1 is'):
        mmdet_ohem._check_mmcv()


def test_the_fork_needs_operators_too(monkeypatch):
    pretend_installed(monkeypatch, onedl_mmcv='2.3.6')
    monkeypatch.setitem(sys.modules, 'mmcv.ops', None)  # import fails
    with pytest.raises(RuntimeError, match='operators of onedl-mmcv 2.3.6 cannot'):
        mmdet_ohem._check_mmcv()


def test_an_mmcv_without_operators_is_one_sentence(monkeypatch):
    monkeypatch.setitem(sys.modules, 'mmcv.ops', None)  # import fails
    with pytest.raises(
        RuntimeError, match='the operators of .*mmcv .* cannot be loaded'
    ):
        mmdet_ohem._check_mmcv()


def test_the_mmcv_of_the_tests_fits():
    mmdet_ohem._check_mmcv()
    assert mmdet_ohem.OHEMSampler.__module__ == 'mmdet_ohem.mining.ohem_sampler'
