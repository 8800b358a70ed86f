"""Where inputs are found: the usual places, inputs.json, and what is refused."""

import json
import os
import stat
from pathlib import Path

import pytest

from petclick.errors import InputError
from petclick.files import require_writable
from petclick.sockets import find_inputs, output_path


@pytest.fixture
def job(tmp_path: Path) -> Path:
    """An input folder in the platform's layout; finding looks at no content but that of inputs.json."""
    folder = tmp_path / "input"
    for name in ("images/ct/uuid-1.mha", "images/pet/uuid-2.nii.gz", "lesion-clicks.json"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("content")
    return folder


def entry(slug: object, relative_path: object, key: str = "socket") -> dict[str, object]:
    return {key: {"slug": slug, "relative_path": relative_path, "kind": "Image"}, "image": {"name": "a.mha"}}


def refusal(job: Path, where: str, inputs: object = None) -> str:
    if inputs is not None:
        (job / "inputs.json").write_text(json.dumps(inputs))
    with pytest.raises(InputError) as caught:
        find_inputs(job)
    message = str(caught.value)
    assert message.startswith(f"{job / where}: ")
    return message.removeprefix(f"{job / where}: ")


def test_usual_places(job: Path) -> None:
    (job / "images/ct/.hidden.mha").write_text("")
    (job / "images/ct/notes.txt").write_text("")
    inputs = find_inputs(job)
    assert inputs.ct == job / "images/ct/uuid-1.mha"
    assert inputs.pet == job / "images/pet/uuid-2.nii.gz"
    assert inputs.clicks == job / "lesion-clicks.json"


def test_a_missing_click_file_is_none(job: Path) -> None:
    (job / "lesion-clicks.json").unlink()
    assert find_inputs(job).clicks is None


@pytest.mark.parametrize("key", ["socket", "interface"])
def test_inputs_json_says_where(job: Path, key: str) -> None:
    (job / "images/ct").rename(job / "images/primary")
    (job / "lesion-clicks.json").rename(job / "scribbles.json")
    entries = [
        entry("ct-image", "images/primary", key),
        entry("another-name", "images/pet", key),
        entry("lesion-clicks", "scribbles.json", key),
        entry("age-in-months", "age.json", key),
    ]
    (job / "inputs.json").write_text(json.dumps(entries))
    inputs = find_inputs(job)
    assert inputs.ct == job / "images/primary/uuid-1.mha"
    assert inputs.pet == job / "images/pet/uuid-2.nii.gz"
    assert inputs.clicks == job / "scribbles.json"


def test_inputs_json_need_not_name_everything(job: Path) -> None:
    (job / "inputs.json").write_text("[]")
    assert find_inputs(job).clicks == job / "lesion-clicks.json"


@pytest.mark.parametrize(
    "relative", ["../elsewhere", "images/../../elsewhere", "/etc", "link", "link/deeper", "images/ct\0"]
)
def test_a_place_outside_the_input_folder_is_refused(job: Path, relative: str) -> None:
    (job.parent / "elsewhere" / "deeper").mkdir(parents=True)
    (job / "link").symlink_to(job.parent / "elsewhere")
    message = refusal(job, "inputs.json", [entry("ct", relative)])
    assert message == f"[0] relative_path must stay in the input folder, got {relative!r}"


def test_a_loop_of_links_is_refused(job: Path) -> None:
    (job / "loop").symlink_to(job / "loop")
    (job / "inputs.json").write_text(json.dumps([entry("ct", "loop")]))
    with pytest.raises(InputError, match="loop"):
        find_inputs(job)


def test_links_within_the_input_folder_are_fine(job: Path, tmp_path: Path) -> None:
    (job / "link").symlink_to(job / "images" / "ct")
    (job / "inputs.json").write_text(json.dumps([entry("ct", "link")]))
    (job / "images/ct/uuid-1.mha").rename(job / "archive.mha")
    (job / "images/ct/uuid-1.mha").symlink_to(Path("../../archive.mha"))
    assert find_inputs(job).ct == job / "link/uuid-1.mha"
    (tmp_path / "input-link").symlink_to(job)
    assert find_inputs(tmp_path / "input-link").pet == tmp_path / "input-link/images/pet/uuid-2.nii.gz"


@pytest.mark.parametrize("name", ["images/ct/uuid-1.mha", "images/pet", "images", "lesion-clicks.json"])
def test_links_that_leave_the_input_folder_are_refused(job: Path, tmp_path: Path, name: str) -> None:
    (job / name).rename(tmp_path / "elsewhere")
    (job / name).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(InputError, match="must stay in the input folder, but a link leads out of it"):
        find_inputs(job)


@pytest.mark.parametrize("name", ["images/ct/uuid-1.mha", "lesion-clicks.json", "inputs.json"])
@pytest.mark.parametrize("kind", ["pipe", "device", "socket", "folder"])
def test_what_is_no_regular_file_is_refused(job: Path, name: str, kind: str) -> None:
    path = job / name
    path.unlink(missing_ok=True)
    if kind == "folder":
        path.mkdir()
    elif kind == "device" and os.geteuid():
        pytest.skip("only root may make devices")
    else:
        types = {"pipe": stat.S_IFIFO, "device": stat.S_IFCHR, "socket": stat.S_IFSOCK}
        os.mknod(path, 0o600 | types[kind], os.makedev(1, 5))  # as /dev/zero
    assert refusal(job, name) == "must be a regular file"


def test_every_bad_entry_of_inputs_json_is_in_one_message(job: Path) -> None:
    entries = [
        3,
        {},
        entry("ct", 5),
        {"socket": "ct"},
        entry("ct", "images/ct"),
        entry("ct-image", "images/ct"),
    ]
    rule = "must have a socket with slug and relative_path, got"
    message = refusal(job, "inputs.json", entries)
    assert message.startswith(f"[0] {rule} 3; [1] {rule} {{}}; [2] {rule} {{'image': {{")
    assert f"[3] {rule} {{'socket': 'ct'}}" in message
    assert message.endswith("[5] must not be a second socket for 'ct', got 'ct-image'")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{", "must be JSON in UTF-8 ("),
        ("{}", "must be a list with an object per socket, got {}"),
        ("null", "must be a list with an object per socket, got None"),
    ],
)
def test_malformed_inputs_json(job: Path, text: str, reason: str) -> None:
    (job / "inputs.json").write_text(text)
    assert refusal(job, "inputs.json").startswith(reason)


RULE = "must be a folder with exactly one image (.mha, .nii.gz, .nii, .nrrd, .tif, .tiff), got "


def test_a_folder_without_or_with_several_images(job: Path) -> None:
    folder = job / "images/ct"
    (folder / "second.NRRD").write_text("")
    assert refusal(job, "images/ct") == RULE + "2: second.NRRD; uuid-1.mha"
    (folder / "second.NRRD").unlink()
    (folder / "uuid-1.mha").rename(folder / "uuid-1.dcm")
    assert refusal(job, "images/ct") == RULE + "0: uuid-1.dcm"
    (folder / "uuid-1.dcm").unlink()
    (folder / ".hidden.mha").write_text("")
    assert refusal(job, "images/ct") == RULE + "an empty folder"


def test_many_files_are_not_all_listed(job: Path) -> None:
    for number in range(500):
        (job / f"images/pet/slice{number:03}.dcm").write_text("")
    (job / "images/pet/uuid-2.nii.gz").unlink()
    assert refusal(job, "images/pet").endswith("slice006.dcm; slice007.dcm; and 492 more")


def test_no_folder_and_a_file_in_its_place(job: Path) -> None:
    (job / "images/ct").rename(job / "images/other")
    assert refusal(job, "images/ct") == RULE + "'No such file or directory'"
    (job / "images/ct").write_text("")
    assert refusal(job, "images/ct") == RULE + "'Not a directory'"


@pytest.mark.parametrize("name", ["images/pet/uuid-2.nii.gz", "lesion-clicks.json"])
def test_only_regular_files(job: Path, name: str) -> None:
    (job / name).unlink()
    os.mkfifo(job / name)
    assert refusal(job, name) == "must be a regular file"
    (job / name).unlink()
    (job / name).symlink_to(job / "absent")
    assert refusal(job, name) == "must be a regular file"
    (job / name).unlink()
    (job / name).mkdir()
    assert refusal(job, name) == "must be a regular file"


def test_output_is_named_like_the_case() -> None:
    expected = Path("/output/images/tumor-lesion-segmentation/uuid.1.mha")
    assert output_path(Path("/output"), "uuid.1") == expected


def test_asking_whether_a_folder_can_be_written_makes_nothing(tmp_path: Path) -> None:
    require_writable(tmp_path / "new" / "deeper")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(
        InputError, match=r"deeper: must be a folder that can be written to, got .*file, which cannot"
    ):
        require_writable(tmp_path / "file" / "deeper")
    monkeypatch.setattr(os, "access", lambda *_: False)  # a read-only mount, for root too
    with pytest.raises(InputError, match="new: must be a folder that can be written to"):
        require_writable(tmp_path / "new")
