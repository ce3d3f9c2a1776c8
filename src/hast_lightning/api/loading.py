"""The file that ``QuantizedModel.load`` is to read, and refusals of those that it cannot."""

from __future__ import annotations

from pathlib import Path

from hast_lightning.errors import ModelError
from hast_lightning.export.artifact import FORMATS
from hast_lightning.export.packed import packed_files

PACKED = FORMATS["packed"].suffix
CHECKPOINT = ".ckpt"
_EXPORTS = {
    FORMATS["onnx"].suffix: "an ONNX file, for onnxruntime",
    FORMATS["program"].suffix: "a torch.export program, for torch.export.load",
}


def packed_file(path: Path) -> Path:
    """Return the packed checkpoint at ``path``, or the only one in the folder there.

    Raises:
        ModelError: the folder has none or several, or the file is of a kind that cannot be turned
            back into a network.
    """
    if path.is_dir():
        return _only_one(path)
    if path.is_file() and path.suffix in _EXPORTS:
        raise ModelError(
            f"{path} is {_EXPORTS[path.suffix]} or `hast-lightning command=predict "
            f"artifact={path}`; QuantizedModel.load reads the packed checkpoint ({PACKED}) that "
            "save writes"
        )
    if path.is_file() and path.suffix == CHECKPOINT:
        raise ModelError(
            f"{path} is the checkpoint of a run, which goes on with `hast-lightning "
            f"resume={path.parent}`; the quantized network of a run that is complete is its "
            f"student{PACKED}"
        )
    return path


def _only_one(folder: Path) -> Path:
    found = packed_files(folder)
    if not found:
        raise ModelError(
            f"the folder {folder} has no packed checkpoint: a run that is complete leaves "
            f"student{PACKED} in its folder (export=packed)"
        )
    if len(found) > 1:
        names = ", ".join(path.name for path in found)
        raise ModelError(
            f"the folder {folder} has {len(found)} packed checkpoints, name one: {names}"
        )
    return found[0]
