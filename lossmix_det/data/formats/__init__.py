"""The formats in which data sets are stored. A new format is one file with a `Format`, and one line here."""

from lossmix_det.data.formats.coco import Coco
from lossmix_det.data.formats.contract import Format
from lossmix_det.data.formats.detectron2 import Detectron2
from lossmix_det.data.formats.folder import Folder
from lossmix_det.data.formats.huggingface import HuggingFace
from lossmix_det.data.formats.voc import Voc
from lossmix_det.data.formats.yolo import Yolo

FORMATS: dict[str, Format] = {
    "voc": Voc(),
    "coco": Coco(),
    "yolo": Yolo(),
    "huggingface": HuggingFace(),
    "folder": Folder(),
    "detectron2": Detectron2(),
}
