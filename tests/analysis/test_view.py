"""Views for chemiscope: what is in them, and that a page needs nothing from elsewhere."""

import gzip
import json
import re

import numpy as np
import pytest

from checks import bare
from kqeq import analysis, cli
from kqeq.analysis import view
from kqeq.errors import InputError, UnsupportedError

pytest.importorskip("chemiscope", reason="the extra view is not installed")


@pytest.fixture(scope="module")
def frames(water_systems):
    return [water_systems[name][1] for name in ("water1", "hydronium", "hydroxide")]


def test_charges_dipoles_and_errors(water_model, frames):
    data = analysis.view_data(water_model, frames, name="ions")
    assert data["meta"]["name"] == "ions"
    assert [s["size"] for s in data["structures"]] == [3, 4, 2]
    predictions = water_model.predict(frames)
    properties = data["properties"]
    charges = np.concatenate([p.charges for p in predictions])
    np.testing.assert_allclose(properties["charge"]["values"], charges)
    np.testing.assert_allclose(
        properties["dipole"]["values"], [np.linalg.norm(p.dipole) for p in predictions]
    )
    errors = [
        np.sqrt(np.mean((p.forces - a.get_forces()) ** 2)) for p, a in zip(predictions, frames, strict=True)
    ]
    np.testing.assert_allclose(properties["forces rmse"]["values"], errors)
    assert properties["forces rmse"]["units"] == "eV/Å"
    assert data["settings"]["map"]["y"]["property"] in properties
    colour = data["settings"]["structure"][0]["color"]
    assert colour["min"] == -colour["max"] == -np.abs(charges).max()
    # the longest arrow has the length that is announced; that of an ion is about its own middle
    arrows = np.array([s["vector"] for s in data["shapes"]["dipole"]["parameters"]["structure"]])
    assert np.linalg.norm(arrows, axis=1).max() == pytest.approx(view.LONGEST_DIPOLE)
    own = predictions[1].dipole - frames[1].positions.mean(axis=0)
    np.testing.assert_allclose(np.cross(arrows[1], own), 0.0, atol=1e-8)


def test_frames_without_labels_and_models_without_charges(short_range_model, frames):
    data = analysis.view_data(short_range_model, [bare(frames[0])])
    assert "charge" not in data["properties"]
    assert "dipole" not in data["shapes"]
    assert not [name for name in data["properties"] if "error" in name or "rmse" in name]


def test_a_page_holds_everything(water_model, frames, tmp_path):
    analysis.write_view(tmp_path / "ions.html", water_model, frames)
    page = (tmp_path / "ions.html").read_text(encoding="utf-8")
    assert "<title>ions</title>" in page
    assert not re.findall(r"<(?:script|link)[^>]+(?:src|href)=", page)  # nothing is fetched
    data = re.search(r"^const data = (.*);$", page, flags=re.MULTILINE)[1]
    assert len(json.loads(data.replace("<\\/", "</"))["structures"]) == 3
    assert "DefaultVisualizer" in page


def test_the_command(water_model, frames, tmp_path, capsys):
    from ase.io import write

    water_model.save(tmp_path / "m.kqeq")
    write(tmp_path / "f.xyz", frames)
    arguments = [str(tmp_path / name) for name in ("m.kqeq", "f.xyz")]
    assert cli.main(["view", *arguments, "-o", str(tmp_path / "v.json.gz"), "--title", "ions"]) == 0
    data = json.loads(gzip.decompress((tmp_path / "v.json.gz").read_bytes()))
    assert data["meta"]["name"] == "ions"
    assert cli.main(["view", *arguments, "-o", str(tmp_path / "v.png")]) == 2
    assert "ends in .html, .json, .json.gz" in capsys.readouterr().err


def test_without_chemiscope(water_model, frames, tmp_path, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "chemiscope", None)
    with pytest.raises(UnsupportedError, match=r"pip install 'kqeq\[view\]'"):
        analysis.write_view(tmp_path / "v.html", water_model, frames)
    with pytest.raises(InputError, match="expected a name"):
        analysis.write_view(tmp_path / "v.txt", water_model, frames)
