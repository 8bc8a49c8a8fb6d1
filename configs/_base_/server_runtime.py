# default_runtime.py for configs that are tested on an evaluation server: their files go
# into the work dir of the run.
_base_ = './default_runtime.py'

default_hooks = dict(server_files=dict(type='mmdet_ohem.ServerFilesHook'))
