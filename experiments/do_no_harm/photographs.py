"""Make a file of every fourth photograph of an ImageNet validation folder.

``python experiments/do_no_harm/photographs.py <folder> <file.npz>``: 224 x 224 pixels, cropped as
for evaluation, with the labels of the 1,000 sorted class folders.
"""

from __future__ import annotations

import sys

import numpy as np
from torchvision.datasets import ImageFolder
from torchvision.transforms.v2 import CenterCrop, Compose, Resize

if __name__ == "__main__":
    folder, file = sys.argv[1:]
    pictures = ImageFolder(folder, Compose([Resize(256), CenterCrop(224)]))
    chosen = [pictures[number] for number in range(0, len(pictures), 4)]
    images, labels = zip(*chosen, strict=True)
    np.savez_compressed(file, x=np.stack([np.asarray(image) for image in images]), y=labels)
