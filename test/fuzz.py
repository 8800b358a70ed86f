"""Feed the program broken and hostile inputs: `python test/fuzz.py --count 20000`.

Each input is one whole job with one broken file. The answer must be exit code 0 with one valid mask, or 2
with a last line that tells why and nothing in the output folder; within 10 s of CPU time and 2 GB. An input
that is answered otherwise is kept in the folder --keep, under its number, from which it can be made again.
"""

import argparse
import json
import shutil
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from broken_images import broken_image, valid_image
from broken_json import CLICKS, INPUTS, broken_json
from sandbox import Answer, Sandbox

BATCH = 50
"""Runs of one process."""
MOST_SECONDS = 10.0
MOST_BYTES = 2 * 10**9
KINDS = (".mha", ".nii", ".nii.gz", ".nrrd", ".tif", "clicks", "inputs")
OPTIONS = ("--device", "cpu", "--precision", "fp32", "--mirror-axes", "none", "--step-size", "1", "--quiet")


def make_job(folder: Path, kind: str, rng: np.random.Generator) -> Path:
    """Write a case with one broken file, which is returned; both images are of the broken one's format."""
    broken_role = ("ct", "pet")[int(rng.integers(2))] if kind.startswith(".") else ""
    for role in ("ct", "pet"):
        path = folder / "images" / role / f"{role}{kind if broken_role else '.mha'}"
        path.parent.mkdir(parents=True)
        (broken_image if role == broken_role else valid_image)(rng, path)
    clicks, inputs = folder / "lesion-clicks.json", folder / "inputs.json"
    clicks.write_bytes(broken_json(rng, CLICKS) if kind == "clicks" else json.dumps(CLICKS).encode())
    if kind == "inputs":
        inputs.write_bytes(broken_json(rng, INPUTS))
    broken = folder / "images" / broken_role / f"{broken_role}{kind}"
    return {"clicks": clicks, "inputs": inputs}.get(kind, broken)


def what_is_wrong(got: Answer, output: Path) -> str | None:
    """Why an answer is not one of those that are right; None where it is."""
    written = [path for path in output.rglob("*") if not path.is_dir()]
    if got.code == 2:
        if written or not got.last_line.startswith("error: "):
            return f"refused with {len(written)} files and the last line {got.last_line[:80]!r}"
    elif got.code != 0:
        return f"exit code {got.code}"
    elif [path.name for path in written] != ["ct.mha"]:
        return f"done with {len(written)} files"
    else:
        mask = sitk.GetArrayFromImage(sitk.ReadImage(str(written[0])))
        if mask.dtype != np.uint8 or mask.ndim != 3 or mask.max() > 1:
            return "done with a mask that is none"
    if got.seconds > MOST_SECONDS or got.peak_bytes > MOST_BYTES:
        return f"took {got.seconds:.1f} s and {got.peak_bytes / 1e9:.1f} GB"
    return None


def tiny_model(folder: Path) -> None:
    """A model folder with a network of a few thousand weights."""
    import torch
    from conftest import nnunet_checkpoint, nnunet_dataset, nnunet_plans

    plans = nnunet_plans()
    weights = nnunet_checkpoint(plans, "0", 0)["network_weights"]
    (folder / "fold_0").mkdir(parents=True)
    torch.save({"network_weights": weights}, folder / "fold_0" / "checkpoint_final.pth")
    (folder / "plans.json").write_text(json.dumps(plans))
    (folder / "dataset.json").write_text(json.dumps(nnunet_dataset()))
    (folder / "guidance.json").write_text("{}")


def fuzz(count: int, first: int, seed: int, keep: Path, sandbox: Sandbox) -> list[str]:
    """Try `count` inputs; prints what they were answered with, and returns what was wrong."""
    answers: Counter[tuple[str, str]] = Counter()
    slowest, largest, wrong, start = 0.0, 0, [], time.monotonic()
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
        tiny_model(Path(folder) / "model")
        for begin in range(first, first + count, BATCH):
            numbers = range(begin, min(begin + BATCH, first + count))
            jobs = {number: Path(folder) / str(number) for number in numbers}
            broken = {number: _prepare(jobs[number], number, seed) for number in numbers}
            for number, got in zip(numbers, sandbox.run_all([*map(_arguments, jobs.values())]), strict=True):
                kind = KINDS[number % len(KINDS)]
                problem = what_is_wrong(got, jobs[number] / "output")
                if problem:
                    wrong.append(f"input {number} ({kind}): {problem}: {got.last_line[:200]}")
                    print(wrong[-1], flush=True)
                    keep.mkdir(parents=True, exist_ok=True)
                    shutil.copy(broken[number], keep / f"{number}-{broken[number].name}")
                    (keep / f"{number}.txt").write_text(f"{wrong[-1]}\n{got.stderr}")
                answers[kind, "wrong" if problem else ("done", "", "refused")[got.code]] += 1
                slowest, largest = max(slowest, got.seconds), max(largest, got.peak_bytes)
                shutil.rmtree(jobs[number])
    for kind in KINDS:
        print(kind.ljust(8), *(f"{word} {answers[kind, word]:5}" for word in ("done", "refused", "wrong")))
    print(
        f"{count} inputs of seed {seed} in {time.monotonic() - start:.0f} s: {len(wrong)} answered wrongly;",
        f"the slowest took {slowest:.1f} s of CPU time, the largest {largest / 1e9:.2f} GB",
    )
    return wrong


def _prepare(job: Path, number: int, seed: int) -> Path:
    (job / "output").mkdir(parents=True)
    return make_job(job / "input", KINDS[number % len(KINDS)], np.random.default_rng([seed, number]))


def _arguments(job: Path) -> list[object]:
    places = ("--input", job / "input", "--output", job / "output", "--model", job.parent / "model")
    return [*places, *OPTIONS]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--count", type=int, default=20_000)
    parser.add_argument("--first", type=int, default=0, help="number of the first input (default: 0)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, default=Path("fuzz-failures"))
    chosen = parser.parse_args()
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # petclick, for the tests' fixtures
    sandbox = Sandbox()
    failures = fuzz(chosen.count, chosen.first, chosen.seed, chosen.keep, sandbox)
    sandbox.close()
    sys.exit(bool(failures))
