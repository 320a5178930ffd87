"""8-bit integers on processors with fast kernels for them, and on one without, which qemu plays."""

from __future__ import annotations

import platform
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest

from hourglass import in_process
from service import devices, packages
from tests import tiny
from training import precision
from training.graphs import session

ROOT = Path(__file__).parents[2]
RUN = """
import sys
from pathlib import Path

import numpy as np

from hourglass import in_process
from service import devices, packages
from service.session import OnnxSession

folder, processor = map(Path, sys.argv[1:])
in_process._PROCESSOR = devices._PROCESSOR = processor
rows = np.ones((2, 4, 4), np.float32)
served = OnnxSession(packages.read(folder), devices.Device(provider=devices.CPU), threads=1, max_batch_rows=8)
with in_process.InProcess(folder, threads=1) as here:
    print(float(served.encode(rows).mean()), float(here.encode("tiny", rows).mean()))
"""


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """Its encoder adds the elements of a row up, in 8-bit integers: of ones, 255 * 127 sixteen times."""
    rows = (np.rint(tiny.rows(50) * 255) / 255).astype(np.float32)
    rows[0] = 1
    whole = tiny.graph(
        np.ones((tiny.ELEMENTS, tiny.LATENT), np.float32), tiny.ROW_SHAPE, (tiny.LATENT,), "rows", "latents"
    )
    encoder = precision.to_int8(whole.SerializeToString(), rows, latent_side="output")
    latents = session(encoder).run(None, {"rows": rows[:5]})[0]
    golden = tiny.npz(rows=rows[:5], latents=latents, reconstructions=tiny.decode(latents))
    files = tiny.files() | {packages.ENCODER: encoder, packages.GOLDEN: golden}
    return packages.write(tmp_path / "models", tiny.manifest(), files)


@pytest.mark.parametrize("flags", ["avx2 avx512f avx512_vnni", "avx2 avx_vnni", "avx2 avx512_4vnniw", "avx2", None])
def test_signed_weights_stay_so_only_where_their_kernels_are_exact(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flags: str | None
) -> None:
    processor = tmp_path / "cpuinfo"
    if flags is not None:
        processor.write_text(f"processor : 0\nflags : fpu {flags} sse\n")
    monkeypatch.setattr(devices, "_PROCESSOR", processor)
    monkeypatch.setattr(in_process, "_PROCESSOR", processor)
    options = ort.SessionOptions()
    devices.exact_integers(options)
    try:
        unsigned = options.get_session_config_entry("session.x64quantprecision") == "1"
    except RuntimeError:  # not set
        unsigned = False
    assert unsigned == (flags is None or "_vnni" not in flags)
    assert in_process._has_vnni() != unsigned


@pytest.mark.skipif(
    platform.machine() != "x86_64" or shutil.which("qemu-x86_64") is None,
    reason="needs x86-64 and qemu-x86_64 (Debian: qemu-user)",
)
def test_a_processor_without_fast_kernels_gives_the_same_numbers(package: Path, tmp_path: Path) -> None:
    def sums(flags: str) -> list[float]:
        processor = tmp_path / "cpuinfo"
        processor.write_text(f"flags : {flags}\n")
        command = ["qemu-x86_64", "-cpu", "Haswell", sys.executable, "-c", RUN, str(package), str(processor)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=ROOT, check=False)
        assert done.returncode == 0, done.stderr
        return [float(word) for word in done.stdout.split()]

    assert sums("avx2") == pytest.approx([tiny.ELEMENTS] * 2, rel=1e-2)
    # Such a processor, taken for one with VNNI: what the option is for.
    assert max(sums("avx2 avx_vnni")) < 0.6 * tiny.ELEMENTS
