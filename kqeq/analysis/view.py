"""Structures with what a model says about them, for the chemiscope viewer (https://chemiscope.org).

Charges and forces on the atoms, dipoles as arrows, and errors of labelled frames on a map: as a file that chemiscope
reads (``.json`` or ``.json.gz``), or as one page of HTML with the viewer inside that needs no network.  The viewer comes
with the package ``chemiscope`` (BSD licence; extra ``view``).
"""

from __future__ import annotations

import gzip
import html
import json
from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms

from kqeq.analysis.entry import formula, potential_of
from kqeq.analysis.errors import COLUMNS, frame_errors
from kqeq.analysis.results import plain
from kqeq.errors import InputError, UnsupportedError
from kqeq.fitting.metrics import UNITS
from kqeq.frames.label_checks import survey
from kqeq.frames.labels import LabelKeys
from kqeq.frames.structures import as_frames
from kqeq.io.atomic_write import atomic_path
from kqeq.potential.prediction import Prediction

LONGEST_DIPOLE = 3.0
"""Length of the longest arrow of a dipole, Å."""

LONGEST_FORCE = 1.0
"""Length of the longest arrow of a force, Å."""

ENDINGS = (".html", ".json", ".json.gz")


def view_data(model: Any, frames: Atoms | Sequence[Atoms], *, name: str = "kqeq") -> dict[str, Any]:
    """What chemiscope shows of frames and predictions, as plain data.

    Parameters
    ----------
    model : KQEq
    frames : ase.Atoms or sequence of ase.Atoms
        Errors are shown as well where they carry labels.
    name : str
        Title.

    Raises
    ------
    InputError, UnsupportedError, ModelNotFittedError
        Also if the package chemiscope is missing.
    """
    chemiscope = _chemiscope()
    potential = potential_of(model)
    given = as_frames(frames)
    labelled = any(
        labels.kinds
        for _, labels in survey(given, LabelKeys.prefixed(model.label_prefix, model.charges_key_)).pairs
    )
    predictions = model.predict(given)
    properties: dict[str, Any] = {
        "frame": _of_structures(np.arange(len(given)), "", "number of the frame"),
        "composition": _of_structures([formula(atoms) for atoms in given], "", ""),
        "total charge": _of_structures([p.total_charge for p in predictions], "e", ""),
    }
    if potential.has_energy:
        energies = np.array([p.energy for p in predictions])
        sizes = np.array([len(atoms) for atoms in given])
        properties["energy"] = _of_structures(energies, "eV", "predicted")
        properties["energy per atom"] = _of_structures(energies / sizes, "eV/atom", "predicted")
        largest = [float(np.linalg.norm(p.forces, axis=1).max()) for p in predictions]
        properties["largest force"] = _of_structures(largest, "eV/Å", "predicted")
        forces = np.concatenate([np.linalg.norm(p.forces, axis=1) for p in predictions])
        properties["force"] = _of_atoms(forces, "eV/Å", "size of the predicted force on the atom")
    if all(p.dipole is not None for p in predictions):
        sizes_of = [float(np.linalg.norm(p.dipole)) for p in predictions]
        properties["dipole"] = _of_structures(sizes_of, "e·Å", "size of the predicted dipole")
    if potential.has_charges:
        charges = np.concatenate([p.charges for p in predictions])
        properties["charge"] = _of_atoms(charges, "e", "predicted charge")
    x, y = "frame", "energy per atom" if potential.has_energy else "dipole"
    if labelled:
        errors = frame_errors(model, given)
        for kind in errors.evaluation:
            values = errors.of(kind)
            if np.isfinite(values).all():
                what = COLUMNS[kind].split(" ")[0].replace("_", " ")
                properties[what] = _of_structures(np.abs(values), UNITS[kind], "error of this frame")
                x, y = ("frame", what) if kind in ("energy", "forces") else (x, y)
        found = _atom_errors(errors)
        if found is not None:
            properties["force error"] = _of_atoms(found, "eV/Å", "size of the error of the force on the atom")
    settings = chemiscope.quick_settings(
        x=x,
        y=y,
        map_color="total charge" if len({p.total_charge for p in predictions}) > 1 else y,
        periodic=any(atoms.pbc.any() for atoms in given),
    )
    if potential.has_charges:
        most = max(float(np.abs(properties["charge"]["values"]).max()), 1e-3)  # white is neutral
        colour = {"property": "charge", "mode": "linear", "min": -most, "max": most, "palette": "bwr"}
        settings["structure"][0]["color"] = colour
    shapes = _shapes(predictions, given)
    if shapes:
        settings["structure"][0]["shape"] = ["dipole"] if "dipole" in shapes else list(shapes)
    data: dict[str, Any] = chemiscope.create_input(
        structures=[_bare(atoms) for atoms in given],
        properties=properties,
        shapes=shapes or None,
        environments=chemiscope.all_atomic_environments([_bare(atoms) for atoms in given]),
        settings=settings,
        metadata={
            "name": name,
            "description": f"{len(given)} frames with what a model of {', '.join(model.species_)} predicts.",
        },
    )
    return data


def write_view(
    path: str | PathLike[str], model: Any, frames: Atoms | Sequence[Atoms], *, name: str | None = None
) -> None:
    """Write frames and predictions for chemiscope, atomically.

    Parameters
    ----------
    path : path-like
        ``.html`` for a page of its own, ``.json`` or ``.json.gz`` for a file that chemiscope.org or Jupyter opens.
    model, frames :
        As of :func:`view_data`.
    name : str, optional
        Title; the name of the file without one.

    Raises
    ------
    InputError, UnsupportedError, ModelNotFittedError
        As :func:`view_data`, and for other endings.
    """
    target = Path(path)
    check_ending(target)
    data = view_data(model, frames, name=name or target.name.split(".")[0])
    # NaN is no JSON; chemiscope has null for what is missing
    text = json.dumps(plain(data), ensure_ascii=False, allow_nan=False)
    with atomic_path(target) as temporary:
        if target.name.endswith(".gz"):
            temporary.write_bytes(gzip.compress(text.encode("utf-8"), mtime=0))
        elif target.name.endswith(".json"):
            temporary.write_text(text, encoding="utf-8")
        else:
            temporary.write_text(_page(data["meta"]["name"], text), encoding="utf-8")


def check_ending(path: str | PathLike[str]) -> None:
    """Refuse names that say of no format that can be written.

    Raises
    ------
    InputError
    """
    if not str(path).lower().endswith(ENDINGS):
        raise InputError(f"cannot write a view to {path}; expected a name that ends in {', '.join(ENDINGS)}")


def _chemiscope() -> Any:
    try:
        import chemiscope
    except ImportError as error:
        raise UnsupportedError(
            f"views are shown by the package chemiscope, which is not installed ({error}); "
            "pip install 'kqeq[view]', or pip install chemiscope"
        ) from None
    return chemiscope


def _of_structures(values: Any, unit: str, description: str) -> dict[str, Any]:
    return _property("structure", values, unit, description)


def _of_atoms(values: Any, unit: str, description: str) -> dict[str, Any]:
    return _property("atom", values, unit, description)


def _property(target: str, values: Any, unit: str, description: str) -> dict[str, Any]:
    values = values if isinstance(values, list) and isinstance(values[0], str) else np.asarray(values)
    entry: dict[str, Any] = {"target": target, "values": values}
    entry.update({k: v for k, v in (("units", unit), ("description", description)) if v})
    return entry


def _bare(atoms: Atoms) -> Atoms:
    """Without labels: chemiscope would look into them."""
    return Atoms(atoms.numbers, atoms.positions, cell=atoms.cell, pbc=atoms.pbc)


def _atom_errors(errors: Any) -> Any:
    """Size of the error of the force on every atom of all frames; ``None`` where some frame has no forces."""
    found = []
    for _, labels, prediction in errors.frames:
        if labels.forces is None or prediction.forces is None:
            return None
        found.append(np.linalg.norm(prediction.forces - labels.forces, axis=1))
    return np.concatenate(found)


def _shapes(predictions: Sequence[Prediction], frames: Sequence[Atoms]) -> dict[str, Any]:
    """Dipoles of the structures and forces on the atoms as arrows."""
    arrow = {"baseRadius": 0.08, "headRadius": 0.18, "headLength": 0.3}
    shapes: dict[str, Any] = {}
    dipoles = [p.dipole for p in predictions if p.dipole is not None]
    if len(dipoles) == len(predictions):
        # of an ion about the centre of its atoms: about the origin it would say where the molecule is
        moved = [
            d - p.total_charge * atoms.positions.mean(axis=0)
            for d, p, atoms in zip(dipoles, predictions, frames, strict=True)
        ]
        longest = max(float(np.linalg.norm(d)) for d in moved)
        scale = LONGEST_DIPOLE / longest if longest > 0.0 else 1.0
        shapes["dipole"] = {
            "kind": "arrow",
            "parameters": {
                "global": {**arrow, "color": 0x1F5FA8},
                "structure": [
                    {
                        "position": atoms.positions.mean(axis=0).tolist(),
                        "vector": (scale * dipole).tolist(),
                    }
                    for atoms, dipole in zip(frames, moved, strict=True)
                ],
            },
        }
    forces = [p.forces for p in predictions if p.forces is not None]
    if len(forces) == len(predictions):
        longest = max(float(np.linalg.norm(f, axis=1).max()) for f in forces)
        scale = LONGEST_FORCE / longest if longest > 0.0 else 1.0
        shapes["forces"] = {
            "kind": "arrow",
            "parameters": {
                "global": {
                    **arrow,
                    "color": 0xC0392B,
                    "baseRadius": 0.04,
                    "headRadius": 0.1,
                    "headLength": 0.15,
                },
                "atom": [{"vector": (scale * force).tolist()} for own in forces for force in own],
            },
        }
    return shapes


def _page(title: str, data: str) -> str:
    """One page with the viewer and the data inside."""
    import chemiscope

    viewer = Path(chemiscope.__file__).parent / "sphinx" / "static" / "chemiscope.min.js"
    if not viewer.is_file():
        raise UnsupportedError(
            f"the package chemiscope {chemiscope.__version__} has no {viewer.name} to put into a page; write a .json "
            "file, which https://chemiscope.org opens, or install chemiscope 1.0 or newer"
        )
    code = viewer.read_text(encoding="utf-8").replace("</script", "<\\/script")
    content = data.replace("</", "<\\/")
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<title>{html.escape(title)}</title>
<style>
body {{ margin: 0; font-family: sans-serif; overflow: hidden; }}
#panels {{ display: grid; grid-template-columns: 1fr 1fr; gap: 8px; height: calc(100vh - 60px); padding: 8px;
  box-sizing: border-box; }}
#side {{ display: grid; grid-template-rows: 1fr auto; min-height: 0; }}
#meta {{ height: 52px; padding: 0 8px; }}
#map, #structure {{ position: relative; min-height: 0; min-width: 0; height: 100%; }}
#failed {{ color: #c0392b; position: absolute; bottom: 8px; left: 8px; }}
</style>
<script>{code}</script>
</head>
<body>
<div id="meta"></div>
<div id="panels"><div id="map"></div><div id="side"><div id="structure"></div><div id="info"></div></div></div>
<div id="failed"></div>
<script>
const data = {content};
Chemiscope.DefaultVisualizer.load({{meta: "meta", map: "map", structure: "structure", info: "info"}}, data)
  .then(viewer => {{ window.viewer = viewer; document.body.dataset.state = "loaded"; }})
  .catch(error => {{ document.getElementById("failed").textContent = error; document.body.dataset.state = "failed"; }});
</script>
</body>
</html>
"""


__all__ = ["ENDINGS", "check_ending", "view_data", "write_view"]
