"""nnU-Net's preprocessor with organ masks: one pass, one crop and one grid for images, lesions and organs.

nnU-Net finds preprocessors only inside its own package, so this one is called through its Python API. Each
case is written whole or not at all, with a key of all that it was made from, by which a later run knows it.
"""

import hashlib
import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor

from petclick.errors import InputError
from training.organ_task import IGNORE, LESION_CHANNEL

ORGAN_FOLDER = "labelsTr_organs"
"""Beside labelsTr; a file of a lesion mask's name holds 0 (no organ) and 1 … count."""
GRID_TOLERANCE = 1e-3
"""How far (mm) the geometries of a case's two masks may differ."""
SUFFIXES = (".b2nd", "_seg.b2nd", ".pkl")
"""A preprocessed case's files; the last one says that all are there."""
PARTIAL = "partial"
"""Subfolder where a case's files are written, before they are moved to their place."""
KEY = "petclick_key"


def organ_file(seg_file: Path) -> Path:
    """Where the organ mask beside a lesion mask lies, if the case has one."""
    return seg_file.parent.parent / ORGAN_FOLDER / seg_file.name


def fingerprint(files: list[Path], *others: Any) -> str:
    """A digest of files' paths, sizes and times, and of anything that JSON can hold."""
    stats = [(str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in files if file.is_file()]
    return hashlib.sha256(json.dumps([stats, others], sort_keys=True).encode()).hexdigest()


class OrganPreprocessor(DefaultPreprocessor):  # type: ignore[misc]  # untyped base
    """Preprocesses targets: lesions and, if `organ_count` is not 0, organs in a second channel.

    There, a case without an organ mask has `IGNORE` everywhere.
    """

    def __init__(self, organ_count: int) -> None:
        super().__init__(verbose=False)
        self.organ_count = organ_count

    def key(
        self, image_files: list[str], seg_file: str, plans_manager: Any, configuration_manager: Any
    ) -> str:
        """What a case's preprocessed files depend on, as a digest."""
        files = [Path(file) for file in (*image_files, seg_file)]
        plans = {name: value for name, value in plans_manager.plans.items() if name != "configurations"}
        if self.organ_count:
            files.append(organ_file(Path(seg_file)))
        return fingerprint(files, plans, configuration_manager.configuration, self.organ_count)

    def run_case(
        self,
        image_files: list[str],
        seg_file: str | None,
        plans_manager: Any,
        configuration_manager: Any,
        dataset_json: dict[str, Any],
    ) -> tuple[npt.NDArray[Any], npt.NDArray[Any], dict[str, Any]]:
        """As nnU-Net's, for a training case: images (2, z, y, x), targets (1 or 2, z, y, x), properties.

        Raises:
            InputError: the organ mask is on another grid than the lesions', or has other labels.
        """
        assert seg_file is not None
        key = self.key(image_files, seg_file, plans_manager, configuration_manager)
        reader = plans_manager.image_reader_writer_class()
        images, properties = reader.read_images(image_files)
        targets, geometry = reader.read_seg(seg_file)
        if self.organ_count:
            organs = self._read_organs(organ_file(Path(seg_file)), reader, targets, geometry)
            targets = np.concatenate((targets, organs))
        images, targets, properties = self.run_case_npy(
            images, targets, properties, plans_manager, configuration_manager, dataset_json
        )
        return images, targets, properties | {KEY: key}

    def _read_organs(
        self, file: Path, reader: Any, lesions: npt.NDArray[Any], lesion_geometry: dict[str, Any]
    ) -> npt.NDArray[Any]:
        if not file.is_file():
            return np.full_like(lesions, IGNORE)
        organs, geometry = reader.read_seg(str(file))
        same = organs.shape == lesions.shape and all(
            np.allclose(value, lesion_geometry["sitk_stuff"][key], atol=GRID_TOLERANCE)
            for key, value in geometry.get("sitk_stuff", {}).items()  # SimpleITK's readers tell it all
        )
        if not same:
            raise InputError(file, "must lie on the grid of the lesion mask")
        labels = np.unique(organs)
        if not np.isin(labels, np.arange(self.organ_count + 1)).all():
            rule = f"labels must be whole numbers from 0 (no organ) to {self.organ_count}"
            raise InputError(file, rule, labels[:20].tolist())
        return organs.astype(lesions.dtype)  # type: ignore[no-any-return]  # untyped reader

    def run_case_save(self, output_filename_truncated: str, *args: Any) -> None:
        """As nnU-Net's, but the case's files come to their place whole, and the telling one last."""
        target = Path(output_filename_truncated)
        partial = target.parent / PARTIAL
        partial.mkdir(parents=True, exist_ok=True)
        for suffix in SUFFIXES:
            (partial / f"{target.name}{suffix}").unlink(missing_ok=True)
        super().run_case_save(str(partial / target.name), *args)
        for suffix in SUFFIXES:
            (partial / f"{target.name}{suffix}").replace(target.with_name(target.name + suffix))

    @staticmethod
    def _sample_foreground_locations(seg: npt.NDArray[Any], *args: Any, **kwargs: Any) -> dict[Any, Any]:
        """Of the lesions alone, on which the loader centres patches."""
        lesions = seg[LESION_CHANNEL, None]
        locations = DefaultPreprocessor._sample_foreground_locations(lesions, *args, **kwargs)
        assert isinstance(locations, dict)
        return locations


def is_finished(folder: Path, case: str, key: str) -> bool:
    """Whether a case's preprocessed files are all there, made from what `key` stands for."""
    if not all((folder / f"{case}{suffix}").is_file() for suffix in SUFFIXES):
        return False
    with (folder / f"{case}.pkl").open("rb") as file:
        return pickle.load(file).get(KEY) == key  # type: ignore[no-any-return]  # this project wrote the file
