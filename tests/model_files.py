"""Model files taken apart and put together again, changed."""

import io
import json
import zipfile

import numpy as np


def members(path):
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def rewrite(path, change):
    """Write the archive again after ``change(members)``, without the digest: as version 0.1 wrote files."""
    content = members(path)
    header = json.loads(content["header.json"])
    header.pop("digest", None)
    content["header.json"] = json.dumps(header).encode()
    change(content)
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in content.items():
            archive.writestr(name, data)


def edit_header(path, change):
    def on_members(content):
        header = json.loads(content["header.json"])
        change(header)
        content["header.json"] = json.dumps(header).encode()

    rewrite(path, on_members)


def npy(array, **options):
    buffer = io.BytesIO()
    np.save(buffer, array, **options)
    return buffer.getvalue()
