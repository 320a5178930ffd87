"""Recipes: a network, a corruption, a penalty, a loss and a procedure, as checked data.

A recipe is a TOML file in `training/recipes/`, or anywhere else. `load` reads one, applies overrides and checks every
value and every combination; an error names the key, the rule and the value.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from training.errors import RecipeError

FOLDER = Path(__file__).parent / "recipes"

DATA_NAMES = ("mnist", "fashion-mnist", "digits")
Activation = Literal["linear", "relu", "sigmoid", "tanh"]

NAME = r"^[a-z][a-z0-9-]{0,40}$"

# Of a refusal: faults that it names, and characters that it shows of a key or a value.
_MAX_FAULTS, _MAX_SHOWN = 20, 400

_T = TypeVar("_T", bound=BaseModel)

Positive = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(gt=0, lt=1)]
Width = Annotated[int, Field(ge=1, le=65536)]


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class Data(_Table):
    # mnist, fashion-mnist or digits; with a path, any name for what is there: the model's name begins with it.
    name: Annotated[str, Field(pattern=r"^[a-z][a-z0-9-]{0,20}$")]
    # One's own data: .npy, .npz, .csv or .parquet, or a folder of images.
    path: str | None = None
    # What the rows are (none: by the rule in docs/training.md).
    kind: Literal["image", "vector", "series"] | None = None
    # The columns of a table that make a row, in this order (none: all but the label).
    columns: Annotated[tuple[str, ...], Field(min_length=1)] | None = None
    # The column of a table that holds classes (none: `label` where there is one).
    label: str | None = None
    # Windows of so many consecutive steps, each `stride` steps after the one before, make the rows (none: no windows).
    window: Annotated[int, Field(ge=2, le=65536)] | None = None
    stride: Annotated[int, Field(ge=1, le=65536)] = 1
    # Standardise columns, inside the exported graphs (none: vectors and series, not images).
    standardise: bool | None = None
    # The share of the rows that is held out to measure the model, where the file names no test rows.
    test_share: Annotated[float, Field(gt=0, le=0.5)] = 0.1
    # The share of the training rows that is held out to choose the best epoch.
    validation_share: Annotated[float, Field(gt=0, le=0.5)] = 0.1

    @model_validator(mode="after")
    def _own(self) -> Data:
        if self.path is None:
            if self.name not in DATA_NAMES:
                raise ValueError(
                    f"data.name: must be {' or '.join(DATA_NAMES)} where there is no data.path; got {self.name!r}"
                )
            own = self.model_fields_set - {"name", "path", "validation_share"}
            given = [key for key in sorted(own) if getattr(self, key) != Data.model_fields[key].default]
            if given:
                raise ValueError(f"data.{given[0]}: belongs to one's own data, data.path; got {self.name!r}")
        if self.stride > 1 and self.window is None:
            raise ValueError(f"data.stride: belongs to windows, data.window; got {self.stride}")
        if self.window is not None and self.kind in ("image", "vector"):
            raise ValueError(f"data.kind: windows are a 'series'; got {self.kind!r}")
        return self


class Linear(_Table):
    kind: Literal["linear"]
    latent: Width
    tied: bool = False
    normalisation: Literal["none", "centre", "standardise"] = "none"


class Dense(_Table):
    kind: Literal["dense"]
    # The widths between the row and the latent; the decoder mirrors them.
    hidden: tuple[Width, ...] = ()
    latent: Width
    activation: Activation = "relu"
    latent_activation: Activation = "relu"
    output_activation: Literal["linear", "sigmoid"] = "sigmoid"
    # The decoder uses the transposed weights of the encoder, with biases of its own.
    tied: bool = False
    normalisation: Literal["none", "centre", "standardise"] = "none"


class Convolutional(_Table):
    kind: Literal["convolutional"]
    # One convolution and one 2x2 max pooling each; the last one's output is the latent.
    channels: Annotated[tuple[Width, ...], Field(min_length=1)]
    # One doubling of height and width each, before a last convolution to one channel.
    decoder_channels: Annotated[tuple[Width, ...], Field(min_length=1)]
    # nearest: convolution, then repeated pixels; transposed: a convolution of stride 2.
    upsampling: Literal["nearest", "transposed"] = "nearest"
    # Height and width of every convolution.
    kernel: Literal[3, 5, 7] = 3
    latent_activation: Activation = "relu"
    output_activation: Literal["linear", "sigmoid"] = "sigmoid"
    normalisation: Literal["none", "centre", "standardise"] = "none"


class Conv1d(_Table):
    """Of series: rows [steps, columns]."""

    kind: Literal["conv1d"]
    # One convolution over time of stride 2 each; the last one's output is the latent.
    channels: Annotated[tuple[Width, ...], Field(min_length=1, max_length=12)]
    # Steps of every convolution.
    kernel: Literal[3, 5, 7, 9] = 5
    latent_activation: Activation = "linear"
    output_activation: Literal["linear", "sigmoid"] = "linear"
    normalisation: Literal["none", "centre", "standardise"] = "none"


Network = Annotated[Linear | Dense | Convolutional | Conv1d, Field(discriminator="kind")]


class NoCorruption(_Table):
    kind: Literal["none"]


class Masking(_Table):
    kind: Literal["masking"]
    # The share of elements set to 0.
    level: Share


class Gaussian(_Table):
    kind: Literal["gaussian"]
    # The standard deviation; the result is clipped to 0..1.
    level: Positive


class SaltAndPepper(_Table):
    kind: Literal["salt-and-pepper"]
    # The share of elements set to 0 or 1, either with the same probability.
    level: Share


Corruption = Annotated[NoCorruption | Masking | Gaussian | SaltAndPepper, Field(discriminator="kind")]


class NoPenalty(_Table):
    kind: Literal["none"]


class KLSparsity(_Table):
    kind: Literal["kl-sparsity"]
    # The wanted mean activation of every unit.
    rho: Share
    beta: Positive


class L1(_Table):
    kind: Literal["l1"]
    strength: Positive


class Contractive(_Table):
    kind: Literal["contractive"]
    strength: Positive
    # closed-form: one sigmoid layer; estimator: any encoder, by random projections of the Jacobian.
    method: Literal["closed-form", "estimator"] = "closed-form"
    projections: Annotated[int, Field(ge=1, le=64)] = 1


Penalty = Annotated[NoPenalty | KLSparsity | L1 | Contractive, Field(discriminator="kind")]


class Loss(_Table):
    kind: Literal["squared-error", "cross-entropy"]


class Optimisation(_Table):
    epochs: Annotated[int, Field(ge=1, le=100_000)]
    # Of a step; where several processes train together, of all of them together.
    batch_rows: Annotated[int, Field(ge=1, le=65536)] = 128
    optimiser: Literal["adam", "sgd"] = "adam"  # sgd: with momentum 0.9
    learning_rate: Positive = 1e-3
    # cosine: from learning_rate to 0; step: times step_factor after every step_epochs.
    schedule: Literal["constant", "cosine", "step"] = "constant"
    step_epochs: Annotated[int, Field(ge=1)] | None = None
    step_factor: Share | None = None
    # The learning rate rises in a line for so long, before the schedule begins.
    warmup_epochs: Annotated[float, Field(ge=0)] = 0.0
    # Stop after so many epochs without a better one, and go back to the best.
    patience: Annotated[int, Field(ge=1)] | None = None
    # Gradients whose norm over all parameters is larger are scaled down to it.
    clip_norm: Positive | None = None
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    # bfloat16: activations only; weights, their gradients and the loss stay float32. auto: where the device has it.
    precision: Literal["float32", "bfloat16", "auto"] = "float32"

    @model_validator(mode="after")
    def _schedules(self) -> Optimisation:
        if self.warmup_epochs >= self.epochs:
            raise ValueError(f"warmup_epochs: must be less than the {self.epochs} epochs; got {self.warmup_epochs}")
        for key, value in (("step_epochs", self.step_epochs), ("step_factor", self.step_factor)):
            if (value is not None) != (self.schedule == "step"):
                raise ValueError(
                    f"{key}: must be given exactly where schedule is 'step'; got {value}, {self.schedule!r}"
                )
        return self


class ClosedForm(_Table):
    kind: Literal["closed-form"]


class Joint(Optimisation):
    kind: Literal["joint"]


class FineTuning(Optimisation):
    # The share of the latent's and the hidden layers' units that are dropped in each step.
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    # The share of the row's elements that are dropped in each step.
    input_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    # Rows are moved by up to this share of their height and width, in whole pixels (augmentation); 0: not at all.
    shift_share: Annotated[float, Field(ge=0, le=0.25)] = 0.0


class Greedy(Optimisation):
    """Layer by layer, `epochs` each; then a classifier on the latents, and the decoder fitted to what it left."""

    kind: Literal["greedy"]
    finetuning: FineTuning | None = None
    refitting: Optimisation | None = None


Procedure = Annotated[ClosedForm | Joint | Greedy, Field(discriminator="kind")]


class Recipe(_Table):
    name: Annotated[str, Field(pattern=NAME)]
    description: Annotated[str, Field(min_length=1)]
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    data: Data
    network: Network
    corruption: Corruption = NoCorruption(kind="none")
    penalty: Penalty = NoPenalty(kind="none")
    loss: Loss
    procedure: Procedure

    @property
    def model_name(self) -> str:
        return self.name if self.name == self.data.name else f"{self.data.name}-{self.name}"

    @model_validator(mode="after")
    def _combinations(self) -> Recipe:
        network, penalty, procedure = self.network, self.penalty, self.procedure
        output = "linear" if isinstance(network, Linear) else network.output_activation
        latent = "linear" if isinstance(network, Linear) else network.latent_activation
        if self.loss.kind == "cross-entropy" and output != "sigmoid":
            raise ValueError("loss.kind: 'cross-entropy' needs network.output_activation 'sigmoid'; got 'linear'")
        if network.normalisation != "none" and output == "sigmoid":
            raise ValueError(
                f"network.normalisation: {network.normalisation!r} is undone after the decoder, so it needs "
                "network.output_activation 'linear'; got 'sigmoid'"
            )
        if isinstance(penalty, KLSparsity) and latent != "sigmoid":
            raise ValueError(
                "penalty.kind: 'kl-sparsity' compares probabilities and needs network.latent_activation 'sigmoid'; "
                f"got {latent!r}"
            )
        if isinstance(penalty, Contractive) and penalty.method == "closed-form":
            if not isinstance(network, Dense) or network.hidden or latent != "sigmoid":
                raise ValueError(
                    "penalty.method: 'closed-form' holds for a dense network without hidden layers and with "
                    "network.latent_activation 'sigmoid'; use penalty.method 'estimator' for this network"
                )
            if penalty.projections != 1:
                raise ValueError("penalty.projections: belongs to method 'estimator'; got method 'closed-form'")
        if isinstance(procedure, ClosedForm):
            self._check_closed_form()
        if isinstance(procedure, Greedy):
            self._check_greedy(procedure)
        return self

    def _check_closed_form(self) -> None:
        network = self.network
        if not isinstance(network, Linear) or network.normalisation != "centre":
            raise ValueError(
                "procedure.kind: 'closed-form' is principal component analysis and needs network.kind 'linear' with "
                f"network.normalisation 'centre'; got {network.kind!r} with {network.normalisation!r}"
            )
        for key, kind in (("corruption", self.corruption.kind), ("penalty", self.penalty.kind)):
            if kind != "none":
                raise ValueError(f"{key}.kind: procedure 'closed-form' has no {key}; got {kind!r}")
        if self.loss.kind != "squared-error":
            raise ValueError("loss.kind: procedure 'closed-form' minimises 'squared-error'; got 'cross-entropy'")

    def _check_greedy(self, procedure: Greedy) -> None:
        network = self.network
        if not isinstance(network, Dense) or network.tied or network.normalisation != "none":
            raise ValueError(
                "procedure.kind: 'greedy' needs network.kind 'dense' with network.tied false and "
                "network.normalisation 'none'"
            )
        if self.penalty.kind not in ("none", "l1"):
            raise ValueError(f"penalty.kind: procedure 'greedy' takes 'none' or 'l1'; got {self.penalty.kind!r}")
        if network.hidden and self.loss.kind == "cross-entropy" and network.activation != "sigmoid":
            raise ValueError(
                "network.activation: procedure 'greedy' with loss 'cross-entropy' reconstructs the hidden layers too, "
                f"whose values must lie in 0..1: 'sigmoid'; got {network.activation!r}"
            )
        if (
            network.hidden
            and self.corruption.kind in ("gaussian", "salt-and-pepper")
            and network.activation != "sigmoid"
        ):
            raise ValueError(
                f"corruption.kind: {self.corruption.kind!r} keeps values in 0..1, and procedure 'greedy' corrupts the "
                f"hidden layers too, so it needs network.activation 'sigmoid'; got {network.activation!r}"
            )
        if (procedure.finetuning is None) != (procedure.refitting is None):
            raise ValueError(
                "procedure.refitting: must be given exactly where procedure.finetuning is; the decoder no longer fits "
                "an encoder that was fine-tuned"
            )


def names() -> list[str]:
    """The names of the recipes that come with the package."""
    return sorted(path.stem for path in FOLDER.glob("*.toml"))


def load(recipe: str, overrides: Iterable[tuple[str, Any]] = (), *, epochs: int | None = None) -> Recipe:
    """The recipe of that name, or in that TOML file, with overrides such as ("network.latent", 16) applied in order,
    and then the epochs of every phase of its procedure, where they are given."""
    path = Path(recipe) if recipe.endswith(".toml") else FOLDER / f"{recipe}.toml"
    if not path.is_file():
        raise RecipeError(f"no recipe {recipe!r}: give a path to a .toml file or one of {', '.join(names())}")
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except RecursionError as error:
        raise RecipeError(f"{path.name}: is nested too deeply") from error
    except ValueError as error:  # not TOML, not UTF-8, or a number of thousands of digits
        raise RecipeError(f"{path.name}: is not TOML: {error}") from error
    table.setdefault("name", path.stem)
    for key, value in overrides:
        _apply(table, key, value)
    if epochs is not None:
        _set_epochs(table, epochs)
    return check(table, where=path.name)


def check(table: dict[str, Any], *, where: str) -> Recipe:
    """A recipe from its table. Raises RecipeError that names `where`, the key, the rule and the value."""
    return _check(Recipe, table, where, ())


def check_data(table: dict[str, Any], *, where: str) -> Data:
    """The `data` of a recipe alone, as `check`."""
    return _check(Data, table, where, ("data",))


def _check(model: type[_T], table: dict[str, Any], where: str, parents: tuple[str, ...]) -> _T:
    try:
        # Through JSON, where a strict tuple may come from an array.
        return model.model_validate_json(json.dumps(table))
    except TypeError as error:
        raise RecipeError(
            f"{where}: holds a value that is neither number, text, truth value, array nor table"
        ) from error
    except RecursionError as error:
        raise RecipeError(f"{where}: is nested too deeply") from error
    except ValidationError as error:
        details = [{**detail, "loc": (*parents, *detail["loc"])} for detail in error.errors()]
        lines = [_describe(detail) for detail in details[:_MAX_FAULTS]]
        if len(details) > _MAX_FAULTS:
            lines.append(f"and {len(details) - _MAX_FAULTS} faults more")
        raise RecipeError("\n".join(f"{where}: {line}" for line in lines)) from error
    except ValueError as error:
        raise RecipeError(f"{where}: holds a number of too many digits: {error}") from error


def _set_epochs(table: dict[str, Any], epochs: int) -> None:
    procedure = table.get("procedure")
    if not isinstance(procedure, dict):
        return
    if procedure.get("kind") == "closed-form":
        raise RecipeError(f"--epochs: recipe {table['name']!r} has none, its procedure is 'closed-form'; got {epochs}")
    for phase in (procedure, procedure.get("finetuning"), procedure.get("refitting")):
        if isinstance(phase, dict):
            phase["epochs"] = epochs


def _apply(table: dict[str, Any], key: str, value: Any) -> None:
    *parents, last = key.split(".")
    for parent in parents:
        inner = table.setdefault(parent, {})
        if not isinstance(inner, dict):
            raise RecipeError(f"--set: {key}: {parent!r} is a value, not a table")
        table = inner
    table[last] = value


def _describe(detail: Any) -> str:
    # pydantic puts the chosen kind of a union into the path: network.dense.latent.
    path = [_shown(str(part)) for part in detail["loc"]]
    if len(path) > 1 and path[0] in ("network", "corruption", "penalty", "procedure"):
        del path[1]
    message = str(detail["msg"]).removeprefix("Value error, ")
    if detail["type"] == "value_error":  # a rule about a combination names its keys itself, from where it stands
        return message if not path or message.startswith(f"{path[0]}.") else f"{'.'.join(path)}.{message}"
    if detail["type"] == "extra_forbidden":
        message = "unknown key"
    return f"{'.'.join(path)}: {message}; got {_cut(repr(detail['input']))}"


def _shown(key: str) -> str:
    return _cut(key if key.isprintable() else repr(key))


def _cut(text: str) -> str:
    return text if len(text) <= _MAX_SHOWN else text[:_MAX_SHOWN] + "…"
