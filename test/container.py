"""Run the images as the platform does: `python test/container.py ENGINE EXEC_IMAGE INVOKE_IMAGE BASE_IMAGE`.

No network, nothing writable but /output and /tmp, no capabilities, a user that is not root and has no home.
The demo case is run by both APIs and compared with `test/expected`; the server is also given a broken job,
one more click, and another case. Then the images are removed, and one is loaded from what was saved, and run.
"""

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import SimpleITK as sitk
from compare_masks import main as compare

ROOT = Path(__file__).resolve().parents[1]
DEMO, EXPECTED, WEIGHTS = ROOT / "test" / "input", ROOT / "test" / "expected", ROOT / "resources"
MOST_ADDED_BYTES = 10**9
ONE_MORE_CLICK = {"point": [20, 20, 20], "name": "background"}
REQUEST = """
import sys, urllib.error, urllib.request
request = urllib.request.Request("http://127.0.0.1:4743" + sys.argv[2], method=sys.argv[1])
try:
    answer = urllib.request.urlopen(request)
except urllib.error.HTTPError as error:
    answer = error
except urllib.error.URLError:  # it does not listen yet
    print(0)
    sys.exit()
print(answer.status, answer.read().decode())
"""
PROBE = """
import os, pathlib
readonly = ("/", "/opt/app", "/opt/venv", "/input", "/opt/ml/model", "/etc")
places = [place for place in readonly if os.access(place, os.W_OK)]
added = [*pathlib.Path("/opt/venv").rglob("*"), *pathlib.Path("/opt/app").rglob("*")]
names = {"gcc", "cc", "clang", "nvcc", "tests", "test", ".cache", "pip"}
print(*places, *(path for path in added if path.name in names), *pathlib.Path("/tmp").iterdir())
"""


class Container:
    """The folders that a container sees, and how it is run."""

    def __init__(self, engine: str, folder: Path) -> None:
        self.engine = engine
        self.input, self.output, self.model = (folder / name for name in ("input", "output", "model"))
        shutil.copytree(DEMO, self.input)
        shutil.copytree(WEIGHTS, self.model)
        self.output.mkdir()
        self.output.chmod(0o777)
        user = os.getuid() or 4711
        self._options = [
            *("--platform", "linux/amd64", "--network", "none", "--read-only", "--tmpfs", "/tmp"),
            *("--shm-size", "64m", "--cap-drop", "ALL", "--security-opt", "no-new-privileges"),
            *("--user", f"{user}:{user}", "--env", "PETCLICK_PRECISION=fp32"),
            *("--env", "PETCLICK_TIME_LIMIT="),  # a slow machine must not leave anything out
            *("--volume", f"{self.input}:/input:ro", "--volume", f"{self.output}:/output"),
        ]

    def call(self, *arguments: str, expect: int = 0) -> str:
        """What the engine prints."""
        done = subprocess.run([self.engine, *arguments], capture_output=True, text=True, check=False)
        if done.returncode != expect:
            sys.exit(f"{' '.join(arguments)[:200]}: exit code {done.returncode}\n{done.stdout}{done.stderr}")
        return done.stdout + done.stderr

    def run(self, image: str, *arguments: str, model: bool = True, entrypoint: str = "") -> str:
        """What a container prints that is removed at its end."""
        more = ["--volume", f"{self.model}:/opt/ml/model:ro"] if model else []
        more += ["--entrypoint", entrypoint] if entrypoint else []
        return self.call("run", "--rm", *self._options, *more, image, *arguments)

    @contextlib.contextmanager
    def started(self, image: str) -> Iterator[str]:
        """A container in the background; its number."""
        number = self.call("run", "--detach", *self._options, image).split()[-1]
        try:
            yield number
        finally:
            subprocess.run([self.engine, "rm", "--force", number], capture_output=True, check=False)

    def ask(self, number: str, method: str, path: str) -> tuple[int, str]:
        """Status and body of a request, made within the container."""
        status, _, body = self.call("exec", number, "python", "-c", REQUEST, method, path).partition(" ")
        return int(status), body

    def written(self) -> list[Path]:
        return [path for path in self.output.rglob("*") if path.is_file()]

    def empty_output(self) -> None:
        for path in sorted(self.output.rglob("*"), reverse=True):
            path.rmdir() if path.is_dir() else path.unlink()


def require(fact: bool, what: str) -> None:
    if not fact:
        sys.exit(f"container: {what}")


def check_exec(container: Container, image: str, model: bool) -> None:
    start = time.monotonic()
    log = container.run(image, model=model)
    folder = "/opt/ml/model" if model else "/opt/app/resources"
    require(f"model {folder}:" in log, f"the model of {folder} must be used:\n{log}")
    require(compare(EXPECTED, container.output) == 0, "the mask must be the expected one")
    container.empty_output()
    print(f"exec, model of {folder}: {time.monotonic() - start:.1f} s with the container's start")


def invoke(container: Container, number: str, status: int) -> float:
    """One job; how many seconds it took."""
    start = time.monotonic()
    got = container.ask(number, "POST", "/invoke")
    require(got[0] == status, f"POST /invoke must be answered with {status}, got {got}")
    return time.monotonic() - start


def check_invoke(container: Container, image: str) -> None:
    clicks = container.input / "lesion-clicks.json"
    good = clicks.read_text()
    with container.started(image) as number:
        start = time.monotonic()
        while (health := container.ask(number, "GET", "/health")[0]) != 200:
            require(health in (0, 503) and time.monotonic() - start < 300, f"GET /health answers {health}")
            time.sleep(0.5)
        print(f"invoke: healthy after {time.monotonic() - start:.1f} s")
        first = invoke(container, number, 201)
        require(compare(EXPECTED, container.output) == 0, "the mask must be the expected one")
        container.empty_output()

        clicks.write_text("{")
        invoke(container, number, 422)
        require(container.written() == [], "a refused job must leave nothing")

        content = json.loads(good)
        content["points"].append(ONE_MORE_CLICK)
        clicks.write_text(json.dumps(content))
        second = invoke(container, number, 201)
        check_geometry(container, DEMO)
        container.empty_output()

        other_case(container.input)
        third = invoke(container, number, 201)
        check_geometry(container, container.input)
        container.empty_output()
        print(f"invoke: {first:.1f} s, {second:.1f} s with one more click, {third:.1f} s for half the case")

        start = time.monotonic()
        container.call("stop", "--time", "10", number)
        seconds = time.monotonic() - start
        code = container.call("inspect", "--format", "{{.State.ExitCode}}", number).strip()
        require(code == "0" and seconds < 6, f"SIGTERM: exit code {code} after {seconds:.1f} s")


def other_case(folder: Path) -> None:
    """The lower half of the case, without clicks."""
    for path in folder.glob("images/*/*.mha"):
        image = sitk.ReadImage(str(path))
        sitk.WriteImage(image[:, :, : image.GetDepth() // 2], str(path.with_name("half.mha")), True)
        path.unlink()
    (folder / "lesion-clicks.json").unlink()


def check_geometry(container: Container, source: Path) -> None:
    """One mask of the PET's grid has been written."""
    (mask,), (pet,) = container.written(), source.glob("images/pet/*.mha")
    mask_image, pet_image = sitk.ReadImage(str(mask)), sitk.ReadImage(str(pet))
    require(mask_image.IsSameImageGeometryAs(pet_image, 1e-6, 1e-6), f"{mask.name} must lie on PET's grid")


def check_image(container: Container, image: str, base: str) -> None:
    """What an image adds to its base."""
    print("engine:", container.call("--version").strip())
    probe = container.run(image, "-c", PROBE, entrypoint="python").strip()
    require(not probe, f"the image must hold no compiler, test or cache, and be read-only: {probe}")
    sizes = [int(container.call("image", "inspect", "--format", "{{.Size}}", name)) for name in (image, base)]
    weights = sum(path.stat().st_size for path in WEIGHTS.rglob("*") if path.is_file())
    added = sizes[0] - sizes[1] - weights
    parts = f"{added / 1e6:.0f} of its own and {weights / 1e6:.1f} of weights"
    print(f"image: {sizes[0] / 1e6:.0f} MB, {parts}, on {base}")
    require(added <= MOST_ADDED_BYTES, "the image must add at most 1 GB")


def main(engine: str, exec_image: str, invoke_image: str, base: str) -> None:
    with tempfile.TemporaryDirectory(prefix="petclick-") as folder:
        Path(folder).chmod(0o755)
        container = Container(engine, Path(folder))
        check_image(container, exec_image, base)
        check_exec(container, exec_image, model=True)
        saved = Path(folder) / "image.tar.gz"
        subprocess.run(f"{engine} save {exec_image} | gzip -1 > {saved}", shell=True, check=True)
        check_invoke(container, invoke_image)
        shutil.rmtree(container.input)
        shutil.copytree(DEMO, container.input)
        container.call("rmi", exec_image, invoke_image)
        start = time.monotonic()
        subprocess.run(
            f"gunzip -c {saved} | {engine} load", shell=True, check=True, stdout=subprocess.DEVNULL
        )
        megabytes = saved.stat().st_size / 1e6
        print(f"saved to {megabytes:.0f} MB, removed, loaded in {time.monotonic() - start:.1f} s")
        check_exec(container, exec_image, model=False)


if __name__ == "__main__":
    if len(sys.argv) != 5:
        sys.exit(__doc__)
    main(*sys.argv[1:])
