#!/usr/bin/env python3
"""Label geometries in several static fields.

    python generate_fields.py OUT.xyz SYSTEM --strengths 0.1 0.3 [--seed S] [--frames N] [--basis B]
                              [--both-signs] [--across] [--no-zero] [--alternate] [--threads T]

Method and labels are those of ``generate.py``.  With ``--frames N`` the geometries are frames of the
GFN2-xTB trajectory of this seed; without, it is one: the ideal all-trans alkane, else the GFN2-xTB minimum
(info "geometry": "trajectory", "ideal" or "GFN2-xTB").  Fields (V/Angstrom) point along the molecule, that is
along its axis of least inertia, and with --across also along the axis of largest inertia, besides no
field at all.  With --alternate every geometry gets one field, each in turn, every other one none.

OUT.xyz is appended to, and what it holds already is skipped, so that an interrupted run goes on where
it stopped.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
from ase import Atoms
from ase.io import read, write
from generate import NO_FIELD, SAME_GEOMETRY, SYSTEMS, basis_of, label, relaxed, sample


def geometries(system: str, frames: int, seed: int) -> tuple[str, list[Atoms]]:
    """What kind of geometries, and those."""
    if frames:
        return "trajectory", list(sample(system, frames, seed))
    rng = np.random.default_rng(seed)
    if system.startswith("alkane"):
        return "ideal", [SYSTEMS[system].build(rng)]
    return "GFN2-xTB", [relaxed(system, rng, fmax=0.01, steps=500)]


def fields(atoms: Atoms, strengths: list[float], both_signs: bool, across: bool) -> list[np.ndarray]:
    """Fields along, and across, the molecule."""
    _, axes = atoms.get_moments_of_inertia(vectors=True)
    directions = [axes[0], axes[2]] if across else [axes[0]]
    # eigenvectors have no sign of their own: the largest component shall be positive
    directions = [axis * np.sign(axis[np.abs(axis).argmax()]) for axis in directions]
    signs = (1.0, -1.0) if both_signs else (1.0,)
    return [sign * strength * axis for strength in strengths for axis in directions for sign in signs]


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("system", choices=sorted(SYSTEMS))
    parser.add_argument("--strengths", type=float, nargs="+", required=True, help="V/Angstrom")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--frames", type=int, default=0)
    parser.add_argument("--basis", help="default: def2-svp, for anions def2-svpd")
    parser.add_argument("--both-signs", action="store_true")
    parser.add_argument("--across", action="store_true")
    parser.add_argument("--no-zero", action="store_true")
    parser.add_argument("--alternate", action="store_true")
    parser.add_argument("--threads", type=int, default=1)
    a = parser.parse_args()
    basis = a.basis or basis_of(a.system)
    kind, frames = geometries(a.system, a.frames, a.seed)
    done = read(a.out, ":") if a.out.exists() else []
    for i, frame in enumerate(frames):
        frame.positions -= frame.get_center_of_mass()
        applied = fields(frame, a.strengths, a.both_signs, a.across)
        if a.alternate:
            applied = [applied[i // 2 % len(applied)] if i % 2 else np.zeros(3)]
        elif not a.no_zero:
            applied = [np.array(NO_FIELD), *applied]
        for field in applied:
            if any(
                (f.info["system"], f.info["seed"], f.info["method"]) == (a.system, a.seed, f"PBE0/{basis}")
                and np.allclose(f.info["external_field"], field, atol=1e-6)
                and np.abs(f.positions - frame.positions).max() < SAME_GEOMETRY
                for f in done
            ):
                continue
            labelled = label(frame, a.system, field, a.threads, basis=basis)
            if labelled is None:
                print(f"{a.system} seed {a.seed} geometry {i}, {field}: not converged", file=sys.stderr)
                continue
            labelled.info |= {"seed": a.seed, "geometry": kind}
            write(a.out, labelled, append=True, format="extxyz")


if __name__ == "__main__":
    main()
