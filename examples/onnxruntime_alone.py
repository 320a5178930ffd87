"""A model without Hourglass: onnxruntime and numpy. First, in a folder of your choice:

python -m training convert models/mnist-denoising-conv/1 --layout onnx FOLDER
python examples/onnxruntime_alone.py FOLDER
"""

import sys

import numpy as np
import onnxruntime

folder = sys.argv[1]
encoder, decoder = (onnxruntime.InferenceSession(f"{folder}/{name}.onnx") for name in ("encoder", "decoder"))
golden = np.load(f"{folder}/golden.npz")
(latents,) = encoder.run(None, {"rows": golden["rows"]})
(rows,) = decoder.run(None, {"latents": latents})
print(f"{len(rows)} rows, {latents[0].size} numbers each in between")
print(f"at most {np.abs(rows - golden['reconstructions']).max():.1e} from what PyTorch gave for them")
