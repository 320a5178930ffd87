"""Trains a dense 784-32-784 autoencoder with pythae's trainer, in pythae's environment, whenever it is asked to.

    python trainer.py ROWS.npy BATCH_ROWS THREADS

For each line on standard input, a number of epochs, it trains that many and answers with wall and processor seconds.
"""

import json
import sys
import tempfile
import time

import numpy as np
import torch
from pythae.data.datasets import BaseDataset
from pythae.models import AE, AEConfig
from pythae.models.base.base_utils import ModelOutput
from pythae.models.nn import BaseDecoder, BaseEncoder
from pythae.trainers import BaseTrainer, BaseTrainerConfig
from torch import nn
from torch.nn import functional

LATENT = 32


class Encoder(BaseEncoder):
    def __init__(self, inputs):
        BaseEncoder.__init__(self)
        self.layer = nn.Linear(inputs, LATENT)

    def forward(self, x):
        return ModelOutput(embedding=functional.relu(self.layer(x)))


class Decoder(BaseDecoder):
    def __init__(self, outputs):
        BaseDecoder.__init__(self)
        self.layer = nn.Linear(LATENT, outputs)

    def forward(self, z):
        return ModelOutput(reconstruction=self.layer(z))


class LogitsAE(AE):
    """With the loss of the others: cross-entropy from logits, summed over a row."""

    def loss_function(self, recon_x, x):
        return functional.binary_cross_entropy_with_logits(recon_x, x, reduction="sum") / len(x)


def main():
    path, batch_rows, threads = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    torch.set_num_threads(threads)
    rows = torch.from_numpy(np.load(path)).flatten(1)
    width = rows.shape[1]
    model = LogitsAE(AEConfig(input_dim=(width,), latent_dim=LATENT), Encoder(width), Decoder(width))
    config = BaseTrainerConfig(
        output_dir=tempfile.mkdtemp(),
        num_epochs=1,
        per_device_train_batch_size=batch_rows,
        learning_rate=1e-3,
        optimizer_cls="Adam",
        optimizer_params={"fused": True},
        no_cuda=True,
    )
    trainer = BaseTrainer(model, BaseDataset(rows, torch.ones(len(rows))), training_config=config)
    trainer.prepare_training()
    print("ready", flush=True)
    epoch = 0
    for line in sys.stdin:
        wall_s, processor_s = time.perf_counter(), time.process_time()
        for _ in range(int(line)):
            epoch += 1
            trainer.train_step(epoch)
        print(json.dumps([time.perf_counter() - wall_s, time.process_time() - processor_s]), flush=True)


if __name__ == "__main__":
    main()
