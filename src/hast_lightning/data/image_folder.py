"""A validation folder with one folder a class, as ImageNet's is usually laid out."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from hast_lightning.config import DataConfig
from hast_lightning.errors import DataError

if TYPE_CHECKING:
    from torchvision.datasets import ImageFolder

    from hast_lightning.models.zoo import PretrainedNetwork

LAYOUT = "one folder a class in sorted class order, e.g. val/n01440764/ILSVRC2012_val_00000293.JPEG"
CHANNELS = 3
WORKERS = 2


class ImageFolderData:
    """Labeled photographs, decoded batch by batch: resize, centre crop, normalize.

    Args:
        dataset: torchvision's view of the folder, with its transform set.
        batch_size: Images a batch; the last batch may be smaller.
    """

    def __init__(self, dataset: ImageFolder, batch_size: int) -> None:
        self._dataset = dataset
        self._batch_size = batch_size

    @property
    def num_images(self) -> int:
        """Images in all."""
        return len(self._dataset)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Batches of normalized images (B, C, H, W), float32, and labels (B,), int64.

        Raises:
            DataError: a file is not a readable image.
        """
        loader = torch.utils.data.DataLoader(
            self._dataset, self._batch_size, num_workers=WORKERS, generator=torch.Generator()
        )
        try:
            yield from loader
        except OSError as error:  # Pillow's errors for damaged images are all of this kind
            reason = str(error).strip().splitlines()[-1]
            raise DataError(f"data.path={self._dataset.root} has a bad image: {reason}") from error


def load_image_folder(config: DataConfig, network: PretrainedNetwork) -> ImageFolderData:
    """The images in ``config.path``, prepared for ``network``.

    Raises:
        DataError: the folder is missing, empty or contains itself, or its classes are not the
            network's.
    """
    # Here, because torchvision takes a second to import and only this source needs it.
    from torchvision import transforms
    from torchvision.datasets import ImageFolder

    path = Path(config.path or "").expanduser()
    if not path.is_dir():
        raise DataError(f"data.path={config.path} is not a folder; expected {LAYOUT}")
    if network.input_shape[0] != CHANNELS:
        raise DataError(
            f"data={config.source} has photographs of {CHANNELS} channels; the network takes "
            f"{network.input_shape[0]}"
        )
    _refuse_loops(path)
    size = network.input_shape[1]
    transform = transforms.Compose(
        [
            transforms.Resize(round(size * network.resize_ratio)),
            transforms.CenterCrop(size),
            transforms.ToTensor(),
            transforms.Normalize(network.mean, network.std),
        ]
    )
    try:
        dataset = ImageFolder(str(path), transform, allow_empty=True)
    except (FileNotFoundError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise DataError(f"data.path={path}: {reason}; expected {LAYOUT}") from error
    if len(dataset.classes) != network.num_classes:
        raise DataError(
            f"data.path={path} has {len(dataset.classes)} class folders, the network "
            f"{network.num_classes} classes; expected {LAYOUT}"
        )
    _refuse_empty_classes(dataset, path)
    return ImageFolderData(dataset, config.batch_size)


def _refuse_loops(root: Path) -> None:
    """Refuse links to a folder above them: torchvision follows links, and would without end.

    Raises:
        DataError: there is one.
    """
    for folder, children, _ in os.walk(root):
        for child in children:
            link = Path(folder) / child
            if link.is_symlink() and Path(folder).resolve().is_relative_to(link.resolve()):
                raise DataError(f"data.path={root} contains itself: {link} links to a folder above")


def _refuse_empty_classes(dataset: ImageFolder, path: Path) -> None:
    """In a line that stays short where a thousand folders are empty."""
    filled = {dataset.classes[index] for index in dataset.targets}
    empty = [name for name in dataset.classes if name not in filled]
    if empty:
        raise DataError(
            f"data.path={path} has no images in {len(empty)} of {len(dataset.classes)} class "
            f"folders, the first of them {empty[0]}; expected {LAYOUT}"
        )
