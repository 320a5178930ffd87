"""How a network is trained: in closed form, jointly, or greedily layer by layer with fine-tuning.

Shape legend: B rows, D... the dimensions of a row, N their product, L... the dimensions of a latent, K classes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy.typing as npt
import torch
from sklearn.decomposition import PCA
from torch import Generator, Tensor, nn
from torch.nn import functional

from training import losses, recipes
from training.corruption import corrupt
from training.data import Dataset
from training.networks import Autoencoder, DenseAutoencoder, activate
from training.optimise import Phase, run_phase
from training.penalties import l1, penalise
from training.runs import CLASSIFIER
from training.session import Session

EVALUATION_ROWS = 1000  # rows a step where nothing is learned
_VALIDATION_SEED = 1


@dataclass(frozen=True, kw_only=True)
class Context:
    """What every procedure works on; `generator` draws the order of the rows and the corruption."""

    recipe: recipes.Recipe
    dataset: Dataset
    session: Session
    generator: Generator

    @property
    def network(self) -> Autoencoder:
        network = self.session.modules["network"]
        assert isinstance(network, Autoencoder)
        return network

    def phase(self, phase: Phase, settings: recipes.Optimisation) -> None:
        run_phase(phase, settings, row_count=len(self.dataset.train_rows), session=self.session)


def perform(context: Context) -> None:
    """Train the network by the recipe's procedure; checkpoints and the log go to the run."""
    procedure = context.recipe.procedure
    match procedure:
        case recipes.ClosedForm():
            fit_closed_form(context.network, context.dataset.train_rows)
            context.session.save(None, writes_best=False)
        case recipes.Joint():
            train_jointly(context, "joint", procedure, context.network)
        case recipes.Greedy():
            train_greedily(context, procedure)


def fit_closed_form(network: Autoencoder, rows: Tensor) -> None:
    """Principal component analysis: the components are the weights of the encoder and, transposed, the decoder."""
    assert isinstance(network, DenseAutoencoder), "checked by the recipe; this is a bug"
    pca = principal_components(rows.flatten(1).double().cpu().numpy(), network.latent_shape[0])
    components = torch.from_numpy(pca.components_).float()
    with torch.no_grad():
        network.shift.copy_(torch.from_numpy(pca.mean_).float().reshape(network.row_shape))
        network.encoder[0].weight.copy_(components)  # type: ignore[operator]
        if network.decoder is not None:
            network.decoder[0].weight.copy_(components.T)  # type: ignore[operator]


def principal_components(rows: npt.NDArray[Any], units: int) -> PCA:
    """PCA fitted to rows [B, N], of at most min(B, N) units.

    By the covariance of the elements or, where those are more than the rows, without it: it would take gigabytes, and
    minutes, for pictures of some size.
    """
    solver = "covariance_eigh" if len(rows) >= rows.shape[1] else "full"
    return PCA(units, svd_solver=solver).fit(rows)


def train_jointly(context: Context, name: str, settings: recipes.Optimisation, trained: nn.Module) -> None:
    """All of `trained` at once, on corrupted rows with the clean rows as targets. Keeps the best epoch."""
    recipe, network, rows = context.recipe, context.network, context.dataset.train_rows

    def batch_loss(indices: Tensor) -> tuple[Tensor, Tensor]:
        return objective(recipe, network, rows.index_select(0, indices), context.generator)

    def validate() -> dict[str, float]:
        figures = validation_objective(recipe, network, context.dataset.validation_rows)
        if recipe.penalty.kind == "kl-sparsity":
            figures["mean_activation"] = mean_activation(network, rows)
        return figures

    phase = Phase(name=name, parameters=trained.parameters(), batch_loss=batch_loss, validate=validate, keeps_best=True)
    context.phase(phase, settings)


def train_greedily(context: Context, procedure: recipes.Greedy) -> None:
    """Each layer as an autoencoder of the clean output of the layer below, then fine-tuning and refitting."""
    network = context.network
    assert isinstance(network, DenseAutoencoder), "checked by the recipe; this is a bug"
    train_inputs = context.dataset.train_rows.flatten(1)
    validation_inputs = context.dataset.validation_rows.flatten(1)
    for index in range(len(network.encoder)):
        train_layer(context, procedure, index, train_inputs, validation_inputs)
        with torch.no_grad():
            train_inputs = network.encoder_layer(index, train_inputs)
            validation_inputs = network.encoder_layer(index, validation_inputs)
    if procedure.finetuning and procedure.refitting:
        classifier = fine_tune(context, procedure.finetuning)
        if context.session.world.leads:
            context.session.run.save(classifier, CLASSIFIER)
        for parameter in network.encoder.parameters():
            parameter.requires_grad_(False)
        assert network.decoder is not None, "checked by the recipe; this is a bug"
        train_jointly(context, "refitting", procedure.refitting, network.decoder)


def train_layer(
    context: Context, settings: recipes.Optimisation, index: int, train_inputs: Tensor, validation_inputs: Tensor
) -> None:
    """Layer `index` of the encoder with its mirror in the decoder; inputs [B, units of the layer below], clean."""
    recipe, network = context.recipe, context.network
    assert isinstance(network, DenseAutoencoder), "checked by the recipe; this is a bug"
    decoder = network.decoder
    assert decoder is not None, "checked by the recipe; this is a bug"
    mirror = len(network.encoder) - 1 - index

    def layer_objective(inputs: Tensor, generator: Generator) -> tuple[Tensor, Tensor]:
        latents = network.encoder_layer(index, corrupt(recipe.corruption, inputs, generator))
        logits = network.decoder_logits(mirror, latents)
        output = network.output_activation if index == 0 else network.encoder_activations[index - 1]
        penalty = latents.new_zeros(())
        if isinstance(recipe.penalty, recipes.L1):
            penalty = recipe.penalty.strength * l1(latents)
        return reconstruction_loss(recipe, output, logits, inputs), penalty

    def validate() -> dict[str, float]:
        loss, penalty = layer_objective(validation_inputs, validation_generator(validation_inputs))
        return {"validation_loss": loss.item(), "validation_penalty": penalty.item()}

    phase = Phase(
        name=f"layer {index + 1}",
        parameters=[*network.encoder[index].parameters(), *decoder[mirror].parameters()],
        batch_loss=lambda indices: layer_objective(train_inputs.index_select(0, indices), context.generator),
        validate=validate,
    )
    context.phase(phase, settings)


def fine_tune(context: Context, settings: recipes.FineTuning) -> nn.Linear:
    """The encoder with a softmax classifier [L] -> [K] on top, trained on the labels. Returns the classifier."""
    network, dataset = context.network, context.dataset
    assert isinstance(network, DenseAutoencoder), "checked by the recipe; this is a bug"
    classifier = nn.Linear(network.latent_shape[0], dataset.class_count)
    nn.init.xavier_uniform_(classifier.weight)
    nn.init.zeros_(classifier.bias)
    classifier.to(dataset.train_rows.device)
    context.session.adopt("classifier", classifier)
    # Of small pictures it rounds to none: a pixel of an 8x8 digit is an eighth of it.
    shift_pixels = round(settings.shift_share * min(network.row_shape))

    def batch_loss(indices: Tensor) -> tuple[Tensor, Tensor]:
        rows = dataset.train_rows.index_select(0, indices)
        if shift_pixels:
            rows = shift(rows, shift_pixels, context.generator)
        values = functional.dropout(rows.flatten(1), settings.input_dropout)
        for index in range(len(network.encoder)):
            values = functional.dropout(network.encoder_layer(index, values), settings.dropout)
        loss = functional.cross_entropy(classifier(values).float(), dataset.train_labels[indices])
        return loss, loss.new_zeros(())

    def validate() -> dict[str, float]:
        accuracy = classification_accuracy(network, classifier, dataset.validation_rows, dataset.validation_labels)
        return {"validation_accuracy": accuracy}

    def inaccuracy(figures: Mapping[str, float]) -> float:
        return 1 - figures["validation_accuracy"]

    phase = Phase(
        name="fine-tuning",
        parameters=[*network.encoder.parameters(), *classifier.parameters()],
        batch_loss=batch_loss,
        validate=validate,
        objective=inaccuracy,
    )
    context.phase(phase, settings)
    return classifier


def shift(rows: Tensor, most: int, generator: Generator) -> Tensor:
    """Rows [B, H, W], each moved by up to `most` pixels down and right or up and left; black comes in."""
    count, height, width = rows.shape
    padded = functional.pad(rows, (most, most, most, most))
    device = rows.device
    top, left = (
        torch.randint(0, 2 * most + 1, (count, 1), generator=generator, device=device)
        + torch.arange(size, device=device)
        for size in (height, width)
    )
    return padded[torch.arange(count, device=device)[:, None, None], top[:, :, None], left[:, None, :]]


def reconstruction_loss(recipe: recipes.Recipe, output_activation: str, logits: Tensor, targets: Tensor) -> Tensor:
    """The recipe's loss of logits [B, ...], which `output_activation` would make into outputs."""
    logits = logits.float()
    if recipe.loss.kind == "cross-entropy":
        return losses.cross_entropy(logits, targets)
    return losses.squared_error(activate(output_activation, logits), targets)


def objective(
    recipe: recipes.Recipe, network: Autoencoder, rows: Tensor, generator: Generator
) -> tuple[Tensor, Tensor]:
    """Loss and weighted penalty of clean rows [B, D...], which are corrupted before they are encoded."""
    inputs = corrupt(recipe.corruption, rows, generator)
    latents = network.encode(inputs)
    loss = reconstruction_loss(recipe, network.output_activation, network.logits(latents), rows)
    return loss, penalise(recipe.penalty, network, inputs, latents.float(), generator)


def validation_objective(recipe: recipes.Recipe, network: Autoencoder, rows: Tensor) -> dict[str, float]:
    generator = validation_generator(rows)
    sums = torch.zeros(2, device=rows.device)
    for chunk in torch.split(rows, EVALUATION_ROWS):
        loss, penalty = objective(recipe, network, chunk, generator)
        sums += torch.stack([loss.detach(), penalty.detach()]) * (len(chunk) / len(rows))
    return {"validation_loss": sums[0].item(), "validation_penalty": sums[1].item()}


def validation_generator(rows: Tensor) -> Generator:
    """The noise of every epoch's validation, on the device of the rows."""
    return torch.Generator(rows.device).manual_seed(_VALIDATION_SEED)


def mean_activation(network: Autoencoder, rows: Tensor) -> float:
    """The mean over units of the mean over all rows: a full pass, not a running figure."""
    return sum(float(chunk.sum(0).mean()) for chunk in encode_chunks(network, rows)) / len(rows)


def encode_chunks(network: Autoencoder, rows: Tensor) -> Iterator[Tensor]:
    with torch.no_grad():
        for chunk in torch.split(rows, EVALUATION_ROWS):
            yield network.encode(chunk)


def classification_accuracy(network: Autoencoder, classifier: nn.Linear, rows: Tensor, labels: Tensor) -> float:
    with torch.no_grad():
        hits = sum(
            int((classifier(network.encode(chunk)).argmax(1) == chunk_labels).sum())
            for chunk, chunk_labels in zip(
                torch.split(rows, EVALUATION_ROWS), torch.split(labels, EVALUATION_ROWS), strict=True
            )
        )
    return hits / len(rows)
