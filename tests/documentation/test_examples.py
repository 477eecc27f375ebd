"""The scripts of examples/ run, and so does the notebook, from nothing to a filled picture."""

import json
import re
import runpy
import sys

import numpy as np
import pytest
from PIL import Image
from support import torchvision_without_ops
from support.documents import ROOT
from support.trainings import make_pictures

torchvision_without_ops.make_importable()

EXAMPLES = ROOT / "examples"


def run(monkeypatch, script, *arguments):
    monkeypatch.setattr(sys, "argv", [script, *map(str, arguments)])
    runpy.run_path(str(EXAMPLES / script), run_name="__main__")


def test_layers_of_a_network_are_swapped(monkeypatch, capsys):
    run(monkeypatch, "swap_layer.py")
    assert capsys.readouterr().out.startswith("17 layers swapped\n")


def test_from_a_folder_of_photographs_to_filled_pictures(monkeypatch, capsys, tmp_path):
    """A training, one that is done already, and its network on a folder."""
    photos, masks = tmp_path / "photos", tmp_path / "masks"
    photos.mkdir()
    masks.mkdir()
    make_pictures(photos, 10)
    valid = np.full((20, 24), 255, np.uint8)
    valid[5:9, 6:15] = 0
    for name in ("00_mask.png", "03_mask.png"):
        Image.fromarray(valid).save(masks / name)
    for _ in range(2):
        run(monkeypatch, "train_folder.py", photos, tmp_path / "run", "--epochs", "1")
    assert Image.open(tmp_path / "run/filled.png").size == (64, 64)
    network = ("--network", tmp_path / "run")
    with pytest.warns(UserWarning, match="has no mask"):
        run(monkeypatch, "inpaint_folder.py", photos, masks, tmp_path / "filled", *network)
    assert "2 filled, 0 there before, 8 left out" in capsys.readouterr().out
    before = np.asarray(Image.open(photos / "03.png"))
    filled = np.asarray(Image.open(tmp_path / "filled/03.png"))
    assert filled.shape == before.shape
    assert (filled[:3] == before[:3]).all()
    assert (filled[5:9, 6:15] != before[5:9, 6:15]).any()


def test_the_notebook_is_kept_without_results():
    cells = json.loads((EXAMPLES / "inpainting.ipynb").read_text(encoding="utf-8"))["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert code
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in code)


@pytest.mark.deep
def test_the_notebook_runs():
    """Its network learns, and no cell but the installation is left out."""
    nbformat = pytest.importorskip("nbformat", reason="needs the extra: pip install '.[docs]'")
    client = pytest.importorskip("nbclient", reason="needs the extra: pip install '.[docs]'")
    notebook = nbformat.read(EXAMPLES / "inpainting.ipynb", as_version=4)
    folder = {"metadata": {"path": str(EXAMPLES)}}
    client.NotebookClient(notebook, timeout=600, kernel_name="python3", resources=folder).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 5
    last = outputs[-1]["data"]["text/plain"]
    masked, a_minute, shipped = map(float, re.findall(r": ([\d.]+)", last))
    assert min(a_minute, shipped) > masked + 6, last
