"""Finds a data set by its name, reads it and checks it.

A name is declared in the YAML, of the generated benchmark, built in, or registered with Detectron2.
"""

from __future__ import annotations

import importlib
import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np

from lossmix_det.config import Config, DataConfig, DatasetConfig
from lossmix_det.data import shapes
from lossmix_det.data.builtin import builtin_datasets, builtin_root, datasets_root
from lossmix_det.data.doubts import note_alike
from lossmix_det.data.formats import FORMATS
from lossmix_det.data.formats.auto import AUTO, recognise
from lossmix_det.data.formats.detectron2 import detectron2_classes, detectron2_names
from lossmix_det.data.holdout import part_of
from lossmix_det.data.memory import remembered
from lossmix_det.data.paths import look_alike, unread_labels
from lossmix_det.data.problems import ON_ERROR
from lossmix_det.data.records import ImageSet, Reading, build, class_names
from lossmix_det.errors import UserError, first_line, nearest

log = logging.getLogger(__name__)


def find(name: str, config: Config) -> DatasetConfig:
    """The declaration of a data set, its root made absolute; the benchmark is generated when first asked for.

    Raises:
        UserError: the name or its format is unknown, or its folder does not exist.
    """
    import_modules(config.data.imports)
    builtin = builtin_datasets()
    if name in config.datasets:
        entry = _declared(name, config.datasets[name])
    elif name in shapes.NAMES:
        entry = _generated(name, config)
    elif name in builtin:
        entry = replace(builtin[name], root=str(builtin_root(builtin[name].root)))
    elif name in detectron2_names():
        return DatasetConfig(format="detectron2", split=name, classes=detectron2_classes(name))
    else:
        known = [*config.datasets, *shapes.NAMES, *builtin, *detectron2_names()]
        raise UserError(f"unknown data set {name!r}{nearest(name, known)}; declare it in the YAML under datasets")
    if not Path(entry.root).is_dir():
        raise UserError(f"data set {name!r}: folder {entry.root} does not exist; see datasets/README.md")
    return recognise(name, entry) if entry.format == AUTO else entry


def import_modules(modules: list[str], key: str = "data.imports") -> None:
    """Import the user's modules, which register data sets or parts of models, or add formats.

    Raises:
        UserError: one cannot be imported; ``key`` is what named it.
    """
    for module in modules:
        try:
            importlib.import_module(module)
        except Exception as error:  # the user's code, which may fail in any way
            raise UserError(
                f"{key}: {module} cannot be imported ({type(error).__name__}: {first_line(error)}); "
                "is its folder on PYTHONPATH?"
            ) from error


def _declared(name: str, entry: DatasetConfig) -> DatasetConfig:
    declarable = [AUTO, *(key for key, file_format in FORMATS.items() if file_format.declarable)]
    if entry.format not in declarable:
        hint = nearest(entry.format, declarable)
        raise UserError(f"datasets.{name}.format={entry.format!r} is not one of {', '.join(declarable)}{hint}")
    if not entry.root:
        raise UserError(f"datasets.{name}.root is empty; give the folder of the data set")
    return replace(entry, root=str(Path(entry.root).expanduser()))


def _generated(name: str, config: Config) -> DatasetConfig:
    domain, split = shapes.NAMES[name]
    root = shapes.generate(config.shapes, datasets_root()) / domain
    return DatasetConfig(format="voc", root=str(root), split=split, classes=list(shapes.CLASSES))


def load(name: str, config: Config, classes: list[str] | None = None, *, masks: bool = False) -> ImageSet:
    """Read and check one data set.

    Args:
        name: of the data set.
        config: its ``datasets``, ``shapes`` and ``data`` say where and how.
        classes: the names that the detector learns; absent takes those of this data set.
        masks: keep the outlines of objects, as masks.

    Raises:
        UserError: something is missing or wrong and ``data.on_error`` is ``raise``.
    """
    entry = find(name, config)
    asked = {"name": name, "classes": classes or config.data.classes, "on_error": config.data.on_error}
    asked |= {"masks": True} if masks else {}
    return _remembered(entry, config, asked, lambda: _load(name, entry, config, classes, masks))


def load_to_train(name: str, config: Config, classes: list[str] | None = None) -> ImageSet:
    """As `load`, with masks if the run mixes by the outlines of objects."""
    return load(name, config, classes, masks=config.mixing.pastes_objects)


def _remembered(
    entry: DatasetConfig, config: Config, asked: dict[str, object], check: Callable[[], ImageSet]
) -> ImageSet:
    """Checked now, or before."""
    return remembered(entry, FORMATS[entry.format].sources(entry), asked, check) if config.data.remember else check()


def _load(name: str, entry: DatasetConfig, config: Config, classes: list[str] | None, masks: bool) -> ImageSet:
    problems, file_format = ON_ERROR[config.data.on_error](), FORMATS[entry.format]
    images, numbers = file_format.read(entry, problems)
    images = part_of(images, entry, file_format.image_folder(entry))
    if not images:
        hint = problems.first() or f"; check its split, {entry.split or 'all annotations'!r}"
        raise UserError(f"data set {name!r} lists no image{hint}")
    known = entry.classes or list(numbers) or None
    classes = classes or config.data.classes or known or class_names(images)
    check_names(name, classes, known if file_format.labelled else None)
    note_alike(name, [*classes, *(known or [])], problems)
    reading = Reading(entry, file_format.image_folder(entry), file_format.labelled, masks)
    result = build(name, images, classes, known, problems, reading)
    if any(image.objects for image in images) and not len(result.records.boxes):
        raise UserError(
            f"data set {name!r} has no box of the classes {', '.join(classes)} that could be used; the first: "
            f"{(problems.skipped or ['left out by ignore_classes'])[0]}"
        )
    unused = max(numbers.values(), default=0)
    result.category_ids = [numbers.get(label, unused + 1 + index) for index, label in enumerate(classes)]
    return result


def check_names(name: str, classes: list[str], known: list[str] | None) -> None:
    """Refuse a list of classes that shares no name with the data set: it is misspelt, and would train on nothing."""
    if not classes:
        raise UserError(f"data set {name!r} names no class; list them in data.classes")
    for label in sorted(set(classes) - set(known or classes)):
        hint = look_alike(label, sorted(set(known or []) - set(classes)))
        if hint:
            raise UserError(f"data set {name!r} has no class {label!r}{hint}; write data.classes as the data set does")
    if known and not set(classes) & set(known):
        raise UserError(
            f"data set {name!r} has none of the classes {', '.join(classes)}{nearest(classes[0], known)}; "
            f"its classes are {', '.join(known)}"
        )


def load_target(name: str, config: Config, classes: list[str]) -> ImageSet:
    """Read every image of a target set, and its labels if all images have usable ones, to measure with.

    Raises:
        UserError: there are no images, or one is missing.
    """
    entry = find(name, config)
    asked = {"name": name, "classes": classes, "on_error": config.data.on_error, "of": "images"}
    unlabelled = _remembered(entry, config, asked, lambda: _load_images(name, entry, config, classes))
    return _with_labels(unlabelled, config) if FORMATS[entry.format].labelled else unlabelled


def _load_images(name: str, entry: DatasetConfig, config: Config, classes: list[str]) -> ImageSet:
    problems = ON_ERROR[config.data.on_error]()
    images = FORMATS[entry.format].read_images(entry, problems)
    images = part_of(images, entry, FORMATS[entry.format].image_folder(entry))
    if not images:
        hint = problems.first() or f"; check its split, {entry.split or 'all images'!r}"
        raise UserError(f"data set {name!r} lists no image{hint}")
    folder = FORMATS[entry.format].image_folder(entry)
    unlabelled = build(name, images, classes, None, problems, Reading(entry, folder, labelled=False))
    unlabelled.category_ids = list(range(1, len(classes) + 1))
    return unlabelled


def _with_labels(unlabelled: ImageSet, config: Config) -> ImageSet:
    """The same images with their labels; without them, and with a warning, if some cannot be used."""
    name = unlabelled.name
    try:
        labelled = load(name, config, unlabelled.classes)
        numbers = {labelled.records.name(number): number for number in range(len(labelled))}
        paths = [unlabelled.records.name(number) for number in range(len(unlabelled))]
        absent = [Path(path).name for path in paths if path not in numbers]
        if absent:
            raise UserError(f"{len(absent)} of {len(unlabelled)} images have none, {absent[0]} for one")
    except UserError as error:
        log.warning("target %s: its labels cannot be used (%s), so pseudo-labels are not measured", name, error)
        return unlabelled
    return replace(labelled, records=labelled.records.take(np.array([numbers[path] for path in paths])))


def load_sets(config: Config) -> tuple[list[ImageSet], list[ImageSet]]:
    """The training and test sets of a configuration, all with the classes of the first training set.

    Raises:
        UserError: something is missing or wrong, or a class of ``data.classes`` is in no training set.
    """
    train = load_train_sets(config)
    return train, [load(name, config, train[0].classes) for name in config.data.test]


def load_train_sets(config: Config) -> list[ImageSet]:
    """The training sets alone; as `load_sets`."""
    if not config.data.train:
        raise UserError("data.train is empty; name at least one data set")
    train = [load_to_train(config.data.train[0], config)]
    classes = train[0].classes
    train += [load_to_train(name, config, classes) for name in config.data.train[1:]]
    for image_set in train:
        if not image_set.labelled:
            raise UserError(without_labels(image_set.name, find(image_set.name, config)))
    present = set(np.concatenate([image_set.records.classes for image_set in train]).tolist())
    absent = [label for index, label in enumerate(classes) if index not in present]
    if absent and (config.data.classes or known_classes(config.data.train[0], config)):
        raise UserError(without_boxes(absent[:1], config))
    if absent:  # named by the file alone, as many exports do
        log.warning(without_boxes(absent, config))
    return train


def without_labels(name: str, entry: DatasetConfig) -> str:
    """That a data set cannot be trained on, and what may be the reason."""
    return f"data set {name!r} has no labels to train on; take it out of data.train{unread_labels(Path(entry.root))}"


def without_boxes(classes: list[str], config: Config) -> str:
    """That no training set has a box of some classes, and what to do."""
    hint = "leave it out of data.classes" if config.data.classes else "name the others in data.classes to leave it out"
    return f"no box in {', '.join(config.data.train)} is of class {', '.join(map(repr, classes))}; {hint}"


def load_test_sets(config: Config) -> list[ImageSet]:
    """The test sets alone; another set is read too if nothing else tells the classes.

    They are those of the first training set; of the first test set if no training set is named, and the default one,
    which is generated, is of other images.

    Without a training set, the classes are those of the first test set.

    Raises:
        UserError: something is missing or wrong.
    """
    classes, (first, *_) = config.data.classes, (*config.data.train, *config.data.test, "")
    if config.data.train == DataConfig().train and not set(config.data.test) & set(shapes.NAMES):
        first = next(iter(config.data.test), "")
    if not classes and first:
        classes = known_classes(first, config) or load(first, config).classes
    return [load(name, config, classes) for name in config.data.test]


def known_classes(name: str, config: Config) -> list[str] | None:
    """The classes of a data set as far as they are known without reading it; None if they are not."""
    if name in config.datasets:
        return config.datasets[name].classes
    if name in shapes.NAMES:
        return list(shapes.CLASSES)
    builtin = builtin_datasets()
    if name in builtin:
        return builtin[name].classes
    import_modules(config.data.imports)
    return detectron2_classes(name) if name in detectron2_names() else None
