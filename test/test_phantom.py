from pathlib import Path

import cc3d
import numpy as np
import pytest
from scipy import ndimage

from petclick.errors import InputError
from petclick.phantom import TRACERS, Phantom, Scanner, make_patient, make_phantom
from petclick.phantom.__main__ import PUBLISHED, main, measure
from petclick.phantom.anatomy import LABEL, TISSUES
from petclick.phantom.scanner import NOISE_AT_SUV_1
from petclick.phantom.tracers import LEAST_CONTRAST, LIGANDS, SITES, UPTAKE

SMALL = ((80, 44, 60), (6.0, 4.0, 4.2))
COARSE = (8.0, 8.0, 8.0)
ADULT = ((148, 68, 90), (7.0, 4.8, 5.1))


@pytest.fixture(scope="module")
def adult() -> Phantom:
    return make_phantom(*ADULT, seed=11, n_lesions=9)


@pytest.fixture(scope="module")
def cohort() -> list[Phantom]:
    return [make_phantom(*SMALL, seed=seed, n_lesions=7) for seed in range(12)]


@pytest.fixture(scope="module")
def patients() -> dict[str, list[Phantom]]:
    """Life-size people in tight fields of view, everything drawn."""
    return {tracer: [make_patient(tracer, seed, COARSE) for seed in range(12)] for tracer in TRACERS}


def test_arrays_have_the_promised_shapes_and_types(adult: Phantom) -> None:
    assert [array.dtype for array in (adult.ct_hu, adult.pet_suv)] == [np.float32] * 2
    assert [array.dtype for array in (adult.lesions, adult.tissues)] == [np.uint8] * 2
    for array in (adult.ct_hu, adult.pet_suv, adult.lesions, adult.tissues):
        assert array.shape == ADULT[0] == adult.grid.shape_zyx
        assert np.isfinite(array).all()
    assert adult.grid.spacing_zyx_mm == ADULT[1]
    assert adult.grid.direction == (1, 0, 0, 0, 1, 0, 0, 0, 1)
    assert adult.pet_suv.min() >= 0
    assert adult.ct_hu.min() >= -1024


def test_the_seed_decides_everything() -> None:
    first, again, other = (make_phantom(*SMALL, seed=seed, n_lesions=4) for seed in (5, 5, 6))
    for name in ("ct_hu", "pet_suv", "lesions", "tissues"):
        np.testing.assert_array_equal(getattr(first, name), getattr(again, name))
        assert (getattr(first, name) != getattr(other, name)).any(), name
    assert first.lesion_suv == again.lesion_suv
    assert first.tissue_suv == again.tissue_suv
    assert first.tissue_suv != other.tissue_suv


def test_more_lesions_leave_the_body_as_it_is() -> None:
    none, some = (make_phantom(*SMALL, seed=2, n_lesions=n) for n in (0, 5))
    np.testing.assert_array_equal(none.tissues, some.tissues)
    assert none.tissue_suv == some.tissue_suv
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
    sites = {site.name: site for site in SITES["fdg"]}
    for phantom in cohort:
        for number, site in enumerate(phantom.lesion_sites, start=1):
            under = {TISSUES[label].name for label in np.unique(phantom.tissues[phantom.lesions == number])}
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
        clean = make_phantom(*SMALL, seed=seed, n_lesions=0, scanner=Scanner(counts=np.inf))
        for number in range(1, 8):
            lesion = phantom.lesions == number
            assert phantom.pet_suv[lesion].max() > 1.3 * clean.pet_suv[lesion].max()
            assert phantom.pet_suv[lesion].mean() > 1.3 * clean.pet_suv[lesion].mean()


def test_blur_is_in_millimetres() -> None:
    scanners = [Scanner(psf_fwhm_mm=fwhm, counts=np.inf) for fwhm in (12.0, 2.0)]
    coarse, fine = (make_phantom(*SMALL, seed=1, n_lesions=0, scanner=scanner) for scanner in scanners)
    # A blur of 2 mm, then one that completes it to 12 mm.
    sigma = np.sqrt(12.0**2 - 2.0**2) / np.sqrt(8 * np.log(2)) / np.array(SMALL[1])
    again = ndimage.gaussian_filter(fine.pet_suv, sigma)
    np.testing.assert_allclose(again, coarse.pet_suv, atol=0.25)  # of 28: 2 mm are undersampled


def test_organ_means_stay_near_the_table(adult: Phantom) -> None:
    spacing = np.array(ADULT[1])
    far_from_lesions = ndimage.distance_transform_edt(adult.lesions == 0, sampling=spacing) > 12
    compared = set()
    for label, organ in enumerate(TISSUES[1:], start=1):
        low, high = UPTAKE[organ.name].fdg[1:]
        assert low <= adult.tissue_suv[organ.name] <= high
        box = ndimage.find_objects(adult.tissues)[label - 1]
        if box is None:  # a woman's prostate
            continue
        depth_mm = ndimage.distance_transform_edt(np.pad(adult.tissues[box] == label, 1), sampling=spacing)
        core = (depth_mm > 0.8 * depth_mm.max())[1:-1, 1:-1, 1:-1] & far_from_lesions[box]
        if depth_mm.max() > 10:  # thinner ones are blurred with what is around them
            compared.add(organ.name)
            assert adult.pet_suv[box][core].mean() == pytest.approx(adult.tissue_suv[organ.name], rel=0.15)
            assert adult.ct_hu[box][core].mean() == pytest.approx(organ.hu, abs=20)
    assert compared >= {"muscle", "soft tissue", "lungs", "liver", "spleen", "kidneys", "brain"}


def test_air_is_empty(adult: Phantom) -> None:
    far = ndimage.distance_transform_edt(adult.tissues == LABEL["air"], sampling=ADULT[1]) > 15
    assert adult.pet_suv[far].max() < 0.02
    assert adult.ct_hu[far].mean() == pytest.approx(-1000, abs=3)


def test_noise_grows_with_the_root_of_uptake() -> None:
    noisy, clean = (
        make_phantom(*ADULT, seed=4, n_lesions=0, scanner=Scanner(counts=counts)) for counts in (2.0, np.inf)
    )
    noise = (noisy.pet_suv - clean.pet_suv) / np.sqrt(np.maximum(clean.pet_suv, 0.01))
    for organ in ("muscle", "liver", "brain"):
        assert noise[noisy.tissues == LABEL[organ]].std() == pytest.approx(
            NOISE_AT_SUV_1 / np.sqrt(2), rel=0.15
        )


def test_organs_stand_where_they_belong(adult: Phantom) -> None:
    """LPS: z up, y to posterior, x to the patient's left."""
    centre = {
        organ.name: np.argwhere(adult.tissues == label).mean(axis=0)
        for label, organ in enumerate(TISSUES)
        if organ.name != "prostate" or (adult.tissues == label).any()
    }
    assert len(centre) >= len(TISSUES) - 1
    heights = [
        centre[name][0] for name in ("bladder", "kidneys", "liver", "myocardium", "parotid glands", "brain")
    ]
    assert heights == sorted(heights)
    middle = (ADULT[0][2] - 1) / 2
    assert centre["liver"][2] < middle - 5 < middle + 5 < centre["spleen"][2]
    assert middle < centre["myocardium"][2]
    assert centre["bladder"][1] < centre["kidneys"][1]


def test_organs_have_human_sizes(patients: dict[str, list[Phantom]]) -> None:
    """Mean of some adults, in ml."""
    ranges = {"liver": (1200, 2100), "lungs": (3000, 6000), "kidneys": (220, 450), "spleen": (120, 350)}
    people = [*patients["fdg"], *patients["psma"]]
    for organ, (low, high) in ranges.items():
        volumes_ml = [np.count_nonzero(p.tissues == LABEL[organ]) * p.grid.voxel_ml for p in people]
        assert low < np.mean(volumes_ml) < high, organ
        assert 0.1 < np.std(volumes_ml) / np.mean(volumes_ml) < 0.5, organ


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
    body = phantom.tissues > 0
    for axis in range(3):
        flat = body.any(axis=tuple({0, 1, 2} - {axis}))
        assert not flat[0]
        assert not flat[-1]
    filled = [
        np.ptp(np.flatnonzero(body.any(axis=tuple({0, 1, 2} - {axis})))) / shape[axis] for axis in range(3)
    ]
    assert max(filled) > 0.85
    for organ in ("brain", "myocardium", "lungs", "liver", "kidneys", "bladder"):
        assert (phantom.tissues == LABEL[organ]).any(), organ
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


def test_a_tracer_that_is_unknown_is_refused() -> None:
    with pytest.raises(InputError, match="tracer must be one of fdg, psma, got gold"):
        make_phantom(*SMALL, seed=0, n_lesions=0, tracer="gold")


def test_patients_differ_and_repeat(patients: dict[str, list[Phantom]]) -> None:
    for tracer, people in patients.items():
        again = make_patient(tracer, 3, COARSE)
        for name in ("ct_hu", "pet_suv", "lesions", "tissues"):
            np.testing.assert_array_equal(getattr(people[3], name), getattr(again, name))
        assert len({phantom.grid.shape_zyx for phantom in people}) > 6
        assert len({phantom.scanner for phantom in people}) == len(people)
        assert {phantom.ligand for phantom in people} == set(LIGANDS[tracer])
        counts = [len(phantom.lesion_sites) for phantom in people]
        assert min(counts) <= 2 < 5 < max(counts)


def test_a_tight_field_of_view_holds_the_person(patients: dict[str, list[Phantom]]) -> None:
    for phantom in [each for people in patients.values() for each in people]:
        body = phantom.tissues > 0
        heights = np.flatnonzero(body.any(axis=(1, 2)))
        assert heights[0] == 0  # the legs go on below
        assert 1 <= len(body) - 1 - heights[-1] <= 3
        for axis in (1, 2):
            used = np.flatnonzero(body.any(axis=tuple({0, 1, 2} - {axis})))
            assert 1 <= used[0] <= 6
            assert 1 <= body.shape[axis] - 1 - used[-1] <= 6
        height_mm, width_mm = body.shape[0] * COARSE[0], np.ptp(used) * COARSE[2]
        assert 800 < height_mm < 1200
        assert 300 < width_mm < 560


def test_larger_fields_of_view_hold_the_same_size(patients: dict[str, list[Phantom]]) -> None:
    phantom = make_patient("fdg", 3, COARSE, (120, 60, 90))
    assert phantom.grid.shape_zyx == (120, 60, 90)
    assert phantom.scale == patients["fdg"][3].scale
    volume = [np.count_nonzero(each.tissues == LABEL["liver"]) for each in (phantom, patients["fdg"][3])]
    assert volume[0] == pytest.approx(volume[1], rel=0.1)


@pytest.mark.parametrize("tracer", TRACERS)
def test_lesions_stand_out_from_the_tissue_around(patients: dict[str, list[Phantom]], tracer: str) -> None:
    for phantom in patients[tracer]:
        for number, suv in enumerate(phantom.lesion_suv, start=1):
            under = {TISSUES[label].name for label in np.unique(phantom.tissues[phantom.lesions == number])}
            lowest = min(phantom.tissue_suv[tissue] for tissue in under)
            assert suv >= LEAST_CONTRAST * lowest


def test_psma_lesions_lie_at_psma_sites(patients: dict[str, list[Phantom]]) -> None:
    met = {tracer: {site for p in patients[tracer] for site in p.lesion_sites} for tracer in TRACERS}
    for tracer in TRACERS:
        assert met[tracer] <= {site.name for site in SITES[tracer]}
    assert {"prostate bed", "pelvic nodes", "bone"} <= met["psma"]


def test_ct_can_lie_beside_pet() -> None:
    still, moved = (
        make_phantom(*ADULT, seed=1, n_lesions=0, scanner=Scanner(ct_noise_hu=0.0, **kind))
        for kind in ({}, {"breathing_mm": 14.0, "shift_yx_mm": (0.0, 5.1)})
    )
    np.testing.assert_array_equal(still.pet_suv, moved.pet_suv)
    air = [each.ct_hu < -500 for each in (still, moved)]
    top = slice(-30, None)  # the head is far from the diaphragm: a step along x, and nothing else
    np.testing.assert_array_equal(air[0][top, :, :-1], air[1][top, :, 1:])
    dome = np.argwhere(still.tissues == LABEL["liver"])[:, 0].max()
    lungs = [np.count_nonzero(each[dome, 20:-20, 20:-20]) for each in air]
    assert lungs[1] < lungs[0]  # CT's liver reaches higher


def test_organs_take_up_what_was_published(patients: dict[str, list[Phantom]]) -> None:
    """Large organs, because these voxels are large: within two standard deviations, or 40 %."""
    compared = 0
    for row in PUBLISHED:
        cases = [p for people in patients.values() for p in people if p.ligand == row.ligand]
        values = [measure(phantom, row.tissue, row.quantity) for phantom in cases]
        if row.tissue in ("liver", "spleen", "kidneys", "brain"):
            assert np.nanmean(values) == pytest.approx(row.suv, abs=2 * (row.sd or 0.2 * row.suv)), row
            assert np.nanstd(values) > 0.08 * row.suv, row  # patients differ
            compared += 1
    assert compared == 8


def test_command_prints_figures_and_draws_pictures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("petclick.phantom.__main__.SPACING_ZYX_MM", (12.0, 12.0, 12.0))
    main(["--cases", "1", "--pictures", str(tmp_path)])
    rows = capsys.readouterr().out.strip().split("\n")
    assert len(rows) == 2 + len(PUBLISHED)
    assert rows[2].startswith("| fdg | liver | mean | 2.17 ± 0.44 | ")
    assert any("| none |" in row for row in rows)  # one case has one of PSMA's ligands
    assert {path.name for path in tmp_path.iterdir()} == {"phantom_fdg.png", "phantom_psma.png"}
