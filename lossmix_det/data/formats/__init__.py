"""The formats in which data sets are stored. A new format is one file with a `Format`, and one line here."""

from lossmix_det.data.formats.coco import Coco
from lossmix_det.data.formats.contract import Format
from lossmix_det.data.formats.detectron2 import Detectron2
from lossmix_det.data.formats.folder import Folder
from lossmix_det.data.formats.voc import Voc

FORMATS: dict[str, Format] = {"voc": Voc(), "coco": Coco(), "folder": Folder(), "detectron2": Detectron2()}
