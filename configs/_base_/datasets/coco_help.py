# What is said where a file of COCO is missing.
data_help = {
    'data/coco/': (
        'Download train2014.zip, val2014.zip, test2015.zip, '
        'annotations_trainval2014.zip and image_info_test2015.zip from '
        'https://cocodataset.org/#download and unpack them in data/coco/; then make '
        'the proposals as docs/experiments.md says.'
    )
}
