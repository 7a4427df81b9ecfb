"""Data sets, from their files to batches of images and boxes.

`catalog` finds a data set by its name, reads it in its format (`formats`) and checks it (`records`). `loaders` draw
from it, read images (`images`), augment them (`augment`) and collate batches. `builtin` knows published data sets and
`shapes` generates one; `cityscapes` and `kitti` convert annotations to COCO.
"""
