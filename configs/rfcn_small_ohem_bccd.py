_base_ = ['rfcn_small_bccd.py', '_base_/rfcn_ohem.py']

model = _base_.ohem
