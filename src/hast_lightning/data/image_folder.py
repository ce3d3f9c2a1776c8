"""A validation folder with one folder per class, as ImageNet's is usually laid out."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from hast_lightning.config import DataConfig
from hast_lightning.errors import DataError, first_line
from hast_lightning.files.pictures import Fitting, open_picture, refuse_loops

if TYPE_CHECKING:
    from torchvision.datasets import ImageFolder

    from hast_lightning.core.network import PretrainedNetwork

LAYOUT = (
    "one folder per class in sorted class order, e.g. val/n01440764/ILSVRC2012_val_00000293.JPEG"
)
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
        except DataError as error:
            # What a worker process raised comes back with its stack trace in front.
            reason = str(error).strip().splitlines()[-1].rpartition("DataError: ")[-1]
            # Its traceback and the frames in it hold each other and the loader, which would live on
            # until garbage is collected, and then wait five seconds for each of its processes.
            cause = error.with_traceback(None)
            raise DataError(f"data.path={self._dataset.root} has a bad image: {reason}") from cause


def load_image_folder(config: DataConfig, network: PretrainedNetwork) -> ImageFolderData:
    """Open the images in ``config.path``, prepared for ``network``.

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
    refuse_loops(path, f"data.path={path}")
    transform = transforms.Compose(
        [
            Fitting(*network.input_shape[1:], network.resize_ratio),
            transforms.ToTensor(),
            transforms.Normalize(network.mean, network.std),
        ]
    )
    try:
        dataset = ImageFolder(str(path), transform, loader=open_picture, allow_empty=True)
    except (FileNotFoundError, OSError) as error:
        raise DataError(f"data.path={path}: {first_line(error)}; expected {LAYOUT}") from error
    if len(dataset.classes) != network.num_classes:
        raise DataError(
            f"data.path={path} has {len(dataset.classes)} class folders, the network "
            f"{network.num_classes} classes; expected {LAYOUT}"
        )
    _refuse_empty_classes(dataset, path)
    return ImageFolderData(dataset, config.batch_size)


def _refuse_empty_classes(dataset: ImageFolder, path: Path) -> None:
    """In a line that stays short where a thousand folders are empty."""
    filled = {dataset.classes[index] for index in dataset.targets}
    empty = [name for name in dataset.classes if name not in filled]
    if empty:
        raise DataError(
            f"data.path={path} has no images in {len(empty)} of {len(dataset.classes)} class "
            f"folders, the first of them {empty[0]}; expected {LAYOUT}"
        )
