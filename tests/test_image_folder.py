import cv2
import pytest
from PIL import Image

from mmdet_ohem.image_folder import image_size, list_images, pick_images


@pytest.mark.parametrize('orientation, size', [(1, (30, 20)), (6, (20, 30))])
def test_image_size_is_that_of_the_image_as_opencv_turns_it(
    tmp_path, orientation, size
):
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.new('RGB', (30, 20)).save(tmp_path / 'a.jpg', exif=exif)
    height, width = cv2.imread(str(tmp_path / 'a.jpg')).shape[:2]
    assert image_size(tmp_path / 'a.jpg') == (width, height) == size


def test_images_are_listed_by_name_without_suffix(tmp_path):
    for name in ('b.jpg', 'a.PNG', 'notes.txt'):
        (tmp_path / name).touch()
    assert list_images(tmp_path) == {
        'a': tmp_path / 'a.PNG',
        'b': tmp_path / 'b.jpg',
    }
    (tmp_path / 'a.jpg').touch()
    with pytest.raises(ValueError, match='same image id'):
        list_images(tmp_path)


def test_image_folders_and_images_that_are_none_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match='nowhere'):
        list_images(tmp_path / 'nowhere')
    with pytest.raises(ValueError, match='no image'):
        list_images(tmp_path)
    (tmp_path / 'a.jpg').write_text('text')
    with pytest.raises(ValueError, match='a.jpg cannot be read'):
        image_size(tmp_path / 'a.jpg')


def test_a_list_names_images_and_may_have_a_second_column(tmp_path):
    for name in ('a', 'b', 'my image'):
        (tmp_path / f'{name}.jpg').touch()
    image_list = tmp_path / 'list.txt'
    image_list.write_bytes(b'b  1\r\nmy image\r\n\r\n')  # as VOC's class lists
    assert list(pick_images(tmp_path, [image_list])) == ['b', 'my image']
    image_list.write_text('c\n')
    with pytest.raises(ValueError, match="has no image 'c'"):
        pick_images(tmp_path, [image_list])
