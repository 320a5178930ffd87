"""The servers that Hourglass is compared with, each serving the same ONNX encoder in an environment of its own.

catalog says which there are and starts them, wires speaks to them, environments builds what they need; the modules
named server are the peers themselves. `python -m benchmarks.peers --help` builds and checks them.
"""
