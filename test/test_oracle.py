"""The same numbers as nnU-Net's own preprocessing, predictor and export."""

import functools
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from nnunetv2.inference import predict_from_raw_data
from nnunetv2.inference.export_prediction import convert_predicted_logits_to_segmentation_with_correct_shape
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.inference.sliding_window_prediction import compute_gaussian
from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
from scipy import ndimage

from petclick.clicks import ClickSet
from petclick.guidance import encode
from petclick.images import Case
from petclick.model import load_model
from petclick.predictor import Predictor, Settings
from petclick.preprocess import map_clicks, prepare, restore

MakeModel = Callable[..., Path]
MakeCase = Callable[..., Case]

MARGIN = ((2, 1), (0, 4), (3, 0))
plan_variants = pytest.mark.parametrize(
    ("plan", "margin"),
    [
        pytest.param({"spacing_mm": (3.0, 2.0, 2.5)}, MARGIN, id="same spacing"),
        pytest.param({"spacing_mm": (2.0, 1.7, 1.9)}, MARGIN, id="finer"),
        pytest.param({"spacing_mm": (4.1, 3.3, 5.2)}, MARGIN, id="coarser"),
        pytest.param({"spacing_mm": (3.3, 1.8, 2.5), "transpose": (1, 2, 0)}, MARGIN, id="transposed"),
        pytest.param({"spacing_mm": (7.5, 2.2, 2.2), "transpose": (2, 0, 1)}, MARGIN, id="one axis apart"),
        pytest.param(
            {
                "spacing_mm": (2.7, 2.2, 2.2),
                "normalization": ("CTNormalization", "ZScoreNormalization"),
                "use_mask": (False, True),
            },
            ((1, 1), (2, 0), (0, 3)),
            id="z-scores in a mask",
        ),
        pytest.param(
            {"normalization": ("ZScoreNormalization", "NoNormalization"), "spacing_mm": (2.0, 2.0, 2.0)},
            ((0, 0), (0, 0), (0, 0)),
            id="no margin",
        ),
    ],
)


class Reference:
    """nnU-Net's view of a model folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.dataset = json.loads((folder / "dataset.json").read_text())
        self.plans = PlansManager(json.loads((folder / "plans.json").read_text()))
        self.configuration: ConfigurationManager = self.plans.get_configuration("3d_fullres")

    def preprocess(self, case: Case) -> tuple[np.ndarray[Any, Any], dict[str, Any]]:
        images = np.stack((case.ct_hu, case.pet_suv))
        properties = {"spacing": list(case.grid.spacing_zyx_mm)}
        data, _, properties = DefaultPreprocessor(verbose=False).run_case_npy(
            images, None, properties, self.plans, self.configuration, self.dataset
        )
        return data, properties

    def predict(
        self, x: torch.Tensor, folds: Sequence[str], mirror_axes: Sequence[int], step: float
    ) -> torch.Tensor:
        """Logits (2, z, y, x) of preprocessed images and clicks.

        The network is built directly: nnU-Net's search for a trainer imports packages that need not be there.
        """
        weights = [
            torch.load(self.folder / f"fold_{fold}" / "checkpoint_final.pth", weights_only=False)[
                "network_weights"
            ]
            for fold in folds
        ]
        weights = [{name: value for name, value in each.items() if "organ" not in name} for each in weights]
        network = get_network_from_plans(
            self.configuration.network_arch_class_name,
            self.configuration.network_arch_init_kwargs,
            self.configuration.network_arch_init_kwargs_req_import,
            input_channels=4,
            output_channels=2,
            deep_supervision=False,
        )
        predictor = nnUNetPredictor(
            tile_step_size=step, use_mirroring=bool(mirror_axes), device=torch.device("cpu"), allow_tqdm=False
        )
        predictor.manual_initialization(
            network, self.plans, self.configuration, weights, self.dataset, "", tuple(mirror_axes)
        )
        logits = predictor.predict_logits_from_preprocessed_data(x)
        assert isinstance(logits, torch.Tensor)
        return logits


@pytest.fixture
def float32_sums(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes nnU-Net add up in float32, as we do.

    Its accumulators and Gaussian are torch.half, which rounds by up to 0.44 near the border, where the
    weights are subnormal. So its predictor's module, and no other, sees a torch whose `half` is float32, and
    asks for a float32 Gaussian; all else is as installed.
    """
    monkeypatch.setattr(
        predict_from_raw_data, "torch", SimpleNamespace(**{**vars(torch), "half": torch.float32})
    )
    monkeypatch.setattr(
        predict_from_raw_data, "compute_gaussian", functools.partial(compute_gaussian, dtype=torch.float32)
    )


@plan_variants
def test_preprocessing_gives_nnunets_bits(
    make_model: MakeModel, make_case: MakeCase, plan: dict[str, Any], margin: Sequence[tuple[int, int]]
) -> None:
    folder, case = make_model(**plan), make_case(margin=margin)
    expected, properties = Reference(folder).preprocess(case)
    prepared = prepare(case, load_model(folder).plan, None)
    np.testing.assert_array_equal(prepared.image, expected)
    assert prepared.image.dtype == np.float32
    assert [list(bounds) for bounds in prepared.crop] == properties["bbox_used_for_cropping"]


@plan_variants
def test_the_way_back_gives_nnunets_mask(
    make_model: MakeModel, make_case: MakeCase, plan: dict[str, Any], margin: Sequence[tuple[int, int]]
) -> None:
    """nnU-Net zooms by scikit-image in float64, we by torch in float32; both linearly, by voxel centres."""
    folder, case = make_model(**plan), make_case(margin=margin)
    reference = Reference(folder)
    _, properties = reference.preprocess(case)
    prepared = prepare(case, load_model(folder).plan, None)
    noise = ndimage.gaussian_filter(
        np.random.default_rng(3).standard_normal((2, *prepared.shape)), (0, 1, 1, 1)
    )
    logits = torch.from_numpy(noise.astype(np.float32))
    expected = convert_predicted_logits_to_segmentation_with_correct_shape(
        logits.clone(),
        reference.plans,
        reference.configuration,
        reference.plans.get_label_manager(reference.dataset),
        properties,
        num_threads_torch=1,
    )
    mask = restore(logits[1] - logits[0], prepared, load_model(folder).plan) > 0
    assert 0.1 < mask.mean() < 0.9
    np.testing.assert_array_equal(mask, expected)


@pytest.mark.usefixtures("float32_sums")
@pytest.mark.parametrize(
    ("folds", "mirror_axes", "step", "plan"),
    [
        (("0",), (), 0.5, {}),
        (("0",), (0, 1, 2), 1.0, {"transpose": (1, 2, 0), "spacing_mm": (2.6, 2.1, 2.4)}),
        (("0", "1", "2"), (0, 2), 0.7, {"spacing_mm": (5.0, 2.2, 2.0)}),  # smaller than the patch along z
    ],
)
def test_margin_and_mask_are_those_of_nnunets_predictor(
    make_model: MakeModel,
    make_case: MakeCase,
    clicks: ClickSet,
    folds: Sequence[str],
    mirror_axes: tuple[int, ...],
    step: float,
    plan: dict[str, Any],
) -> None:
    folder, case = make_model(folds=folds, **plan), make_case()
    model = load_model(folder)
    prepared = prepare(case, model.plan, None)
    channels = encode(map_clicks(clicks, prepared), prepared.shape, model.spec)
    x = torch.from_numpy(np.concatenate((prepared.image, channels)))
    logits = Reference(folder).predict(x, folds, mirror_axes, step)

    predictor = Predictor(model, Settings("cpu", "fp32", mirror_axes, step))
    predictor.set_case(case)
    margin = predictor.predict_margin(clicks)
    expected = logits[1] - logits[0]
    np.testing.assert_allclose(margin, expected, rtol=0, atol=1e-4)
    mask = margin > 0
    assert 0.05 < mask.float().mean() < 0.95
    differ = mask != (logits.argmax(0) == 1)
    assert differ.sum() <= 2
    assert expected[differ].abs().sum() < 1e-6, "but for logits that are equal up to float32's last digit"


def test_nnunets_half_precision_is_what_the_float32_sums_avoid(
    make_model: MakeModel, make_case: MakeCase, clicks: ClickSet
) -> None:
    """Without the fixture above the two differ: the comparison would notice."""
    folder, case = make_model(), make_case()
    model = load_model(folder)
    prepared = prepare(case, model.plan, None)
    channels = encode(map_clicks(clicks, prepared), prepared.shape, model.spec)
    x = torch.from_numpy(np.concatenate((prepared.image, channels)))
    logits = Reference(folder).predict(x, ("0",), (), 0.5).float()
    predictor = Predictor(model, Settings("cpu", "fp32", ()))
    predictor.set_case(case)
    assert (predictor.predict_margin(clicks) - (logits[1] - logits[0])).abs().max() > 1e-3
