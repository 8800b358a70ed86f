"""Cross-validated results of a data set: `python -m petclick evaluate`, with nnU-Net's folders.

    python -m training.validate Dataset601_STS MODEL_FOLDER OUT [--folds 0,1] [--steps 0,1,3,5,10]

Each case by the fold that has not seen it, with the official scheme's clicks, beside region growing at 41 %
of the local SUVmax. OUT gets the report; a run that was killed goes on where it stopped.
"""

import argparse

from petclick.__main__ import main as evaluate
from petclick.program import run
from training.preprocess import nnunet_folder

METHODS = "network,growing41"


def main(arguments: list[str] | None = None) -> None:
    """Command line of this module."""
    parser = argparse.ArgumentParser(
        prog="python -m training.validate",
        description=(__doc__ or "").split("\n")[0],
        epilog="Other flags go to `python -m petclick evaluate`.",
    )
    parser.add_argument("dataset", help="raw and preprocessed data set, such as Dataset601_STS")
    parser.add_argument("model", help="model folder")
    parser.add_argument("out", help="folder of the results")
    options, others = parser.parse_known_args(arguments)
    splits = nnunet_folder("nnUNet_preprocessed") / options.dataset / "splits_final.json"
    cases = nnunet_folder("nnUNet_raw") / options.dataset
    fixed = ["--cross-validated", str(splits), "--model", options.model, "--out", options.out]
    evaluate(["evaluate", str(cases), *fixed, "--method", METHODS, *others])


if __name__ == "__main__":
    run(main)
