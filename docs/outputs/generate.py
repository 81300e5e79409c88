"""Write what ``kqeq diagnose`` says about good and bad models: the text files and figures of this folder.

    python docs/outputs/generate.py [FOLDER]

Alkanes: fitted on C2 to C5 (energies, forces, dipoles; ACKS2 with atomic dipoles also to polarizabilities and, loosely,
to Hirshfeld charges, without which neither model has reason to share charge as bonds do), diagnosed on hexane.
Salt: fitted on Na9Cl8(+) and Na8Cl8(+), diagnosed on Na9Cl8(+).
"""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

import kqeq
from kqeq import plots
from kqeq.analysis import diagnose

LEARN = "learn"
SMALL = {"n_max": 5, "l_max": 4, "n_representatives": 100}
MODELS = {
    "alkanes_qeq": kqeq.QEq(),
    "alkanes_acks2": kqeq.AtomicDipoles(kqeq.ACKS2(LEARN, LEARN, LEARN), LEARN),
    "nacl_qeq": kqeq.QEq(),
    "nacl_acks2": kqeq.AtomicDipoles(kqeq.ACKS2()),
}
SETTINGS = {
    "alkanes_acks2": {
        "targets": ["energy", "forces", "dipole", "polarizability", "charges"],
        "charges_key": "hirshfeld",
        "noise": {"charges": 0.05},
    }
}


def frames(name: str) -> tuple[list, object]:
    """Training frames, and the geometry to diagnose."""
    if name.startswith("nacl"):
        train, test = kqeq.datasets.split("nacl")
        return train, next(a for a in test if len(a) == 17)
    short = [a for a in kqeq.datasets.load("alkanes") if sum(a.numbers == 6) <= 5 and a.info["seed"] == 0]
    labelled = [a for a in kqeq.datasets.load("polarizability") if 2 <= sum(a.numbers == 6) <= 5]
    hexane = [a for a in kqeq.datasets.load("alkanes") if sum(a.numbers == 6) == 6 and a.info["seed"] == 1]
    return short + labelled, hexane[0]


def fit(name: str) -> kqeq.KQEq:
    """The model of an example."""
    kernels = kqeq.SOAPKernel(r_cut=4.0, sigma=0.4, **SMALL), kqeq.SOAPKernel(r_cut=4.5, zeta=4, **SMALL)
    return kqeq.KQEq(*kernels, charges=MODELS[name], **SETTINGS.get(name, {})).fit(frames(name)[0])


def write(folder: Path) -> None:
    """Fit all models and write texts and figures."""
    for name in MODELS:
        diagnosis = diagnose(fit(name), frames(name)[1])
        print(f"{name}\n{diagnosis}\n", flush=True)
        (folder / f"diagnose_{name}.txt").write_text(f"{diagnosis}\n", encoding="utf-8")
        plots.save(folder / f"diagnose_{name}.png", plots.diagnosis_figure(diagnosis))


if __name__ == "__main__":
    warnings.simplefilter("ignore", kqeq.errors.KQEqWarning)
    write(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent)
