"""Images and annotations in folders, pictures without objects, the loaders and
pipelines of a config, splits and values for a data set of one's own, and the demo's
data set."""

from mmdet_ohem.datasets.annotations import (
    is_box,
    is_difficult,
    read_voc_annotation,
    voc_box,
)
from mmdet_ohem.datasets.background import (
    STRUCK_OFF,
    BackgroundDataset,
    FalsePositives,
    read_background,
    read_made_by,
    write_background,
)
from mmdet_ohem.datasets.choosing import (
    Choice,
    choose_min_size,
    choose_num,
    choose_scale,
    object_sizes,
)
from mmdet_ohem.datasets.images import (
    IMAGE_SUFFIXES,
    content_hash,
    find_image,
    image_size,
    list_images,
    pick_images,
    picture_files,
    picture_ids,
    pool_pictures,
    read_image,
    read_lines,
    same_content,
)
from mmdet_ohem.datasets.labelled_images import (
    LabelledImage,
    coco_content,
    read_annotations,
    read_coco_json,
)
from mmdet_ohem.datasets.loaders import (
    STORE_STEP,
    at_several_scales,
    check_sources,
    coco,
    loaders,
    pascal_voc,
    voc_layout,
    with_background,
    with_step,
)
from mmdet_ohem.datasets.lookalikes import draw_image, generate, generate_empty
from mmdet_ohem.datasets.rotated_lookalikes import (
    ROTATED_CLASSES,
    draw_rotated_image,
    generate_rotated,
)
from mmdet_ohem.datasets.splits import draw_split, hash_images, near_duplicates

__all__ = [
    'IMAGE_SUFFIXES',
    'ROTATED_CLASSES',
    'STORE_STEP',
    'STRUCK_OFF',
    'BackgroundDataset',
    'Choice',
    'FalsePositives',
    'LabelledImage',
    'at_several_scales',
    'check_sources',
    'choose_min_size',
    'choose_num',
    'choose_scale',
    'coco',
    'coco_content',
    'content_hash',
    'draw_image',
    'draw_rotated_image',
    'draw_split',
    'find_image',
    'generate',
    'generate_empty',
    'generate_rotated',
    'hash_images',
    'image_size',
    'is_box',
    'is_difficult',
    'list_images',
    'loaders',
    'near_duplicates',
    'object_sizes',
    'pascal_voc',
    'pick_images',
    'picture_files',
    'picture_ids',
    'pool_pictures',
    'read_annotations',
    'read_background',
    'read_coco_json',
    'read_image',
    'read_lines',
    'read_made_by',
    'read_voc_annotation',
    'same_content',
    'voc_box',
    'voc_layout',
    'with_background',
    'with_step',
    'write_background',
]
