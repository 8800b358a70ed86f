import cc3d
import numpy as np
import pytest
from scipy import ndimage

from petclick.anatomy import LABEL, ORGANS, SITES
from petclick.errors import InputError
from petclick.phantom import Phantom, Scanner, make_phantom

SMALL = ((80, 44, 60), (6.0, 4.0, 4.2))
ADULT = ((148, 68, 90), (7.0, 4.8, 5.1))


@pytest.fixture(scope="module")
def adult() -> Phantom:
    return make_phantom(*ADULT, seed=11, n_lesions=9)


@pytest.fixture(scope="module")
def cohort() -> list[Phantom]:
    return [make_phantom(*SMALL, seed=seed, n_lesions=7) for seed in range(12)]


def test_arrays_have_the_promised_shapes_and_types(adult: Phantom) -> None:
    assert [array.dtype for array in (adult.ct_hu, adult.pet_suv)] == [np.float32] * 2
    assert [array.dtype for array in (adult.lesions, adult.organs)] == [np.uint8] * 2
    for array in (adult.ct_hu, adult.pet_suv, adult.lesions, adult.organs):
        assert array.shape == ADULT[0] == adult.grid.shape_zyx
        assert np.isfinite(array).all()
    assert adult.grid.spacing_zyx_mm == ADULT[1]
    assert adult.grid.direction == (1, 0, 0, 0, 1, 0, 0, 0, 1)
    assert adult.pet_suv.min() >= 0
    assert adult.ct_hu.min() >= -1024


def test_the_seed_decides_everything() -> None:
    first, again, other = (make_phantom(*SMALL, seed=seed, n_lesions=4) for seed in (5, 5, 6))
    for name in ("ct_hu", "pet_suv", "lesions", "organs"):
        np.testing.assert_array_equal(getattr(first, name), getattr(again, name))
        assert (getattr(first, name) != getattr(other, name)).any(), name
    assert first.lesion_suv == again.lesion_suv
    assert first.organ_suv == again.organ_suv
    assert first.organ_suv != other.organ_suv


def test_more_lesions_leave_the_body_as_it_is() -> None:
    none, some = (make_phantom(*SMALL, seed=2, n_lesions=n) for n in (0, 5))
    np.testing.assert_array_equal(none.organs, some.organs)
    assert none.organ_suv == some.organ_suv
    assert not none.lesions.any()
    far = ndimage.distance_transform_edt(some.lesions == 0, sampling=SMALL[1]) > 20
    np.testing.assert_allclose(none.pet_suv[far], some.pet_suv[far], atol=1e-3)


def test_lesions_are_numbered_components_apart_from_each_other(cohort: list[Phantom]) -> None:
    for phantom in cohort:
        assert set(np.unique(phantom.lesions)) == set(range(8))
        assert len(phantom.lesion_sites) == len(phantom.lesion_suv) == 7
        for connectivity in (6, 18, 26):  # one piece each, even by faces; two never touch, even by corners
            assert cc3d.connected_components(phantom.lesions > 0, connectivity, return_N=True)[1] == 7


def test_lesions_lie_in_the_tissues_of_their_site_never_in_air(cohort: list[Phantom]) -> None:
    sites = {site.name: site for site in SITES}
    for phantom in cohort:
        for number, site in enumerate(phantom.lesion_sites, start=1):
            under = {ORGANS[label].name for label in np.unique(phantom.organs[phantom.lesions == number])}
            assert under <= set(sites[site].within)
            assert not under & {"air", "fat"}
    met = {site for phantom in cohort for site in phantom.lesion_sites}
    assert met == set(sites)


def test_lesions_vary_in_size_and_uptake(cohort: list[Phantom]) -> None:
    sizes = [np.count_nonzero(p.lesions == i) for p in cohort for i in range(1, 8)]
    uptakes = [suv for p in cohort for suv in p.lesion_suv]
    assert min(sizes) >= 2
    assert max(sizes) > 8 * min(sizes)
    assert max(uptakes) > 3 * min(uptakes)


def test_every_lesion_stands_out_after_blur(cohort: list[Phantom]) -> None:
    for seed, phantom in enumerate(cohort):
        clean = make_phantom(*SMALL, seed=seed, n_lesions=0, scanner=Scanner(pet_noise=0.0))
        for number in range(1, 8):
            lesion = phantom.lesions == number
            assert phantom.pet_suv[lesion].max() > 1.3 * clean.pet_suv[lesion].max()
            assert phantom.pet_suv[lesion].mean() > 1.3 * clean.pet_suv[lesion].mean()


def test_blur_is_in_millimetres() -> None:
    scanners = [Scanner(psf_fwhm_mm=fwhm, pet_noise=0.0) for fwhm in (12.0, 2.0)]
    coarse, fine = (make_phantom(*SMALL, seed=1, n_lesions=0, scanner=scanner) for scanner in scanners)
    # A blur of 2 mm, then one that completes it to 12 mm.
    sigma = np.sqrt(12.0**2 - 2.0**2) / np.sqrt(8 * np.log(2)) / np.array(SMALL[1])
    again = ndimage.gaussian_filter(fine.pet_suv, sigma)
    np.testing.assert_allclose(again, coarse.pet_suv, atol=0.25)  # of 28: 2 mm are undersampled


def test_organ_means_stay_near_the_table(adult: Phantom) -> None:
    spacing = np.array(ADULT[1])
    far_from_lesions = ndimage.distance_transform_edt(adult.lesions == 0, sampling=spacing) > 12
    compared = set()
    for label, organ in enumerate(ORGANS[1:], start=1):
        low, high = organ.fdg_suv
        assert low <= adult.organ_suv[organ.name] <= high
        box = ndimage.find_objects(adult.organs)[label - 1]
        depth_mm = ndimage.distance_transform_edt(np.pad(adult.organs[box] == label, 1), sampling=spacing)
        core = (depth_mm > 0.8 * depth_mm.max())[1:-1, 1:-1, 1:-1] & far_from_lesions[box]
        if depth_mm.max() > 10:  # thinner ones are blurred with what is around them
            compared.add(organ.name)
            assert adult.pet_suv[box][core].mean() == pytest.approx(adult.organ_suv[organ.name], rel=0.1)
            assert adult.ct_hu[box][core].mean() == pytest.approx(organ.hu, abs=20)
    assert compared >= {"muscle", "soft tissue", "lungs", "liver", "spleen", "kidneys", "bladder", "brain"}


def test_air_is_empty(adult: Phantom) -> None:
    far = ndimage.distance_transform_edt(adult.organs == LABEL["air"], sampling=ADULT[1]) > 15
    assert adult.pet_suv[far].max() < 0.02
    assert adult.ct_hu[far].mean() == pytest.approx(-1000, abs=3)


def test_noise_grows_with_the_root_of_uptake() -> None:
    noisy, clean = (
        make_phantom(*ADULT, seed=4, n_lesions=0, scanner=Scanner(pet_noise=level)) for level in (0.1, 0.0)
    )
    noise = (noisy.pet_suv - clean.pet_suv) / np.sqrt(np.maximum(clean.pet_suv, 0.01))
    for organ in ("muscle", "liver", "brain"):
        assert noise[noisy.organs == LABEL[organ]].std() == pytest.approx(0.1, rel=0.15)


def test_organs_stand_where_they_belong(adult: Phantom) -> None:
    """LPS: z up, y to posterior, x to the patient's left."""
    centre = {
        organ.name: np.argwhere(adult.organs == label).mean(axis=0) for label, organ in enumerate(ORGANS)
    }
    assert set(np.unique(adult.organs)) == set(range(len(ORGANS)))
    heights = [centre[name][0] for name in ("bladder", "kidneys", "liver", "heart", "head glands", "brain")]
    assert heights == sorted(heights)
    middle = (ADULT[0][2] - 1) / 2
    assert centre["liver"][2] < middle - 5 < middle + 5 < centre["spleen"][2]
    assert middle < centre["heart"][2]
    assert centre["bladder"][1] < centre["kidneys"][1]


def test_organs_have_human_sizes(adult: Phantom) -> None:
    """Ranges of adults, in ml, after the person's size is taken out."""
    ranges = {"liver": (1200, 2400), "brain": (1000, 1600), "lungs": (3500, 6500), "kidneys": (200, 450)}
    for organ, (low, high) in ranges.items():
        volume_ml = np.count_nonzero(adult.organs == LABEL[organ]) * adult.grid.voxel_ml / adult.scale**3
        assert low < volume_ml < high, organ


@pytest.mark.parametrize(
    ("shape", "spacing"),
    [
        ((80, 44, 60), (6.0, 4.0, 4.2)),
        ((40, 32, 36), (12.0, 4.0, 5.0)),  # thick slices
        ((120, 30, 50), (3.0, 9.0, 5.0)),
        ((64, 72, 40), (5.0, 2.0, 6.0)),  # depth and width to spare
    ],
)
def test_the_whole_body_fits_any_field_of_view(
    shape: tuple[int, int, int], spacing: tuple[float, ...]
) -> None:
    phantom = make_phantom(shape, spacing, seed=9, n_lesions=3)
    body = phantom.organs > 0
    for axis in range(3):
        flat = body.any(axis=tuple({0, 1, 2} - {axis}))
        assert not flat[0]
        assert not flat[-1]
    filled = [
        np.ptp(np.flatnonzero(body.any(axis=tuple({0, 1, 2} - {axis})))) / shape[axis] for axis in range(3)
    ]
    assert max(filled) > 0.85
    for organ in ("brain", "heart", "lungs", "liver", "kidneys", "bladder"):
        assert (phantom.organs == LABEL[organ]).any(), organ
    assert len(np.unique(phantom.lesions)) == 4


@pytest.mark.parametrize(
    ("shape", "spacing", "n_lesions", "message"),
    [
        ((80, 44, 7), (6.0, 4.0, 4.0), 1, "needs 8 voxels or more .* got \\(80, 44, 7\\)"),
        ((80, 44, 60), (6.0, 0.0, 4.0), 1, "spacings above 0 mm, got .*0.0"),
        ((80, 44, 60), (6.0, float("nan"), 4.0), 1, "spacings above 0 mm, got .*nan"),
        ((80, 44, 60), (6.0, 4.0, 4.0), 256, "n_lesions must be from 0 to 255, got 256"),
        ((80, 44, 60), (6.0, 4.0, 4.0), -1, "n_lesions must be from 0 to 255, got -1"),
        ((12, 9, 11), (40.0, 12.0, 18.0), 99, "found no room for lesion [0-9]+ of n_lesions, got 99"),
    ],
)
def test_impossible_wishes_are_refused(
    shape: tuple[int, int, int], spacing: tuple[float, float, float], n_lesions: int, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        make_phantom(shape, spacing, seed=0, n_lesions=n_lesions)
