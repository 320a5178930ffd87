"""A recipe that cannot work is an error that names the key, the rule and the value."""

from __future__ import annotations

from pathlib import Path

import pytest

from training import overrides, recipes
from training.errors import RecipeError

NAMES = [
    "contractive",
    "conv",
    "deep",
    "denoising",
    "denoising-conv",
    "linear",
    "overcomplete",
    "pca",
    "sparse",
    "stacked",
    "undercomplete",
]


def test_all_variants_have_a_recipe_on_mnist_that_takes_digits_too() -> None:
    assert recipes.names() == NAMES
    for name in NAMES:
        assert recipes.load(name).model_name == f"mnist-{name}"
        assert recipes.load(name, [("data.name", "digits")]).model_name == f"digits-{name}"


@pytest.mark.parametrize(
    ("recipe", "key", "value", "words"),
    [
        # unknown keys
        ("conv", "epochs", 3, ["epochs", "unknown key", "3"]),
        ("conv", "network.width", 3, ["network.width", "unknown key", "3"]),
        ("conv", "procedure.momentum", 0.9, ["procedure.momentum", "unknown key", "0.9"]),
        # wrong types
        ("deep", "network.latent", "32", ["network.latent", "integer", "'32'"]),
        ("deep", "network.hidden", 192, ["network.hidden", "192"]),
        ("deep", "network.tied", "yes", ["network.tied", "boolean", "'yes'"]),
        ("deep", "procedure.epochs", 2.5, ["procedure.epochs", "2.5"]),
        ("deep", "description", None, ["description", "string"]),
        # impossible values
        ("deep", "network.latent", 0, ["network.latent", "greater than or equal to 1", "0"]),
        ("deep", "network.activation", "swish", ["network.activation", "relu", "'swish'"]),
        ("deep", "network.kind", "transformer", ["network", "transformer"]),
        ("deep", "procedure.learning_rate", -1.0, ["procedure.learning_rate", "greater than 0", "-1.0"]),
        ("deep", "procedure.learning_rate", float("nan"), ["procedure.learning_rate", "finite", "nan"]),
        ("deep", "seed", -1, ["seed", "greater than or equal to 0", "-1"]),
        ("deep", "data.name", "cifar", ["data.name", "mnist", "'cifar'"]),
        ("denoising", "corruption.level", 1.5, ["corruption.level", "less than 1", "1.5"]),
        ("sparse", "penalty.rho", 0.0, ["penalty.rho", "greater than 0", "0.0"]),
        # combinations that cannot work
        ("linear", "loss.kind", "cross-entropy", ["loss.kind", "output_activation", "sigmoid"]),
        ("deep", "network.normalisation", "centre", ["network.normalisation", "output_activation", "centre"]),
        ("sparse", "network.latent_activation", "relu", ["penalty.kind", "latent_activation", "relu"]),
        ("contractive", "network.hidden", [100], ["penalty.method", "closed-form", "estimator"]),
        ("contractive", "network.latent_activation", "tanh", ["penalty.method", "closed-form", "estimator"]),
        ("contractive", "penalty.projections", 4, ["penalty.projections", "estimator"]),
        ("pca", "network.normalisation", "none", ["procedure.kind", "closed-form", "centre"]),
        ("pca", "corruption", {"kind": "masking", "level": 0.1}, ["corruption.kind", "closed-form", "masking"]),
        ("pca", "penalty", {"kind": "l1", "strength": 0.1}, ["penalty.kind", "closed-form", "l1"]),
        ("conv", "procedure", {"kind": "greedy", "epochs": 1}, ["procedure.kind", "greedy", "dense"]),
        ("stacked", "network.tied", True, ["procedure.kind", "greedy", "tied"]),
        ("stacked", "network.activation", "relu", ["network.activation", "greedy", "relu"]),
        (
            "stacked",
            "penalty",
            {"kind": "contractive", "strength": 0.1, "method": "estimator"},
            ["penalty.kind", "greedy", "contractive"],
        ),
        (
            "stacked",
            "procedure",
            {"kind": "greedy", "epochs": 1, "refitting": {"epochs": 1}},
            ["refitting", "finetuning"],
        ),
    ],
)
def test_a_broken_recipe_is_an_error_that_names_it(recipe: str, key: str, value: object, words: list[str]) -> None:
    with pytest.raises(RecipeError) as caught:
        recipes.load(recipe, [(key, value)])
    for word in [f"{recipe}.toml", *words]:
        assert word in str(caught.value)


def test_greedy_layers_are_corrupted_only_where_their_values_stay_in_range() -> None:
    changes = [
        ("loss.kind", "squared-error"),
        ("network.activation", "relu"),
        ("corruption", {"kind": "gaussian", "level": 0.1}),
    ]
    with pytest.raises(RecipeError, match=r"corruption.kind: 'gaussian'.*'sigmoid'; got 'relu'"):
        recipes.load("stacked", changes)
    recipes.load("stacked", [*changes[:2], ("corruption", {"kind": "masking", "level": 0.1})])


def test_all_broken_keys_are_named_at_once() -> None:
    with pytest.raises(RecipeError) as caught:
        recipes.load("deep", [("network.latent", 0), ("procedure.epochs", 0)])
    assert "network.latent" in str(caught.value)
    assert "procedure.epochs" in str(caught.value)


def test_an_override_inside_a_value_is_an_error() -> None:
    with pytest.raises(RecipeError, match=r"description.*is a value, not a table"):
        recipes.load("deep", [("description.x", 1)])


def test_an_unknown_recipe_lists_the_known_ones() -> None:
    with pytest.raises(RecipeError, match=r"no recipe 'vae'.*contractive.*undercomplete"):
        recipes.load("vae")


def test_a_recipe_may_be_a_file_anywhere(tmp_path: Path) -> None:
    path = tmp_path / "my-own.toml"
    path.write_text((recipes.FOLDER / "deep.toml").read_text(encoding="utf-8"), encoding="utf-8")
    assert recipes.load(str(path)).model_name == "mnist-my-own"
    path.write_text("[network", encoding="utf-8")
    with pytest.raises(RecipeError, match=r"my-own.toml: is not TOML"):
        recipes.load(str(path))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a = " + "[" * 3000, "nested too deeply"),
        (".".join("a" * 3000) + " = 1", "nested too deeply"),
        ("seed = " + "9" * 5000, "is not TOML: .*digits"),
        ("seed = 0x" + "f" * 8000, "too many digits"),
        ("seed = 0x" + "f" * 3000, r"seed: Input should be less than .*; got [0-9]{400}…"),
        ('"a\\nb" = 1', r"mine.toml: 'a\\nb': unknown key; got 1"),
        ("\n".join(f"a{i} = 1" for i in range(900)), "and 885 faults more"),
    ],
)
def test_no_text_of_a_recipe_is_too_odd_to_be_refused(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(RecipeError, match=words) as caught:
        recipes.load(str(path))
    assert len(str(caught.value)) < 20_000


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("network.latent=16", ("network.latent", 16)),
        ("network.hidden = [64, 32]", ("network.hidden", [64, 32])),
        ("network.tied=true", ("network.tied", True)),
        ("data.name=digits", ("data.name", "digits")),
        ('corruption={kind="none"}', ("corruption", {"kind": "none"})),
        ("seed=" + "9" * 5000, ("seed", "9" * 5000)),
        ("a=" + "[" * 3000, ("a", "[" * 3000)),
    ],
)
def test_an_override_is_toml_or_text(text: str, expected: tuple[str, object]) -> None:
    assert overrides.parse(text) == expected


@pytest.mark.parametrize("text", ["network.latent", "=3", "network.latent="])
def test_an_override_without_key_or_value_is_an_error(text: str) -> None:
    with pytest.raises(RecipeError, match="KEY=VALUE"):
        overrides.parse(text)


def test_epochs_override_every_phase() -> None:
    procedure = recipes.load("stacked", epochs=1).procedure
    assert isinstance(procedure, recipes.Greedy)
    assert procedure.finetuning
    assert procedure.refitting
    assert (procedure.epochs, procedure.finetuning.epochs, procedure.refitting.epochs) == (1, 1, 1)
    with pytest.raises(RecipeError, match=r"--epochs.*'pca' has none.*closed-form"):
        recipes.load("pca", epochs=1)


def test_what_depends_on_the_epochs_is_judged_by_those_that_are_wanted() -> None:
    longer = recipes.load("deep", [("procedure.warmup_epochs", 300)], epochs=400)
    assert (longer.procedure.epochs, longer.procedure.warmup_epochs) == (400, 300)  # type: ignore[union-attr]
    with pytest.raises(RecipeError, match=r"warmup_epochs: must be less than the 200 epochs; got 300"):
        recipes.load("deep", [("procedure.warmup_epochs", 300)], epochs=200)


def test_parts_of_recipes_combine() -> None:
    combined = recipes.load(
        "deep",
        [
            ("corruption", {"kind": "salt-and-pepper", "level": 0.2}),
            ("penalty", {"kind": "contractive", "strength": 0.1, "method": "estimator"}),
            ("loss.kind", "squared-error"),
        ],
    )
    assert combined.corruption.kind == "salt-and-pepper"
    assert combined.penalty.kind == "contractive"
