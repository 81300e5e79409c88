"""A periodic fit with charges: bulk ZnO, 216 atoms a frame (public data), 30 frames to fit and 11 to test.

python benchmarks/periodic.py [--quick] [--json FILE]
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator

from ase.io import read

import kqeq
from common import Row, main, public, row


def zno(quick: bool) -> Iterator[Row]:
    path = public("zno_periodic.xyz")
    if path is None:
        return
    frames = read(path, ":")
    train, test = frames[:30], frames[30:]
    if quick:
        train, test = train[::5], test[::3]
    short = kqeq.SOAPKernel(r_cut=4.0, n_max=6, l_max=4, sigma=0.5, zeta=2, n_representatives=150)
    chi = kqeq.SOAPKernel(r_cut=4.0, n_max=6, l_max=4, sigma=0.5, zeta=2, n_representatives=100)
    errors = {}
    for name, settings in (
        ("short-range only", {"electronegativity": None, "charges": None}),
        ("QEq + short-range", {"electronegativity": chi}),
        ("ACKS2 + short-range", {"electronegativity": chi, "charges": kqeq.ACKS2()}),
    ):
        started = time.perf_counter()
        model = kqeq.KQEq(short_range=short, **settings).fit(train)
        seconds = time.perf_counter() - started
        errors[name] = model.evaluate(test)
        yield row(f"ZnO bulk, energy RMSE, {name}", 1e3 * errors[name]["energy"].rmse, "meV/atom")
        yield row(f"ZnO bulk, forces RMSE, {name}", 1e3 * errors[name]["forces"].rmse, "meV/Å")
        yield row(f"ZnO bulk, fit, {name}", seconds, "s")
    plain = errors["short-range only"]["forces"].rmse
    for name in ("QEq + short-range", "ACKS2 + short-range"):
        yield row(
            f"ZnO bulk, forces, {name} / short-range only", errors[name]["forces"].rmse / plain, "", "< 1"
        )


if __name__ == "__main__":
    warnings.simplefilter("ignore", kqeq.errors.KQEqWarning)
    main(__doc__ or "", {"zno": zno})
