"""Networks: rows in, latents, rows out. Everything a client should not know is inside: shape, normalisation.

Shape legend: B rows, D... the dimensions of a row (H, W for images), N their product, C channels, L... the latent's.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

from training import recipes
from training.errors import RecipeError


class Autoencoder(nn.Module):
    """An encoder [B, D...] -> [B, L...] and a decoder back; `decode` is `activate` of `logits`.

    `shift` and `scale` [D...] are the normalisation: undone on the way out.
    """

    shift: Tensor
    scale: Tensor

    def __init__(self, row_shape: tuple[int, ...], latent_shape: tuple[int, ...], output_activation: str) -> None:
        super().__init__()
        self.row_shape = row_shape
        self.latent_shape = latent_shape
        self.output_activation = output_activation
        self.normalised = False
        self.register_buffer("shift", torch.zeros(row_shape))
        self.register_buffer("scale", torch.ones(row_shape))

    def fit_normalisation(self, kind: str, rows: Tensor) -> None:
        """Centre: subtract each element's mean. Standardise: divide by its standard deviation too.

        An element that hardly varies (below a hundredth of the largest deviation) is not divided: it would blow up
        whatever a test row holds there.
        """
        self.normalised = kind != "none"
        if kind in ("centre", "standardise"):
            self.shift.copy_(rows.mean(0))
        if kind == "standardise":
            deviation = rows.std(0)
            self.scale.copy_(torch.where(deviation > deviation.max() / 100, deviation, torch.ones(())))

    def encode(self, rows: Tensor) -> Tensor:
        return self._encode((rows - self.shift) / self.scale if self.normalised else rows)

    def logits(self, latents: Tensor) -> Tensor:
        """What the output activation is applied to [B, D...]."""
        outputs = self._decode(latents)
        return outputs * self.scale + self.shift if self.normalised else outputs

    def activate(self, logits: Tensor) -> Tensor:
        return activate(self.output_activation, logits)

    def decode(self, latents: Tensor) -> Tensor:
        return self.activate(self.logits(latents))

    def forward(self, rows: Tensor) -> Tensor:
        return self.decode(self.encode(rows))

    def input_weight(self) -> Tensor:
        """The first layer's weight [units, N] as it acts on raw rows; of convolutions, the kernels [C, area]."""
        raise NotImplementedError

    def _encode(self, rows: Tensor) -> Tensor:
        raise NotImplementedError

    def _decode(self, latents: Tensor) -> Tensor:
        raise NotImplementedError


class DenseAutoencoder(Autoencoder):
    """Fully connected layers; the decoder mirrors the encoder, with the same weights transposed where tied."""

    def __init__(
        self,
        row_shape: tuple[int, ...],
        widths: Sequence[int],
        *,
        activation: str,
        latent_activation: str,
        output_activation: str,
        tied: bool,
    ) -> None:
        super().__init__(row_shape, (widths[-1],), output_activation)
        sizes = [math.prod(row_shape), *widths]
        self.encoder = nn.ModuleList(nn.Linear(before, after) for before, after in pairwise(sizes))
        self.decoder: nn.ModuleList | None = None
        if not tied:
            self.decoder = nn.ModuleList(nn.Linear(before, after) for before, after in pairwise(sizes[::-1]))
        self.tied_bias = nn.ParameterList(nn.Parameter(torch.zeros(size)) for size in sizes[-2::-1]) if tied else None
        self.encoder_activations = [activation] * (len(widths) - 1) + [latent_activation]
        self.decoder_activations = [activation] * (len(widths) - 1) + ["linear"]

    def input_weight(self) -> Tensor:
        first = self.encoder[0]
        assert isinstance(first, nn.Linear)
        return first.weight / self.scale.flatten() if self.normalised else first.weight

    def encoder_layer(self, index: int, inputs: Tensor) -> Tensor:
        """Layer `index` of the encoder, with its activation; layer 0 takes flat rows [B, N]."""
        outputs: Tensor = self.encoder[index](inputs)
        return activate(self.encoder_activations[index], outputs)

    def decoder_logits(self, index: int, inputs: Tensor) -> Tensor:
        """Layer `index` of the decoder, counted from the latent, before its activation."""
        if self.decoder is not None:
            outputs: Tensor = self.decoder[index](inputs)
            return outputs
        assert self.tied_bias is not None, "a network without a decoder is tied; this is a bug"
        mirror = self.encoder[len(self.encoder) - 1 - index]
        assert isinstance(mirror, nn.Linear)
        return functional.linear(inputs, mirror.weight.T, self.tied_bias[index])

    def _encode(self, rows: Tensor) -> Tensor:
        values = rows.flatten(1)
        for index in range(len(self.encoder)):
            values = self.encoder_layer(index, values)
        return values

    def _decode(self, latents: Tensor) -> Tensor:
        values = latents
        for index, name in enumerate(self.decoder_activations):
            values = activate(name, self.decoder_logits(index, values))
        return values.reshape(-1, *self.row_shape)


class ConvolutionalAutoencoder(Autoencoder):
    """Convolutions over rows [B, H, W] or, in colour, [B, H, W, colours].

    With 2x2 max pooling to the latent [C, H, W], and up again, to one channel a colour at the end.
    """

    def __init__(self, row_shape: tuple[int, ...], recipe: recipes.Convolutional) -> None:
        if len(row_shape) not in (2, 3):
            raise RecipeError(
                "network.kind: 'convolutional' needs rows of height and width, and of colours where they have any; got "
                f"{list(row_shape)}"
            )
        picture = row_shape[:2]
        colours = row_shape[2] if len(row_shape) == 3 else 1
        sizes: list[tuple[int, ...]] = [picture]
        for _ in recipe.channels:
            sizes.append(tuple(-(-size // 2) for size in sizes[-1]))
        super().__init__(row_shape, (recipe.channels[-1], *sizes[-1]), recipe.output_activation)
        self.latent_activation = recipe.latent_activation
        kernel, same = recipe.kernel, recipe.kernel // 2
        self.transposed = recipe.upsampling == "transposed"
        self.encoder = nn.ModuleList(
            nn.Conv2d(before, after, kernel, padding=same) for before, after in pairwise([colours, *recipe.channels])
        )
        layers: list[nn.Module] = []
        size = sizes[-1]
        count = len(recipe.decoder_channels)
        for index, (before, after) in enumerate(pairwise([recipe.channels[-1], *recipe.decoder_channels])):
            if self.transposed:
                layers.append(nn.ConvTranspose2d(before, after, kernel, stride=2, padding=same, output_padding=1))
            else:
                # 28 pixels are halved to 4 by rounding up, and doubled to 16: a convolution without padding makes
                # that 14 before the last doubling, as in the Keras model.
                valid = index == count - 1 and tuple(2 * (side - 2 * same) for side in size) == picture
                layers.append(nn.Conv2d(before, after, kernel, padding=0 if valid else same))
                size = tuple(side - 2 * same for side in size) if valid else size
            size = tuple(2 * side for side in size)
        if size != picture:
            raise RecipeError(
                f"network.decoder_channels: {count} doublings lead from the latent's {list(sizes[-1])} to "
                f"{list(size)}, not to the row's {list(picture)}"
            )
        self.decoder = nn.ModuleList(layers)
        self.output = nn.Conv2d(recipe.decoder_channels[-1], colours, kernel, padding=same)

    def input_weight(self) -> Tensor:
        first = self.encoder[0]
        assert isinstance(first, nn.Conv2d)
        return first.weight.flatten(1)

    def _encode(self, rows: Tensor) -> Tensor:
        values = rows.unsqueeze(1) if len(self.row_shape) == 2 else rows.permute(0, 3, 1, 2)
        for index, layer in enumerate(self.encoder):
            last = index == len(self.encoder) - 1
            values = activate(self.latent_activation if last else "relu", layer(values))
            values = functional.max_pool2d(values, 2, ceil_mode=True)
        return values

    def _decode(self, latents: Tensor) -> Tensor:
        values = latents
        for layer in self.decoder:
            values = functional.relu(layer(values))
            if not self.transposed:
                values = functional.interpolate(values, scale_factor=2.0, mode="nearest")
        outputs: Tensor = self.output(values)
        return outputs.squeeze(1) if len(self.row_shape) == 2 else outputs.permute(0, 2, 3, 1)


class SeriesAutoencoder(Autoencoder):
    """Convolutions over the steps of rows [B, steps, columns], of stride 2 to the latent [C, steps].

    Each level doubles the steps again and drops one too many, so that windows of any length come back.
    """

    def __init__(self, row_shape: tuple[int, ...], recipe: recipes.Conv1d) -> None:
        if len(row_shape) != 2:
            raise RecipeError(f"network.kind: 'conv1d' needs rows of steps and columns; got {list(row_shape)}")
        steps, columns = row_shape
        self.lengths = [steps]
        for _ in recipe.channels:
            self.lengths.append(-(-self.lengths[-1] // 2))
        super().__init__(row_shape, (recipe.channels[-1], self.lengths[-1]), recipe.output_activation)
        self.latent_activation = recipe.latent_activation
        kernel, same = recipe.kernel, recipe.kernel // 2
        widths = [columns, *recipe.channels]
        self.encoder = nn.ModuleList(
            nn.Conv1d(before, after, kernel, stride=2, padding=same) for before, after in pairwise(widths)
        )
        # The last one works at full length and mixes what the first level holds into the columns.
        mirrored = [*widths[:0:-1], widths[1]]
        self.decoder = nn.ModuleList(
            nn.Conv1d(before, after, kernel, padding=same) for before, after in pairwise(mirrored)
        )
        self.output = nn.Conv1d(widths[1], columns, kernel, padding=same)

    def input_weight(self) -> Tensor:
        first = self.encoder[0]
        assert isinstance(first, nn.Conv1d)
        return first.weight.flatten(1)

    def _encode(self, rows: Tensor) -> Tensor:
        values = rows.transpose(1, 2)
        for index, layer in enumerate(self.encoder):
            last = index == len(self.encoder) - 1
            values = activate(self.latent_activation if last else "relu", layer(values))
        return values

    def _decode(self, latents: Tensor) -> Tensor:
        values = latents
        for layer, length in zip(self.decoder, self.lengths[-2::-1], strict=True):
            values = functional.interpolate(values, scale_factor=2.0, mode="nearest")[:, :, :length]
            values = functional.relu(layer(values))
        outputs: Tensor = self.output(values)
        return outputs.transpose(1, 2)


def activate(name: str, values: Tensor) -> Tensor:
    match name:
        case "linear":
            return values
        case "relu":
            return functional.relu(values)
        case "sigmoid":
            return torch.sigmoid(values)
        case "tanh":
            return torch.tanh(values)
    raise ValueError(f"activation {name!r}; this is a bug")


def build(recipe: recipes.Network, row_shape: tuple[int, ...]) -> Autoencoder:
    """A new network, initialised from torch's global random numbers: Glorot uniform weights, zero biases.

    PyTorch's own initialisation ends 784-32-784 with dead units and a visibly worse loss.
    """
    network: Autoencoder
    if isinstance(recipe, recipes.Convolutional):
        # oneDNN convolves weights in this memory order two to four times faster on a CPU.
        network = ConvolutionalAutoencoder(row_shape, recipe).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    elif isinstance(recipe, recipes.Conv1d):
        network = SeriesAutoencoder(row_shape, recipe)
    elif isinstance(recipe, recipes.Linear):
        network = DenseAutoencoder(
            row_shape,
            [recipe.latent],
            activation="linear",
            latent_activation="linear",
            output_activation="linear",
            tied=recipe.tied,
        )
    else:
        network = DenseAutoencoder(
            row_shape,
            [*recipe.hidden, recipe.latent],
            activation=recipe.activation,
            latent_activation=recipe.latent_activation,
            output_activation=recipe.output_activation,
            tied=recipe.tied,
        )
    network.normalised = recipe.normalisation != "none"
    for module in network.modules():
        if isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d | nn.ConvTranspose2d):
            nn.init.xavier_uniform_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    return network
