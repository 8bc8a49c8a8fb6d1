# The paper's +M: shorter side 480 to 900, longer at most 1000.
scales = [(1000, 480), (1000, 576), (1000, 688), (1000, 864), (1000, 900)]
# In training one of them is drawn for each image ...
resize_to_one = dict(type='RandomChoiceResize', scales=scales, keep_ratio=True)
# ... and with tools/test.py --tta an image has all of them, without a flip.
resize_to_each = [dict(type='Resize', scale=scale, keep_ratio=True) for scale in scales]
no_flip = [dict(type='RandomFlip', prob=0.0)]
