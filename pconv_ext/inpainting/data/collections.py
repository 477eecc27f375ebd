"""Collections of pictures to make data sets of: folders, and two public data sets through torchvision."""

from __future__ import annotations

import os
import tempfile
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from numpy.typing import NDArray

from .. import _pictures
from .._arguments import choice
from .._extras import require
from ..rasters import EXTENSIONS, Raster, open_raster

if TYPE_CHECKING:
    from PIL import Image

# Files in which the Helen data set names its 2000 training and 330 test pictures.
_LISTS = {"train": "trainnames.txt", "test": "testnames.txt"}


class PictureCollection(Protocol):
    """Pictures by their number: what `PictureDataset` takes. It must be picklable for workers."""

    def __len__(self) -> int: ...

    def name(self, index: int) -> str:
        """What messages call picture `index`."""
        ...

    def load(self, index: int) -> Any:
        """Return picture `index` in mode RGB or, for `RasterDataset`, floating [C, H, W] with NaN in gaps.

        May raise any exception if it cannot be read.
        """
        ...


def folder(root: str | os.PathLike[str], split: str | None = None) -> PictureCollection:
    """All pictures below a folder, in the order of their sorted paths.

    Args:
        root: the folder; hidden files and folders in it are left out.
        split: "train" or "test" takes the pictures that the folder's ``trainnames.txt`` or ``testnames.txt``
            names, one a line, with or without an extension, wherever below the folder they lie. The Helen
            data set has these lists, of 2000 and 330 names. None takes all pictures.

    Raises:
        FileNotFoundError, NotADirectoryError: `root` is no folder or lacks the list of the split.
        ValueError: no pictures in it or in the split, an unknown split.
    """
    paths = _pictures.find("data.folder", root)
    return _Files(paths if split is None else _listed(Path(root), split, paths))


def rasters(root: str | os.PathLike[str], channels: int, variables: Sequence[str] = ()) -> PictureCollection:
    """All rasters below a folder, in the order of their files' sorted paths; see `pconv_ext.rasters`.

    Args:
        root: the folder; hidden files and folders in it are left out.
        channels: of a raster.
        variables: of NetCDF files and ``.npz``, see `pconv_ext.rasters.open_raster`.

    Raises:
        OSError, ValueError: no such folder, none in it, a file that holds no such rasters.
        ImportError: what reads them is missing.
    """
    files = [
        open_raster(path, channels, variables)
        for path in _pictures.find("data.rasters", root, EXTENSIONS, "rasters")
    ]
    return _Rasters(files)


def has_split(root: str | os.PathLike[str]) -> bool:
    """Whether a folder has both lists of names that `folder` splits by."""
    return all(Path(root, name).is_file() for name in _LISTS.values())


def stanford_cars(root: str | os.PathLike[str], split: str = "train") -> PictureCollection:
    """Stanford Cars through ``torchvision.datasets.StanfordCars``, from files already on disk.

    Args:
        root: the folder that holds ``stanford_cars``, with ``devkit`` and, for "train", ``cars_train``, for
            "test" ``cars_test`` and ``cars_test_annos_withlabels.mat``.
        split: "train" (8144 pictures) or "test" (8041).

    Raises:
        FileNotFoundError: these files are not there.
        ValueError: an unknown split.
        ImportError: torchvision or scipy is missing or does not fit.
    """
    user = "data.stanford_cars"
    choice(user, "split", split, ("train", "test"))
    require(user, "scipy.io")
    cars = require(user, "torchvision.datasets").StanfordCars
    base = Path(root, "stanford_cars")
    labels = base / ("devkit/cars_train_annos.mat" if split == "train" else "cars_test_annos_withlabels.mat")
    for needed in (labels, base / "devkit" / "cars_meta.mat", base / f"cars_{split}"):
        if not needed.exists():
            raise FileNotFoundError(f"{user}: {needed} is missing; it is not downloaded, put it there")
    return _Cars(cars(os.fspath(root), split=split, download=False, loader=_pictures.read), str(base))


def lsun_church(root: str | os.PathLike[str], split: str = "train") -> PictureCollection:
    """LSUN church_outdoor through ``torchvision.datasets.LSUN``, from files already on disk.

    Args:
        root: the folder that holds the database, ``church_outdoor_train_lmdb`` or
            ``church_outdoor_val_lmdb``.
        split: "train" (126,227 pictures) or "val" (300, as many as the paper tests on).

    Raises:
        FileNotFoundError: the database is not there.
        ValueError: an unknown split, a database that cannot be opened.
        ImportError: torchvision or lmdb is missing or does not fit.
    """
    choice("data.lsun_church", "split", split, ("train", "val"))
    return _Church(Path(root), split)


RASTERS = "rasters"
#: Data sets of pictures by name: what opens one, and its splits to train and to evaluate on (a folder's:
#: Helen's lists). What `rasters` opens has none.
DATASETS: dict[str, tuple[Callable[[str | os.PathLike[str], str], PictureCollection], tuple[str, str]]] = {
    "folder": (folder, ("train", "test")),
    "stanford-cars": (stanford_cars, ("train", "test")),
    "lsun-church": (lsun_church, ("train", "val")),
}


class _Files:
    def __init__(self, paths: list[Path]) -> None:
        self.paths = paths

    def __len__(self) -> int:
        return len(self.paths)

    def name(self, index: int) -> str:
        return str(self.paths[index])

    def load(self, index: int) -> Image.Image:
        return _pictures.read(self.paths[index])


class _Rasters:
    def __init__(self, files: list[Raster]) -> None:
        self.places = [(file, index) for file in files for index in range(len(file))]

    def __len__(self) -> int:
        return len(self.places)

    def name(self, index: int) -> str:
        file, place = self.places[index]
        return str(file.path) if len(file) == 1 else f"{file.path}: {place}"

    def load(self, index: int) -> NDArray[Any]:
        file, place = self.places[index]
        return file.read(place)


class _Cars:
    def __init__(self, cars: Any, base: str) -> None:
        self.cars = cars
        self.base = base

    def __len__(self) -> int:
        return len(self.cars)

    def name(self, index: int) -> str:
        return f"{self.base}: picture {index}"

    def load(self, index: int) -> Image.Image:
        picture: Image.Image = self.cars[index][0]
        return picture


# For each database the process that opened it and torchvision's data set. lmdb opens a database only once
# in a process, and what it opened must not be used across a fork.
_opened: dict[Path, tuple[int, Any]] = {}


class _Church:
    def __init__(self, root: Path, split: str) -> None:
        self.database = root.absolute() / f"church_outdoor_{split}_lmdb"
        self._length = len(self._lsun())

    def _lsun(self) -> Any:
        process, lsun = _opened.get(self.database, (0, None))
        if process != os.getpid():
            if lsun is not None:
                lsun.dbs[0].env.close()  # inherited; otherwise lmdb takes the database for open
            lsun = self._open()
            _opened[self.database] = os.getpid(), lsun
        return lsun

    def _open(self) -> Any:
        user = "data.lsun_church"
        lmdb = require(user, "lmdb")
        datasets = require(user, "torchvision.datasets")
        if not (self.database / "data.mdb").is_file():
            raise FileNotFoundError(
                f"{user}: {self.database / 'data.mdb'} is missing; it is not downloaded, put it there"
            )
        # torchvision leaves a list of keys in the working folder, and trusts one it finds there, under a name
        # that copies of the data set in other folders share.
        before = Path.cwd()
        with tempfile.TemporaryDirectory() as scratch:
            os.chdir(scratch)
            try:
                category = self.database.name.removesuffix("_lmdb")
                return datasets.LSUN(os.fspath(self.database.parent), classes=[category])
            except lmdb.Error as error:
                raise ValueError(f"{user}: cannot open {self.database}: {error}") from error
            finally:
                os.chdir(before)

    def __len__(self) -> int:
        return self._length

    def name(self, index: int) -> str:
        return f"{self.database}: picture {index}"

    def load(self, index: int) -> Image.Image:
        database = self._lsun().dbs[0]  # which itself would let a picture choose any decoder of Pillow's
        with database.env.begin() as transaction:
            content = transaction.get(database.keys[index])
        return _pictures.to_rgb(_pictures.decode(lambda: content, self.name(index)))


def _listed(root: Path, split: str, paths: list[Path]) -> list[Path]:
    """Those of `paths` that the list of `split` names."""
    user = "data.folder"
    choice(user, "split", split, tuple(_LISTS))
    file = root / _LISTS[split]
    if not file.is_file():
        raise FileNotFoundError(f"{user}: split={split!r} needs the list {file}, which is not there")
    lines = (line.strip() for line in file.read_text(encoding="utf-8", errors="replace").splitlines())
    names = {_stem(Path(line)) for line in lines if line}
    if not names:
        raise ValueError(f"{user}: {file} must name pictures, one a line, it is empty")
    chosen = [path for path in paths if path.stem in names]
    absent = sorted(names - {path.stem for path in chosen})
    if not chosen:
        raise ValueError(f"{user}: none of the {len(names)} pictures that {file} names is in {root}")
    if absent:
        warnings.warn(
            f"{len(absent)} of the {len(names)} pictures that {file} names are not in {root}, the first is "
            f"{absent[0]}",
            stacklevel=3,
        )
    return chosen


def _stem(name: Path) -> str:
    """The file name without the extension of a picture: names may have other dots in them."""
    return name.stem if name.suffix.lower() in _pictures.EXTENSIONS else name.name
