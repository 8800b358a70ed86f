"""One more click against the first prediction, on a whole body at the model's spacing, up to the mask."""

import functools
import itertools
import statistics

import numpy as np

from benchmarks._cases import benchmark_model, more_and_more, timed, whole_body
from petclick.predictor import Predictor, Settings

CLICKS = 20


def run() -> dict[str, float]:
    """Seconds of the first prediction, and of each of 20 more clicks anywhere in the body; their ratio.

    Raises:
        RuntimeError: a margin is not that of a prediction from scratch; every fifth one is compared.
    """
    model = benchmark_model()
    case, clicks = whole_body(model)
    predictor = Predictor(model, Settings("cpu"))
    predictor.warm_up()
    predictor.set_case(case)
    first, _ = timed(lambda: predictor.predict(clicks))
    tiles = predictor.last_report
    body = np.argwhere(case.ct_hu > -500)
    seconds, again = [], []
    forgetful = Predictor(model, Settings("cpu", keep_gib=0))
    for n, more in enumerate(itertools.islice(more_and_more(clicks, 1, body), CLICKS), start=1):
        seconds.append(timed(functools.partial(predictor.predict, more))[0])
        again.append(predictor.last_report.ran)
        if n % 5:
            continue
        forgetful.set_case(case)
        if not forgetful.predict_margin(more).equal(predictor.predict_margin(more)):
            raise RuntimeError("not the bits of a prediction from scratch")
    median = statistics.median(seconds)
    return {
        "folds": len(model.checkpoints),
        "tiles": tiles.ran,
        "first, seconds": first,
        "one more click, median seconds": median,
        "one more click, most seconds": max(seconds),
        "tiles run again, median": statistics.median(again),
        "first / one more click": first / median,
    }
