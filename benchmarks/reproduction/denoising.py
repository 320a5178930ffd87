"""How the package `models/mnist-denoising-conv` denoises, over noise levels it was and was not trained for."""

from __future__ import annotations

from pathlib import Path

import torch

from benchmarks.reproduction.bench import Bench, Figures, Outcome
from benchmarks.reproduction.rows import Group, Paper, Row, Trial
from training.corruption import gaussian
from training.evaluate import PeerPCA, picture_metrics

PACKAGE = Path(__file__).resolve().parents[2] / "models" / "mnist-denoising-conv" / "1"
LEVELS = (0.1, 0.25, 0.5, 0.75, 1.0)
PCA_UNITS = 32
_CHUNK_ROWS = 500


def trial(level: float) -> Trial:
    def run(bench: Bench) -> Outcome:
        # Imported here: nothing else in this package needs a runtime.
        import onnxruntime

        dataset = bench.dataset("mnist")
        rows = dataset.test_rows
        noisy = gaussian(rows, level, bench.generator(400, torch.device("cpu")))
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        encoder, decoder = (
            onnxruntime.InferenceSession(PACKAGE / f"{part}.onnx", options, providers=["CPUExecutionProvider"])
            for part in ("encoder", "decoder")
        )
        outputs = []
        for chunk in torch.split(noisy, _CHUNK_ROWS):
            (latents,) = encoder.run(None, {"rows": chunk.numpy()})
            outputs.append(torch.from_numpy(decoder.run(None, {"latents": latents})[0]))
        pca = PeerPCA(dataset.train_rows, PCA_UNITS)
        figures: Figures = {}
        for name, pictures in (
            ("denoised", torch.cat(outputs)),
            ("noisy", noisy),
            ("pca", pca.reconstruct(noisy)),
        ):
            metrics = picture_metrics(pictures, rows)
            figures |= {f"{name}_psnr_db": metrics["psnr_db"], f"{name}_ssim": metrics["ssim"]}
        return Outcome(figures=figures, settings={"package": "mnist-denoising-conv/1", "level": level})

    return run


def group() -> Group:
    more = ("noisy_psnr_db", "pca_psnr_db", "noisy_ssim", "denoised_ssim", "pca_ssim")
    rows = tuple(
        Row(
            name=f"denoising-{level:g}",
            title=f"noise {level:g}",
            metric="denoised_psnr_db",
            form=".2f",
            better="higher",
            paper=Paper(value=None, note="none"),
            trials={"ours": trial(level)},
            wanted={},
            more=more,
        )
        for level in LEVELS
    )
    return Group(
        title="Denoising over noise levels",
        text=(
            "PSNR of MNIST's test pictures with gaussian noise of a standard deviation, clipped to 0..1, after "
            "the served package mnist-denoising-conv, which was trained at 0.5 only; beside it the noisy input "
            f"and PCA of {PCA_UNITS} components fitted to clean rows."
        ),
        unit="PSNR, dB",
        rows=rows,
    )
