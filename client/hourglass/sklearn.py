"""The service's latents as features in scikit-learn. Needs the extra `sklearn`; nothing else imports this module.

from hourglass.sklearn import LatentTransformer

classifier = make_pipeline(LatentTransformer("mnist-denoising-conv"), LogisticRegression(max_iter=1000))
classifier.fit(digits.reshape(len(digits), -1), labels)
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from hourglass.client import Client
from hourglass.results import ModelCard
from hourglass.tensors import Array

try:
    from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
    from sklearn.utils.validation import check_is_fitted, validate_data
except ImportError as error:
    raise ImportError(
        "hourglass.sklearn needs scikit-learn 1.6 or newer: pip install 'hourglass-client[sklearn]'"
    ) from error


class LatentTransformer(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):  # type: ignore[misc]
    """Rows to the latents that a running service has for them; nothing is learned here.

    `fit` asks the service for the model and holds to the version that it finds, so that what a classifier was trained
    on stays what it is given. `transform` encodes [rows, features] into float32 [rows, latent units], flattened in C
    order where a latent has more dimensions. Features are the elements of the model's row in C order: 784 for 28x28.
    As in the client, uint8 means 0 to 255 for 0 to 1, and other numbers are sent as they are.

    `model`: its name; None takes the only one of the service whose rows have as many elements as X has features.
    `version`: of the model; None is the latest. `address`: host:port of the service, or a callable that gives a
    `Client`, for TLS and tokens: `partial(Client, "host:443", tls=True, token=...)`. `timeout_s`: the deadline of one
    fit or transform; None is none.

    Raises ValueError for X that does not fit the model, or where None fits no model or several, and `HourglassError`
    where the service refuses or is away.

    Attributes: `model_name_`, `model_version_`, `row_shape_`, `n_features_in_`.
    """

    def __init__(
        self,
        model: str | None = None,
        *,
        version: int | str | None = None,
        address: str | Callable[[], Client] = "127.0.0.1:50051",
        timeout_s: float | None = None,
    ) -> None:
        self.model = model
        self.version = version
        self.address = address
        self.timeout_s = timeout_s

    def fit(self, X: npt.ArrayLike, y: object = None) -> Self:
        features = validate_data(self, X).shape[1]
        with self._connect() as client:
            card = self._choose(client, features)
        wanted = math.prod(card.input.shape)
        if features != wanted:
            raise ValueError(
                f"X: must have {wanted} features, the elements of a row of {card.name} "
                f"({'x'.join(map(str, card.input.shape))}); got {features}"
            )
        self.model_name_ = card.name
        self.model_version_ = card.version
        self.row_shape_ = card.input.shape
        self._n_features_out = math.prod(card.latent.shape)
        return self

    def transform(self, X: npt.ArrayLike) -> Array:
        check_is_fitted(self)
        rows = validate_data(self, X, reset=False)
        with self._connect() as client:
            latents = client.encode(
                self.model_name_,
                rows.reshape(len(rows), *self.row_shape_),
                version=self.model_version_,
                timeout_s=self.timeout_s,
            )
        return latents.reshape(len(rows), -1)

    def _connect(self) -> Client:
        return self.address() if callable(self.address) else Client(self.address)

    def _choose(self, client: Client, features: int) -> ModelCard:
        if self.model is not None:
            return client.model(self.model, self.version, timeout_s=self.timeout_s)
        if self.version is not None:
            raise ValueError(f"version: needs a model; got {self.version} and no model")
        # The latest of a name comes first.
        latest: dict[str, ModelCard] = {}
        for card in client.models(timeout_s=self.timeout_s):
            latest.setdefault(card.name, card)
        fitting = [card for card in latest.values() if math.prod(card.input.shape) == features]
        if len(fitting) != 1:
            names = ", ".join(card.name for card in fitting) or "none"
            raise ValueError(
                f"model: must be given unless one alone has rows of {features} elements; these do: {names}"
            )
        return fitting[0]

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        # Latents are float32 whatever the rows were.
        tags.transformer_tags.preserves_dtype = [np.float32.__name__]
        return tags
