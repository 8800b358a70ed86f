"""What happens to a training sample, and where the weights start."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from batchgeneratorsv2.transforms.spatial.channel_misalignment import ChannelMisalignmentTransform
from batchgeneratorsv2.transforms.spatial.spatial import SpatialTransform
from conftest import ARCHITECTURE
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
from torch import nn

from petclick.errors import InputError
from petclick.guidance import GuidanceSpec, encode
from petclick.simulate import SimulationSettings, draw_count, simulate_errors
from training.error_clicks import add_error_clicks
from training.organ_task import IGNORE, add_organ_heads
from training.pretrained import load_pretrained
from training.settings import Misalignment, TrainingSettings
from training.transforms import SimulateClicks, misalign, with_clicks

SHAPE = (12, 18, 15)


def nnunet_pipeline(patch: tuple[int, int, int] = SHAPE) -> Any:
    return nnUNetTrainer.get_training_transforms(
        patch, (-0.5, 0.5), [[1, 1, 1], [0.5, 0.5, 0.5]], (0, 1, 2), False, [False, False]
    )


def test_ct_slips_right_after_the_spatial_augmentation_which_has_no_elastic_deformation() -> None:
    steps = misalign(nnunet_pipeline(), Misalignment()).transforms
    assert isinstance(steps[0], SpatialTransform)
    assert steps[0].p_elastic_deform == 0
    assert isinstance(steps[1], ChannelMisalignmentTransform)
    assert len(steps) == len(nnunet_pipeline().transforms) + 1


@pytest.mark.parametrize(
    ("settings", "moves"),
    [
        (Misalignment(5.0, 1.0, (0, 2, 2), 0.0), True),
        (Misalignment(5.0, 0.0, (0, 2, 2), 1.0), True),
        (Misalignment(5.0, 0.0, (0, 2, 2), 0.0), False),
    ],
)
def test_misalignment_moves_ct_alone(settings: Misalignment, moves: bool) -> None:
    np.random.seed(3)  # noqa: NPY002  # the library's source of randomness
    step = misalign(nnunet_pipeline(), settings).transforms[1]
    image = torch.rand((2, *SHAPE))
    image[:, 4:8] += 2
    segmentation = torch.ones((1, *SHAPE))
    out = step(image=image.clone(), segmentation=segmentation)
    assert torch.equal(out["image"][0], image[0]) is not moves
    torch.testing.assert_close(out["image"][1], image[1], rtol=0, atol=0)
    torch.testing.assert_close(out["segmentation"], segmentation)
    if settings.shift_share:  # by whole voxels, along y and x only, zeros coming in
        shifts = [(y, x) for y in range(-2, 3) for x in range(-2, 3)]
        inner = (slice(None), slice(2, -2), slice(2, -2))
        assert any(
            torch.equal(out["image"][0][inner], image[0].roll(shift, (1, 2))[inner]) for shift in shifts
        )


def test_pipeline_keeps_unknown_organs_and_shrinks_both_targets() -> None:
    np.random.seed(4)  # noqa: NPY002
    clicks = SimulateClicks(GuidanceSpec(), SimulationSettings(), (1,))
    pipeline = with_clicks(misalign(nnunet_pipeline(), Misalignment()), clicks)
    segmentation = torch.zeros((2, *SHAPE), dtype=torch.int16)
    segmentation[0, 3:7, 5:11, 8:12] = 1
    segmentation[0, :2] = -1  # nnU-Net's padding
    segmentation[1] = IGNORE
    out = pipeline(image=torch.rand((2, *SHAPE)), segmentation=segmentation)
    assert out["image"].shape == (4, *SHAPE)
    assert [each.shape for each in out["segmentation"]] == [(2, *SHAPE), (2, 6, 9, 8)]
    for each in out["segmentation"]:
        assert set(each[0].unique().tolist()) == {0, 1}
        assert set(each[1].unique().tolist()) == {IGNORE}


def test_error_clicks_fall_on_the_chosen_samples_errors() -> None:
    settings = TrainingSettings(simulation=SimulationSettings(max_clicks=4))
    lesion = torch.zeros((3, *SHAPE), dtype=torch.bool)
    lesion[:, 3:8, 4:9, 5:10] = True
    predicted = torch.zeros((2, *SHAPE), dtype=torch.bool)
    predicted[:, 8:11, 12:16, 2:6] = True  # the lesion is missed, something else is found
    data = torch.rand((3, 4, *SHAPE))
    data[:, 2:] = 0
    data[2, 2, 0, 0, 0] = 1  # a click that was there before
    before = data.clone()
    out = add_error_clicks(data, lesion, predicted, np.array([0, 2]), settings, np.random.default_rng(5))
    torch.testing.assert_close(data, before)
    torch.testing.assert_close(out[1], data[1])
    torch.testing.assert_close(out[:, :2], data[:, :2])
    assert out[2, 2, 0, 0, 0] == 1
    rng = np.random.default_rng(5)
    n_drawn = 0
    for sample in (0, 2):
        counts = draw_count(4, rng), draw_count(4, rng)
        clicks = simulate_errors(lesion[0].numpy(), predicted[0].numpy(), *counts, rng)
        expected = torch.from_numpy(encode(clicks, SHAPE, settings.guidance))
        torch.testing.assert_close(out[sample, 2:], torch.maximum(data[sample, 2:], expected))
        n_drawn += len(clicks)
        assert lesion[0][tuple(clicks.of_kind("tumor").T)].all()
        assert predicted[0][tuple(clicks.of_kind("background").T)].all()
    assert n_drawn


def build(inputs: int, outputs: int, organs: int = 0, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    network = get_network_from_plans(
        ARCHITECTURE["network_class_name"],
        ARCHITECTURE["arch_kwargs"],
        ARCHITECTURE["_kw_requires_import"],
        inputs,
        outputs,
        deep_supervision=False,
    )
    for parameter in network.parameters():  # nothing is left at an initial zero or one
        nn.init.normal_(parameter, std=0.2)
    if organs:
        add_organ_heads(network, organs)
    assert isinstance(network, nn.Module)
    return network.eval()


def save(network: nn.Module, path: Path, prefix: str = "") -> None:
    weights = {prefix + name: value for name, value in network.state_dict().items()}
    torch.save({"network_weights": weights, "trainer_name": "nnUNetTrainer"}, path)


@pytest.mark.parametrize("prefix", ["", "module._orig_mod."])
def test_pretrained_network_of_two_channels_computes_the_same_with_prompts(
    tmp_path: Path, prefix: str
) -> None:
    theirs, ours = build(2, 2), build(4, 2, organs=3, seed=1)
    save(theirs, tmp_path / "theirs.pth", prefix)
    lines = load_pretrained(ours, tmp_path / "theirs.pth")
    images = torch.rand((1, 2, *SHAPE[:1], 16, 12))
    expected = theirs(images)
    for prompts in (torch.zeros_like(images), torch.rand_like(images)):
        torch.testing.assert_close(ours(torch.cat((images, prompts), 1)), expected)
    adapted = [line for line in lines if "start at zero" in line]
    assert any(
        line == "encoder.stem.convs.0.conv.weight 4 x 4 x 1 x 3 x 3: input channels from 2 on start at zero"
        for line in adapted
    )
    new = [line.split()[0] for line in lines if line.endswith("starts anew")]
    assert new == [f"decoder.organ_seg_layers.{i}.{kind}" for i in (0, 1) for kind in ("weight", "bias")]
    assert len(lines) == 1 + len(adapted) + len(new)


def test_heads_of_another_task_start_anew(tmp_path: Path) -> None:
    theirs, ours = build(2, 7, organs=2), build(4, 2, seed=1)
    random_heads = [head.weight.clone() for head in ours.decoder.seg_layers]
    save(theirs, tmp_path / "theirs.pth")
    lines = load_pretrained(ours, tmp_path / "theirs.pth")
    for head, before in zip(ours.decoder.seg_layers, random_heads, strict=True):
        torch.testing.assert_close(head.weight, before, rtol=0, atol=0)
    assert (
        "decoder.seg_layers.1.weight 2 x 4 x 1 x 1 x 1: 7 x 4 x 1 x 1 x 1 in the file, starts anew" in lines
    )
    assert "decoder.organ_seg_layers.0.bias 3: in the file only, left out" in lines
    torch.testing.assert_close(
        ours.encoder.stages[1].state_dict(), theirs.encoder.stages[1].state_dict(), rtol=0, atol=0
    )


class Planted:
    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path("planted"),))


def test_bad_pretrained_files_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    network = build(4, 2)
    torch.save({"network_weights": {}, "planted": Planted()}, "code.pth")
    with pytest.raises(InputError, match=r"code.pth: must hold weights only, nothing that runs code"):
        load_pretrained(network, Path("code.pth"))
    assert not Path("planted").exists()
    torch.save({"network_weights": {"other": torch.zeros(2)}}, "other.pth")
    with pytest.raises(InputError, match=r"other.pth: must hold weights that fit the network"):
        load_pretrained(network, Path("other.pth"))
    with pytest.raises(InputError, match=r"none.pth: must be a readable PyTorch checkpoint"):
        load_pretrained(network, Path("none.pth"))
