"""``python docs/building/notebooks.py``: runs the notebooks of docs/notebooks and keeps their outputs in them.

They run in a temporary folder, whose name is left out of what they print; figures are reduced to few colours, so that
a notebook stays small.
"""

from __future__ import annotations

import base64
import io
import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from PIL import Image

NOTEBOOKS = sorted((Path(__file__).resolve().parents[1] / "notebooks").glob("*.ipynb"))
COLOURS = 48


def execute(path: Path) -> None:
    """Runs a notebook and writes it back with its outputs."""
    notebook = nbformat.read(path, as_version=4)
    metadata = dict(notebook.metadata)
    with tempfile.TemporaryDirectory() as folder:
        NotebookClient(notebook, timeout=600, resources={"metadata": {"path": folder}}).execute()
        for cell in notebook.cells:
            cell.metadata = {}
            for output in cell.get("outputs", []):
                _tidy(output, folder)
    notebook.metadata = nbformat.from_dict(metadata)  # without the version of Python that ran it
    nbformat.write(notebook, path)


def _tidy(output: nbformat.NotebookNode, folder: str) -> None:
    if "text" in output:
        output.text = output.text.replace(f"{folder}/", "")
    for kind, content in output.get("data", {}).items():
        if kind == "image/png":
            output.data[kind] = _smaller(content)
        elif isinstance(content, str):
            output.data[kind] = content.replace(f"{folder}/", "")


def _smaller(png: str) -> str:
    picture = Image.open(io.BytesIO(base64.b64decode(png))).convert("RGB").quantize(COLOURS)
    buffer = io.BytesIO()
    picture.save(buffer, "png", optimize=True)
    return base64.b64encode(buffer.getvalue()).decode()


if __name__ == "__main__":
    for notebook_path in NOTEBOOKS:
        execute(notebook_path)
