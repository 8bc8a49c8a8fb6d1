"""The demo on pictures of nobody's data set."""

import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from mmdet.registry import DATASETS
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from support.tools import ROOT, run_tool_here, save_untrained, small_config

from mmdet_ohem.runs.detect import PictureDetector, detect_pictures
from mmdet_ohem.runs.detector import load_detector
from mmdet_ohem.visualization.pictures import DETECTION

CONFIG = 'fast_rcnn_small_ohem_lookalikes.py'


@pytest.fixture(scope='module')
def trained(lookalikes, tmp_path_factory) -> tuple[Path, Path]:
    """A config, whose data set is elsewhere, and a checkpoint."""
    folder = tmp_path_factory.mktemp('demo')
    config = small_config(folder / 'ohem.py', Path('/nowhere'), CONFIG)
    return config, save_untrained(Config.fromfile(config), folder / 'weights.pth')


@pytest.fixture
def pictures(lookalikes, tmp_path) -> Path:
    """A folder of two pictures, a broken one, a text, and a folder of one frame."""
    folder = tmp_path / 'pictures'
    (folder / 'frames').mkdir(parents=True)
    first, second, third = sorted((lookalikes / 'JPEGImages').iterdir())[:3]
    shutil.copy(first, folder / 'first.jpg')
    shutil.copy(third, folder / 'frames' / '1.jpg')
    cv2.imwrite(str(folder / 'second.png'), cv2.imread(str(second))[:200])
    (folder / 'broken.jpg').write_text('no picture')
    (folder / 'notes.txt').write_text('no picture either')
    return folder


def test_a_folder_with_a_broken_picture(trained, pictures, tmp_path, capsys):
    config, checkpoint = trained
    run_tool_here(
        'tools/demo.py',
        pictures,
        pictures / 'fr*' / '*.jpg',
        '--config',
        config,
        '--checkpoint',
        checkpoint,
        '--work-dir',
        tmp_path / 'out',
    )
    said = capsys.readouterr()
    assert f'Skipped {pictures}/broken.jpg: it cannot be read as an image' in said.err
    assert 'Wrote 3 pictures' in said.out
    out = tmp_path / 'out'
    written = {str(p.relative_to(out)) for p in out.rglob('*') if p.is_file()}
    names = ['first.jpg', 'second.png', 'frames/1.jpg']
    assert written == {
        *(f'vis/{name}' for name in names),
        *(f'preds/{name}.json' for name in names),
    }
    for name in names:
        found = json.loads((out / 'preds' / f'{name}.json').read_text())
        height, width = cv2.imread(str(pictures / name)).shape[:2]
        assert (found['width'], found['height']) == (width, height)
        boxes = np.array(found['bboxes'])
        assert len(boxes) == len(found['scores']) == len(found['labels']) > 0
        assert boxes.min() >= 0 and (boxes <= [width, height] * 2).all()
        classes = ['washer', 'nut', 'gear']
        assert found['names'] == [classes[label] for label in found['labels']]
        assert max(found['scores']) > 0.3  # which is drawn
        drawn = cv2.imread(str(out / 'vis' / name))[..., ::-1].astype(int)
        assert (np.abs(drawn - DETECTION).max(axis=2) < 40).sum() > 100


def test_detections_are_those_of_the_data_set(trained, lookalikes, tmp_path):
    """The same picture by the test pipeline, with the boxes of its store."""
    config = Config.fromfile(small_config(tmp_path / 'ohem.py', lookalikes, CONFIG))
    checkpoint = trained[1]
    dataset = DATASETS.build(config.test_dataloader.dataset)
    detector = load_detector(config, checkpoint)
    with torch.no_grad():
        sample = detector.test_step(pseudo_collate([dataset[0]]))[0]
    path = Path(dataset.get_data_info(0)['img_path'])
    ((image, found, _),) = PictureDetector(config, checkpoint).run([path])
    assert image.shape[:2] == sample.ori_shape
    assert len(found) > 10
    torch.testing.assert_close(found.bboxes, sample.pred_instances.bboxes)
    torch.testing.assert_close(found.scores, sample.pred_instances.scores)
    assert found.labels.tolist() == sample.pred_instances.labels.tolist()


def test_a_detector_with_rpn_makes_its_own_proposals(pictures, tmp_path):
    config = Config.fromfile(ROOT / 'configs' / 'faster_rcnn_vggm_ohem_voc07.py')
    config.model.roi_head.bbox_head.fc_out_channels = (8, 8)
    checkpoint = save_untrained(config, tmp_path / 'weights.pth')
    detector = PictureDetector(config, checkpoint)
    assert not detector.needs_boxes
    (pictures / 'empty.jpg').touch()
    paths = [pictures / name for name in ('broken.jpg', 'empty.jpg', 'second.png')]
    broken, empty, (image, found, boxes) = detector.run(paths)
    assert broken is None and empty is None and boxes is None
    assert image.shape == (200, 400, 3) and found.bboxes.shape[1] == 4


def test_pictures_elsewhere_do_not_leave_the_work_dir(trained, pictures, tmp_path):
    detector = PictureDetector(Config.fromfile(trained[0]), trained[1])
    paths = [
        pictures / 'frames' / '..' / 'first.jpg',
        pictures / 'frames' / '1.jpg',
    ]
    skipped = detect_pictures(
        detector, paths, tmp_path / 'out', 0.3, lambda results, total: results
    )
    assert not skipped
    written = {str(p.relative_to(tmp_path)) for p in tmp_path.rglob('*.jp*g*')}
    assert {name for name in written if not name.startswith('pictures/')} == {
        'out/vis/first.jpg',
        'out/vis/frames/1.jpg',
        'out/preds/first.jpg.json',
        'out/preds/frames/1.jpg.json',
    }


def test_what_cannot_detect_is_named(trained, tmp_path):
    rpn = Config.fromfile(ROOT / 'configs' / 'rpn_vgg16_voc07.py')
    with pytest.raises(ValueError, match='rpn_vgg16_voc07.py has no model.roi_head'):
        PictureDetector(rpn, trained[1])
    config = Config.fromfile(trained[0])
    del config.test_dataloader.dataset.pipeline[2]
    with pytest.raises(ValueError, match='neither model.rpn_head nor a step mmdet_oh'):
        PictureDetector(config, trained[1])
    config.test_dataloader = None
    with pytest.raises(ValueError, match='has no test_dataloader'):
        PictureDetector(config, trained[1])
    with pytest.raises(ValueError, match='has no model.roi_head'):
        PictureDetector(Config(dict(optimizer='SGD')), trained[1])


def test_no_picture_at_all_is_an_error(trained, pictures, tmp_path):
    of_detector = ('--config', trained[0], '--checkpoint', trained[1])
    with pytest.raises(SystemExit, match='^No picture could be read.$'):
        run_tool_here(
            *('tools/demo.py', pictures / 'broken.jpg'),
            *(*of_detector, '--work-dir', tmp_path),
        )
