"""Stamps against the published values, channels against one loop per click, and guidance.json."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import cdist

from petclick.clicks import ClickSet, click_set
from petclick.errors import InputError
from petclick.guidance import FILE_NAME, GuidanceSpec, encode, load_spec, save_spec, stamp

SHAPE = (9, 14, 11)


def one_by_one(clicks: ClickSet, shape: tuple[int, int, int], spec: GuidanceSpec) -> npt.NDArray[np.float32]:
    """The definition: one stamp after the other, maximum, in a volume large enough that nothing is cut."""
    one = stamp(spec)
    reach = one.shape[0] // 2
    padded = np.zeros((2, *(n + 2 * reach for n in shape)), np.float32)
    for kind, (z, y, x) in zip(clicks.kind, clicks.index_zyx, strict=True):
        n = one.shape[0]
        here = padded[kind, z : z + n, y : y + n, x : x + n]
        np.maximum(here, one, out=here)
    return padded[:, reach:-reach, reach:-reach, reach:-reach]


@st.composite
def click_sets(draw: st.DrawFn) -> ClickSet:
    voxel = st.tuples(*(st.integers(0, n - 1) for n in SHAPE))
    points = draw(st.lists(voxel, max_size=25))
    kinds = draw(st.lists(st.integers(0, 1), min_size=len(points), max_size=len(points)))
    return ClickSet(np.reshape(np.array(points, np.int64), (-1, 3)), np.array(kinds, np.int64))


specs = st.one_of(
    st.builds(GuidanceSpec, radius_vox=st.integers(1, 5)),
    st.builds(GuidanceSpec, encoding=st.just("gaussian"), sigma_vox=st.sampled_from([0.1, 0.7, 1, 1.5])),
)


def test_stamp_of_radius_2_has_the_published_values() -> None:
    one = stamp(GuidanceSpec())
    assert one.shape == (5, 5, 5)
    assert one.dtype == np.float32
    values, counts = np.unique(one, return_counts=True)
    np.testing.assert_array_equal(counts, [125 - 33, 26, 6, 1])
    np.testing.assert_allclose(values, [0, 0.4472, 0.6325, 1], atol=5e-5)
    assert one[2, 2, 2] == 1
    faces = [one[1, 2, 2], one[3, 2, 2], one[2, 1, 2], one[2, 3, 2], one[2, 2, 1], one[2, 2, 3]]
    np.testing.assert_allclose(faces, np.sqrt(0.4), rtol=1e-6)
    assert one[0, 2, 2] == pytest.approx(np.sqrt(0.2))


@pytest.mark.parametrize(("radius", "count"), [(2, 33), (3, 123), (4, 257)])
def test_stamp_holds_the_distance_to_the_nearest_voxel_outside_the_ball(radius: int, count: int) -> None:
    one = stamp(GuidanceSpec(radius_vox=radius))
    voxels = np.argwhere(np.ones(one.shape))
    inside = ((voxels - radius) ** 2).sum(axis=1) <= radius**2
    nearest = cdist(voxels, voxels[~inside]).min(axis=1)
    assert np.count_nonzero(one) == count
    np.testing.assert_allclose(one.ravel(), nearest / nearest.max(), rtol=1e-6)


def test_gaussian_stamp() -> None:
    one = stamp(GuidanceSpec(encoding="gaussian", sigma_vox=1.5))
    assert one.shape == (11, 11, 11)
    assert one[5, 5, 5] == 1
    assert one[5, 7, 6] == pytest.approx(np.exp(-5 / (2 * 1.5**2)))
    assert one[0, 0, 5] == 0, "beyond 3 sigma"


def test_stamp_cannot_be_written_into() -> None:
    with pytest.raises(ValueError, match="read-only"):
        stamp(GuidanceSpec())[0, 0, 0] = 1


@settings(deadline=None)
@given(clicks=click_sets(), spec=specs)
def test_encode_equals_one_stamp_after_the_other(clicks: ClickSet, spec: GuidanceSpec) -> None:
    channels = encode(clicks, SHAPE, spec)
    assert channels.dtype == np.float32
    np.testing.assert_array_equal(channels, one_by_one(clicks, SHAPE, spec))


def test_encode_puts_tumour_clicks_first_and_cuts_at_the_border() -> None:
    tumor, background = encode(click_set([[0, 0, 0]], [[8, 7, 5]]), SHAPE, GuidanceSpec())
    assert tumor[0, 0, 0] == background[8, 7, 5] == 1
    # an eighth of the ball, faces and edges included; the half below the last slice
    assert np.count_nonzero(tumor) == 1 + 3 * 2 + 3 + 1
    assert np.count_nonzero(background) == 13 + 9 + 1


def test_encode_of_no_clicks_is_zero() -> None:
    channels = encode(click_set([], []), SHAPE, GuidanceSpec())
    assert channels.shape == (2, *SHAPE)
    assert not channels.any()


def test_encode_takes_thousands_of_points() -> None:
    rng = np.random.default_rng(3)
    points = rng.integers(0, SHAPE, (6000, 3))
    clicks = click_set(points[:3000], points[3000:])
    np.testing.assert_array_equal(
        encode(clicks, SHAPE, GuidanceSpec()), one_by_one(clicks, SHAPE, GuidanceSpec())
    )


@pytest.mark.cuda
def test_cupy_draws_the_same_bits() -> None:
    cupy = pytest.importorskip("cupy", reason="CuPy is not installed")
    if not cupy.is_available():
        pytest.skip("no NVIDIA device")
    rng = np.random.default_rng(4)
    points = rng.integers(0, SHAPE, (40, 3))
    clicks = click_set(points[:20], points[20:])
    on_gpu = encode(clicks, SHAPE, GuidanceSpec(), cupy)
    np.testing.assert_array_equal(cupy.asnumpy(on_gpu), encode(clicks, SHAPE, GuidanceSpec()))


def test_spec_survives_its_file(tmp_path: Path) -> None:
    spec = GuidanceSpec("gaussian", 3, 0.5, "RAS")
    save_spec(spec, tmp_path / FILE_NAME)
    assert load_spec(tmp_path / FILE_NAME) == spec


def test_no_file_means_the_published_encoding(tmp_path: Path) -> None:
    assert load_spec(tmp_path / FILE_NAME) == GuidanceSpec("edt", 2, 1.0, None)


def test_keys_left_out_keep_their_defaults(tmp_path: Path) -> None:
    (tmp_path / FILE_NAME).write_text('{"radius_vox": 4}')
    assert load_spec(tmp_path / FILE_NAME) == GuidanceSpec(radius_vox=4)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "must be JSON"),
        ("[]", r"the file must be a mapping, got \[\]"),
        ('{"radius": 2, "sigma": 1}', "keys of the file must be among .*radius_vox.*, got 'radius', 'sigma'"),
        ('{"encoding": "disk"}', "encoding must be 'edt' or 'gaussian', got 'disk'"),
        ('{"encoding": ["edt"]}', "encoding must be"),
        ('{"radius_vox": 2.0}', "radius_vox must be of type int, got 2.0"),
        ('{"radius_vox": true}', "radius_vox must be of type int, got True"),
        ('{"radius_vox": 0}', "radius_vox must be a whole number from 1 to 16, got 0"),
        ('{"postprocess": {"split": 1}}', "postprocess.split must be of type bool, got 1"),
        ('{"postprocess": {"split": null}}', "postprocess.split must be of type bool, got None"),
        ('{"postprocess": null}', "postprocess must be a mapping, got None"),
        ('{"sigma_vox": null}', "sigma_vox must be of type float, got None"),
        (f'{{"sigma_vox": 1{400 * "0"}}}', "sigma_vox must be a number in a float's range, got 1000"),
        (f'{{"postprocess": {{"close_mm": 1{400 * "0"}}}}}', "postprocess.close_mm must be a number in a"),
        ('{"postprocess": {"cut": true}}', "keys of postprocess must be among .*split.*, got 'cut'"),
        ('{"sigma_vox": NaN}', "sigma_vox must be a number above 0, up to 16, got nan"),
        ('{"sigma_vox": "1"}', "sigma_vox must be of type float, got '1'"),
        ('{"orientation": "LPP"}', "orientation must be an axis code such as 'LPS', or null, got 'LPP'"),
        ('{"orientation": ["L", "P", "S"]}', "orientation must be an axis code"),
    ],
)
def test_bad_file_is_refused(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / FILE_NAME).write_text(content)
    with pytest.raises(InputError, match=message) as error:
        load_spec(tmp_path / FILE_NAME)
    assert str(tmp_path) in str(error.value)
    assert FILE_NAME in str(error.value)


def test_light_modules_import_neither_torch_nor_nnunet() -> None:
    modules = ["grid", "clicks", "orientation", "guidance", "simulate", "images", "sockets", "cli", "program"]
    code = (
        f"import json, sys, {', '.join(f'petclick.{module}' for module in modules)}\n"
        "print(json.dumps(sorted({'torch', 'nnunetv2', 'matplotlib'} & set(sys.modules))))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, encoding="utf-8", check=True)
    assert json.loads(result.stdout) == []
