"""Configs elsewhere find those of the package, and mim's index lists them all."""

import pytest
import yaml
from mmengine.config import Config
from support.tools import ROOT

import mmdet_ohem

CONFIGS = sorted((ROOT / 'configs').glob('*.py'))


@pytest.mark.parametrize('config', CONFIGS, ids=lambda path: path.stem)
def test_a_config_elsewhere_inherits_in_one_line(config, tmp_path):
    path = tmp_path / 'mine.py'
    path.write_text(f"_base_ = __import__('mmdet_ohem').config_file('{config.name}')\n")
    assert Config.fromfile(path).to_dict() == Config.fromfile(config).to_dict()


def test_what_is_inherited_can_be_used_and_changed(tmp_path):
    path = tmp_path / 'mine.py'
    path.write_text(
        "_base_ = [__import__('mmdet_ohem').config_file('_base_/datasets/bccd.py')]\n"
        'scale = _base_.scale[::-1]\n'
        'train_dataloader = dict(batch_size=4)\n'
    )
    mine, base = Config.fromfile(path), ROOT / 'configs/_base_/datasets/bccd.py'
    width, height = Config.fromfile(base).scale
    assert mine.scale == (height, width)
    assert mine.train_dataloader.batch_size == 4


def test_a_config_that_is_not_there_is_one_sentence():
    with pytest.raises(FileNotFoundError, match="no config 'faster.py'.*give one of"):
        mmdet_ohem.config_file('faster.py')


def test_the_index_of_mim_lists_every_config():
    index = yaml.safe_load((ROOT / 'model-index.yml').read_text())
    listed = [model['Config'] for model in index['Models']]
    assert listed == [f'configs/{config.name}' for config in CONFIGS]
    collections = {collection['Name'] for collection in index['Collections']}
    for model in index['Models']:
        assert model['Config'] == f'configs/{model["Name"]}.py'
        assert model['In Collection'] in collections


def test_the_results_in_the_index_stand_in_the_readme():
    index = yaml.safe_load((ROOT / 'model-index.yml').read_text())
    table = (ROOT / 'README.md').read_text().split('## Results')[1]
    results = [
        result for model in index['Models'] for result in model.get('Results', [])
    ]
    assert len(results) == 2
    for result in results:
        assert f'{result["Metrics"]["mAP"] / 100:.3f}' in table
