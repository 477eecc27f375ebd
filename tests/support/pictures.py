"""Pictures and masks in files, and how they are damaged."""

import numpy as np
from PIL import Image


def noise(height=20, width=30, seed=0):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8))


def save_photos(root):
    """Five pictures of noise and two other files, in folders; the folder."""
    (root / "sub" / "deeper").mkdir(parents=True)
    for i, name in enumerate(["b.png", "a.PNG", "sub/c.bmp", "sub/deeper/d.png", "e.tiff"]):
        noise(seed=i).save(root / name)
    (root / "notes.txt").write_text("no picture")
    (root / "._b.png").write_bytes(b"left by a file system")
    return root


def save_smooth(root):
    """Five smooth pictures, 48 pixels wide and 40 high, in a folder; the folder."""
    rng = np.random.default_rng(5)
    for i in range(5):
        coarse = Image.fromarray(rng.integers(0, 256, (5, 6, 3), np.uint8))
        coarse.resize((48, 40), Image.Resampling.BICUBIC).save(root / f"{i}.png")
    return root


def damage(path):
    path.write_bytes(path.read_bytes()[:-400])


def mask_folder(root, shares):
    """Pictures 40x48 whose first rows, so many, are white."""
    root.mkdir()
    for i, rows in enumerate(shares):
        mask = np.zeros((40, 48), np.uint8)
        mask[:rows] = 255
        Image.fromarray(mask).save(root / f"{i}.png")
    return root
