"""Simulated clicks: their numbers, where they may lie, and the schemes' exact places against slow oracles."""

from collections import Counter
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage, stats

from benchmarks.simulation import loop_official
from petclick.clicks import ClickSet, click_set
from petclick.errors import InputError
from petclick.records import from_mapping, to_mapping
from petclick.simulate import (
    SimulationSettings,
    Sources,
    draw_count,
    mixture,
    schemes,
    simulate,
    simulate_errors,
    simulate_official,
    simulate_scribbles,
    simulate_varied,
)
from petclick.simulate.components import JITTER_VOX, Components, hot_mask
from petclick.simulate.schemes import BOUNDARY_VOX, OFFICIAL_PERCENTILE, VARIED_PERCENTILE

SHAPE = (18, 25, 31)
Mask = npt.NDArray[np.bool_]
Image = npt.NDArray[np.float32]
Scheme = Callable[[Mask, Image, int, int, np.random.Generator], ClickSet]

each_scheme = pytest.mark.parametrize("scheme", [simulate_official, simulate_varied])
sources = pytest.mark.parametrize("scheme", [*mixture.SCHEMES.values()])


def ball(centre: tuple[float, float, float], radius: float) -> Mask:
    z, y, x = np.ogrid[tuple(slice(0, n) for n in SHAPE)]
    return (z - centre[0]) ** 2 + (y - centre[1]) ** 2 + (x - centre[2]) ** 2 <= radius**2


@pytest.fixture
def lesion() -> Mask:
    """Three lesions: a box, a ball at the volume's corner, and two voxels that share a corner only."""
    mask = ball((17, 24, 30), 5.2)
    mask[4:9, 5:12, 8:12] = True
    mask[2, 20, 3] = mask[3, 21, 4] = True
    return mask


@pytest.fixture
def pet(lesion: Mask) -> Image:
    noise = ndimage.gaussian_filter(np.random.default_rng(0).standard_normal(SHAPE), 1)
    return (noise + 0.5 * lesion).astype(np.float32)


def components(mask: Mask) -> list[Mask]:
    labels, count = ndimage.label(mask, np.ones((3, 3, 3)))
    return [labels == label for label in range(1, count + 1)]


def depth(component: Mask) -> npt.NDArray[np.float64]:
    """Distance to the nearest voxel outside, over the whole volume."""
    return np.asarray(ndimage.distance_transform_edt(component))


def at(mask: npt.NDArray[np.generic], index_zyx: npt.NDArray[np.int64]) -> npt.NDArray[np.generic]:
    return mask[tuple(index_zyx.T)]


def same(a: ClickSet, b: ClickSet) -> bool:
    return np.array_equal(a.index_zyx, b.index_zyx) and np.array_equal(a.kind, b.kind)


def test_counts_follow_the_logarithmic_weights() -> None:
    rng = np.random.default_rng(11)
    drawn = Counter(draw_count(10, rng) for _ in range(20_000))
    assert set(drawn) == set(range(11))
    weights = np.log(np.arange(12, 1, -1))  # ln 12 for no click … ln 2 for ten
    expected = 20_000 * weights / weights.sum()
    assert stats.chisquare([drawn[n] for n in range(11)], expected).pvalue > 0.001
    assert stats.chisquare([drawn[n] for n in range(10, -1, -1)], expected).pvalue < 1e-9


def test_counts_of_the_two_kinds_are_independent(lesion: Mask, pet: Image) -> None:
    rng = np.random.default_rng(5)
    few = SimulationSettings(2, Sources(official=0.5, varied=0.5))
    table = np.zeros((3, 3))
    for _ in range(600):
        clicks = simulate(lesion, pet, few, rng)
        table[len(clicks.of_kind("tumor")), len(clicks.of_kind("background"))] += 1
    assert (table > 0).all(), "tumour clicks without background clicks, too, and the other way round"
    assert stats.chi2_contingency(table).pvalue > 0.001


@pytest.fixture
def asked_for(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int, int]]:
    """Each call of a scheme: its name, tumour clicks, background clicks."""
    asked: list[tuple[str, int, int]] = []

    def recording(name: str) -> Scheme:
        def scheme(_: Mask, __: Image, n_tumor: int, n_background: int, ___: np.random.Generator) -> ClickSet:
            asked.append((name, n_tumor, n_background))
            return click_set([], [])

        return scheme

    monkeypatch.setattr(mixture, "SCHEMES", {name: recording(name) for name in mixture.SCHEMES})
    return asked


def ask(n: int, simulation: SimulationSettings) -> None:
    nothing, rng = np.zeros((1, 1, 1), bool), np.random.default_rng(1)
    for _ in range(n):
        simulate(nothing, nothing.astype(np.float32), simulation, rng)


@pytest.mark.parametrize("no_click_share", [0.0, 0.1])
def test_counts_follow_their_distribution_jointly(
    asked_for: list[tuple[str, int, int]], no_click_share: float
) -> None:
    ask(20_000, SimulationSettings(no_click_share=no_click_share))
    table = np.zeros((11, 11))
    for _, n_tumor, n_background in asked_for:
        table[n_tumor, n_background] += 1
    share = np.log(np.arange(12, 1, -1)) / np.log(np.arange(12, 1, -1)).sum()
    expected = (1 - no_click_share) * np.outer(share, share)
    expected[0, 0] += no_click_share
    assert stats.chisquare(table.ravel(), 20_000 * expected.ravel()).pvalue > 0.001
    assert stats.binomtest(int(table[0, 0]), 20_000, expected[0, 0]).pvalue > 0.001
    assert expected[0, 0] == pytest.approx(0.0155 if not no_click_share else 0.1139, abs=1e-4)


def test_scribbles_are_as_many_as_the_challenge_gives(asked_for: list[tuple[str, int, int]]) -> None:
    ask(5000, SimulationSettings(sources=Sources(official=0, varied=0, scribbles=1)))
    drawn = Counter(n_tumor for _, n_tumor, _ in asked_for)
    weights = np.log(np.arange(7, 1, -1))
    expected = 5000 * weights / weights.sum()
    assert stats.chisquare([drawn[n] for n in range(6)], expected).pvalue > 0.001
    assert drawn.total() == 5000


def test_settings_decide_each_sources_share(asked_for: list[tuple[str, int, int]]) -> None:
    ask(1000, SimulationSettings(sources=Sources(official=0.5, varied=0.3, scribbles=0.2)))
    called = Counter(name for name, *_ in asked_for)
    numbers = [called[name] for name in ("official", "varied", "scribbles")]
    assert stats.chisquare(numbers, [500, 300, 200]).pvalue > 0.001


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sources: {official: -0.1, varied: 1.1}", "sources.official must be a number from 0 to 1, got -0.1"),
        ("sources: {varied: .nan}", "sources.varied must be a number from 0 to 1, got nan"),
        (
            "sources: {official: 1}",
            r"sources must add up to 1, got official 1 \+ varied 0.2 \+ scribbles 0 = 1.2",
        ),
        ("sources: {official: 0, varied: 0}", "sources must add up to 1, got .* = 0"),
        ("sources: {offical: 1}", "keys of simulation.sources must be among official, .*, got 'offical'"),
        ("sources: 0.8", "simulation.sources must be a mapping, got 0.8"),
        ("max_clicks: -1", "max_clicks must be a whole number from 0 to 1000, got -1"),
        ("max_clicks: 1.5", "max_clicks must be of type int, got 1.5"),
        ("no_click_share: 1.01", "no_click_share must be a number from 0 to 1, got 1.01"),
        ("error_share: -1", "error_share must be a number from 0 to 1, got -1"),
    ],
)
def test_bad_settings_are_named(text: str, message: str) -> None:
    with pytest.raises(InputError, match=f"own.yaml: .*{message}"):
        from_mapping(SimulationSettings, yaml.safe_load(text), "own.yaml", "simulation.")


def test_settings_survive_yaml() -> None:
    own = SimulationSettings(4, Sources(0.25, 0.25, 0.5), no_click_share=0.1, error_share=0.3)
    assert (
        from_mapping(SimulationSettings, yaml.safe_load(yaml.safe_dump(to_mapping(own))), "own.yaml") == own
    )


def test_share_without_any_click(lesion: Mask, pet: Image) -> None:
    rng = np.random.default_rng(2)
    none = SimulationSettings(no_click_share=1.0)
    assert all(len(simulate(lesion, pet, none, rng)) == 0 for _ in range(20))


@sources
@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32), n_tumor=st.integers(0, 12), n_background=st.integers(0, 12))
def test_clicks_lie_where_they_may(scheme: Scheme, seed: int, n_tumor: int, n_background: int) -> None:
    rng = np.random.default_rng(seed)
    lesion = ndimage.gaussian_filter(rng.standard_normal(SHAPE), 2) > rng.uniform(0.05, 0.15)
    pet = ndimage.gaussian_filter(rng.standard_normal(SHAPE), 1).astype(np.float32)
    before = lesion.copy(), pet.copy()
    clicks = scheme(lesion, pet, n_tumor, n_background, rng)
    np.testing.assert_array_equal(lesion, before[0])
    np.testing.assert_array_equal(pet, before[1])
    assert clicks.index_zyx.dtype == np.int64

    percentile = VARIED_PERCENTILE if scheme is simulate_varied else OFFICIAL_PERCENTILE
    hot = ~lesion & (pet >= np.percentile(pet[~lesion], percentile))
    for kind, allowed, n in (("tumor", lesion, n_tumor), ("background", hot, n_background)):
        points = clicks.of_kind(kind)
        assert at(allowed, points).all()
        assert len(np.unique(points, axis=0)) == len(points)
        if scheme is simulate_scribbles:  # each stroke lies in one slice of one component
            labels, _ = ndimage.label(allowed, np.ones((3, 3, 3)))
            strokes = {(int(labels[tuple(point)]), int(point[0])) for point in points}
            slices = sum(np.count_nonzero(part.any(axis=(1, 2))) for part in components(allowed))
            assert len(strokes) == min(n, slices)
        else:
            assert len(points) == min(n, np.count_nonzero(allowed))


@each_scheme
def test_every_lesion_gets_a_click_before_one_gets_two(scheme: Scheme, lesion: Mask, pet: Image) -> None:
    for seed in range(10):
        tumor = scheme(lesion, pet, 3, 0, np.random.default_rng(seed)).of_kind("tumor")
        assert [at(part, tumor).sum() for part in components(lesion)] == [1, 1, 1]


@each_scheme
def test_a_lesion_without_a_voxel_left_leaves_its_clicks_to_the_others(
    scheme: Scheme, lesion: Mask, pet: Image
) -> None:
    tumor = scheme(lesion, pet, 12, 0, np.random.default_rng(0)).of_kind("tumor")
    assert len(tumor) == 12
    shares = sorted(int(at(part, tumor).sum()) for part in components(lesion))
    assert shares == [2, 5, 5]


@each_scheme
def test_fewer_clicks_where_the_mask_has_no_voxel_left(scheme: Scheme, pet: Image) -> None:
    lesion = np.zeros(SHAPE, bool)
    lesion[3, 4:6, 9] = True
    assert len(scheme(lesion, pet, 10, 0, np.random.default_rng(0))) == 2


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32), n_tumor=st.integers(0, 12), n_background=st.integers(0, 12))
def test_official_clicks_are_the_straightforward_loops(seed: int, n_tumor: int, n_background: int) -> None:
    rng = np.random.default_rng(seed)
    lesion = ndimage.gaussian_filter(rng.standard_normal(SHAPE), 2) > rng.uniform(0.05, 0.15)
    pet = ndimage.gaussian_filter(rng.standard_normal(SHAPE), 1).astype(np.float32)
    ours, loop = (
        scheme(lesion, pet, n_tumor, n_background, np.random.default_rng(seed))
        for scheme in (simulate_official, loop_official)
    )
    assert same(ours, loop)


@settings(max_examples=100, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    side=st.integers(1, 30),
    levels=st.integers(1, 1000),
    share=st.floats(0, 1),
    percentile=st.sampled_from([50.0, VARIED_PERCENTILE, OFFICIAL_PERCENTILE]),
)
def test_hot_voxels_are_those_above_the_percentile(
    seed: int, side: int, levels: int, share: float, percentile: float
) -> None:
    rng = np.random.default_rng(seed)
    lesion = rng.random((side, side, side)) < share
    pet = rng.integers(-levels, levels, lesion.shape).astype(np.float32)
    hot = hot_mask(lesion, pet, percentile)
    if lesion.all():
        assert not hot.any()
    else:
        np.testing.assert_array_equal(hot, ~lesion & (pet >= np.percentile(pet[~lesion], percentile)))


def test_official_places_without_jitter_are_the_oracles(
    lesion: Mask, pet: Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(schemes, "JITTER_VOX", 0)
    hot = ~lesion & (pet >= np.percentile(pet[~lesion], OFFICIAL_PERCENTILE))
    n_tumor, n_background = len(components(lesion)) + 2, len(components(hot))
    assert (n_tumor, n_background) == (5, 13)
    for seed in range(5):
        clicks = simulate_official(lesion, pet, n_tumor, n_background, np.random.default_rng(seed))
        tumor, background = clicks.of_kind("tumor"), clicks.of_kind("background")
        for component in [*components(lesion), *components(hot)]:
            deep = depth(component)
            first, *boundary = [point for point in (*tumor, *background) if component[tuple(point)]]
            assert deep[tuple(first)] == deep.max()
            assert all(deep[tuple(point)] == 1 for point in boundary)
        np.testing.assert_array_equal(at(lesion, tumor), np.ones(n_tumor))


def test_official_centres_move_by_up_to_the_jitter(pet: Image) -> None:
    lesion = ball((8, 12, 15), 6.4)
    moves = [
        simulate_official(lesion, pet, 1, 0, np.random.default_rng(seed)).index_zyx[0] - (8, 12, 15)
        for seed in range(60)
    ]
    assert np.abs(moves).max() == JITTER_VOX
    assert len(np.unique(moves, axis=0)) > 30
    np.testing.assert_allclose(np.mean(moves, axis=0), 0, atol=1)


def test_varied_tumour_clicks_prefer_depth_first_and_the_rim_later(pet: Image) -> None:
    lesion = ball((8, 12, 15), 6.4)
    deep = depth(lesion)
    by_turn = np.array(
        [
            at(deep, simulate_varied(lesion, pet, 4, 0, np.random.default_rng(seed)).index_zyx)
            for seed in range(40)
        ]
    )
    assert by_turn[:, 0].mean() > deep[lesion].mean() + 1
    assert by_turn[:, 1:].max() <= BOUNDARY_VOX


def test_varied_background_clicks_follow_uptake() -> None:
    lesion = np.zeros(SHAPE, bool)
    pet = np.zeros(SHAPE, np.float32)
    pet[4, 5, 6:9] = 1, 2, 6
    drawn = Counter(
        int(simulate_varied(lesion, pet, 0, 1, np.random.default_rng(seed)).index_zyx[0, 2])
        for seed in range(900)
    )
    assert stats.chisquare([drawn[x] for x in (6, 7, 8)], [100, 200, 600]).pvalue > 0.001
    assert drawn.total() == 900


def test_varied_background_takes_negative_uptake() -> None:
    rng = np.random.default_rng(0)
    pet = -5 + 0.1 * rng.standard_normal(SHAPE).astype(np.float32)  # as after normalisation
    assert len(simulate_varied(np.zeros(SHAPE, bool), pet, 0, 10, rng)) == 10


@sources
def test_patch_that_is_all_lesion(scheme: Scheme, pet: Image) -> None:
    clicks = scheme(np.ones(SHAPE, bool), pet, 10, 10, np.random.default_rng(0))
    assert len(clicks.of_kind("tumor")) >= 10
    assert len(clicks.of_kind("background")) == 0


@sources
def test_patch_without_lesion_gets_background_clicks_only(scheme: Scheme, pet: Image) -> None:
    clicks = scheme(np.zeros(SHAPE, bool), pet, 10, 10, np.random.default_rng(0))
    assert len(clicks.of_kind("tumor")) == 0
    assert len(clicks.of_kind("background")) >= 10


@sources
def test_flat_pet(scheme: Scheme, lesion: Mask) -> None:
    """Uptake that is the same everywhere draws no click by uptake; all of it is hot for the others."""
    clicks = scheme(lesion, np.zeros(SHAPE, np.float32), 3, 3, np.random.default_rng(0))
    assert len(clicks.of_kind("tumor")) >= 3
    assert (len(clicks.of_kind("background")) == 0) == (scheme is simulate_varied)
    assert not at(lesion, clicks.of_kind("background")).any()


@sources
def test_a_seed_gives_the_same_clicks(scheme: Scheme, lesion: Mask, pet: Image) -> None:
    first, again, other = (scheme(lesion, pet, 5, 5, np.random.default_rng(seed)) for seed in (3, 3, 4))
    assert same(first, again)
    assert not same(first, other)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32), n_tumor=st.integers(0, 12), n_background=st.integers(0, 12))
def test_corrections_lie_on_errors(seed: int, n_tumor: int, n_background: int) -> None:
    rng = np.random.default_rng(seed)
    lesion, predicted = (
        ndimage.gaussian_filter(rng.standard_normal(SHAPE), 2) > rng.uniform(0.05, 0.15) for _ in range(2)
    )
    before = lesion.copy(), predicted.copy()
    clicks = simulate_errors(lesion, predicted, n_tumor, n_background, np.random.default_rng(seed))
    again = simulate_errors(lesion, predicted, n_tumor, n_background, np.random.default_rng(seed))
    np.testing.assert_array_equal(lesion, before[0])
    np.testing.assert_array_equal(predicted, before[1])
    assert same(clicks, again)
    for kind, error, n in (
        ("tumor", lesion & ~predicted, n_tumor),
        ("background", predicted & ~lesion, n_background),
    ):
        points = clicks.of_kind(kind)
        assert at(error, points).all()
        assert len(np.unique(points, axis=0)) == len(points) == min(n, np.count_nonzero(error))


def test_corrections_go_to_the_largest_errors_first() -> None:
    missed, small, false = ball((8, 12, 8), 5.2), ball((8, 12, 20), 2.2), ball((8, 3, 27), 3.2)
    lesion = missed | small
    for seed in range(10):
        clicks = simulate_errors(lesion, false, 2, 1, np.random.default_rng(seed))
        first, second = clicks.of_kind("tumor")
        assert missed[tuple(first)]
        assert small[tuple(second)]
        assert depth(missed)[tuple(first)] >= depth(missed).max() / 2
        assert false[tuple(clicks.of_kind("background")[0])]


def test_long_error_gets_several_corrections_apart_from_one_another() -> None:
    long, speck = np.zeros(SHAPE, bool), np.zeros(SHAPE, bool)
    long[6:11, 8:13, 1:30] = True
    speck[16, 20, 15] = True
    for seed in range(10):
        rng = np.random.default_rng(seed)
        clicks = simulate_errors(long | speck, np.zeros(SHAPE, bool), 4, 4, rng).of_kind("tumor")
        assert at(long, clicks).all()
        apart = np.linalg.norm(clicks[:, None] - clicks, axis=2)[~np.eye(4, dtype=bool)]
        assert apart.min() > 4


@pytest.mark.parametrize("size", [48, 49, 50, 51, 52, 100])
def test_first_correction_of_a_large_error_lies_at_its_centre(size: int) -> None:
    error = np.zeros((size + 40, size + 25, size + 30), bool)
    error[20 : 20 + size, 11 : 11 + size, 4 : 4 + size] = True
    click = simulate_errors(error, np.zeros_like(error), 1, 0, np.random.default_rng(0)).index_zyx[0]
    centre = np.array([20, 11, 4]) + (size - 1) / 2
    assert np.abs(click - centre).max() <= JITTER_VOX + 2  # half a sampling step, and as much of its depth


def test_first_correction_of_a_large_uneven_error_lies_in_its_thick_part() -> None:
    error = np.zeros((90, 80, 100), bool)
    error[20:70, 11:61, 4:54] = True
    error[40:50, 30:40, 54:94] = True  # a thin arm, towards the high face
    click = simulate_errors(error, np.zeros_like(error), 1, 0, np.random.default_rng(0)).index_zyx[0]
    assert np.abs(click - np.array([44.5, 35.5, 28.5])).max() <= JITTER_VOX + 4


def test_corrections_of_a_right_prediction_are_none(lesion: Mask) -> None:
    assert len(simulate_errors(lesion, lesion, 10, 10, np.random.default_rng(0))) == 0


@pytest.mark.parametrize("predicted", [np.ones(SHAPE, bool), np.zeros(SHAPE, bool)])
def test_corrections_of_a_patch_that_is_all_wrong(predicted: Mask) -> None:
    clicks = simulate_errors(~predicted, predicted, 5, 5, np.random.default_rng(0)).index_zyx
    assert len(clicks) == 5
    apart = np.linalg.norm(clicks[:, None] - clicks, axis=2)[~np.eye(5, dtype=bool)]
    assert apart.min() > 5


def test_mask_of_one_slice_is_labelled_right() -> None:
    """cc3d 4.1 invents voxels there when it is given booleans."""
    mask = np.zeros((1, 7, 9), bool)
    mask[0, 6, 8] = True
    found = Components(mask)
    np.testing.assert_array_equal(found.sizes, [1])
    assert np.count_nonzero(found.cut_out(0).free) == 1
