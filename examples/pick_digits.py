"""Pick the digits of examples/digits.npz from MNIST's test set: the first 30 of each class, in the set's order.

python -m examples.pick_digits DIRECTORY      # with t10k-images-idx3-ubyte.gz and t10k-labels-idx1-ubyte.gz
"""

from __future__ import annotations

import gzip
import sys
from pathlib import Path

import numpy as np

EACH = 30
TARGET = Path(__file__).parent / "digits.npz"


def main(directory: Path) -> None:
    images = np.frombuffer(gzip.decompress((directory / "t10k-images-idx3-ubyte.gz").read_bytes()), np.uint8, offset=16)
    labels = np.frombuffer(gzip.decompress((directory / "t10k-labels-idx1-ubyte.gz").read_bytes()), np.uint8, offset=8)
    images = images.reshape(-1, 28, 28)
    chosen = np.sort(np.concatenate([np.flatnonzero(labels == digit)[:EACH] for digit in range(10)]))
    np.savez_compressed(TARGET, images=images[chosen], labels=labels[chosen])
    print(f"{len(chosen)} digits in {TARGET.name}, {TARGET.stat().st_size} bytes")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(Path(sys.argv[1]))
