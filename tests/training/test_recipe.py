"""The recipe is strict: what cannot be run is refused before any work."""

import re
from pathlib import Path

import pytest

from glip_hf.training.recipe import Recipe, RecipeError, assign, dump_recipe, load_recipe

CONFIGS = Path(__file__).parents[2] / "examples" / "configs"


def test_defaults_are_the_released_recipe() -> None:
    recipe = Recipe()
    assert (recipe.optimizer.lr, recipe.optimizer.text_lr, recipe.optimizer.clip_norm) == (1e-4, 1e-5, 1.0)
    assert (recipe.schedule.warmup_steps, recipe.schedule.milestones) == (2000, [0.67, 0.89])
    assert (recipe.data.batch_size, recipe.data.short_sides[-1], recipe.run.ema_decay) == (64, 800, 0.999)


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_shipped_configs_load(path: Path) -> None:
    assert isinstance(load_recipe(path), Recipe)


def test_round_trip(tmp_path: Path) -> None:
    given = ["optimizer.lr=5e-5", "data.short_sides=[320, 400]", "run.resume=latest", "run.precision=no"]
    recipe = load_recipe(None, given)
    assert recipe.run.precision == "no"
    assert (recipe.optimizer.lr, recipe.data.short_sides, recipe.run.resume) == (5e-5, [320, 400], "latest")
    path = tmp_path / "recipe.yaml"
    path.write_text(dump_recipe(recipe))
    assert load_recipe(path) == recipe


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optimizer.learning_rate=1", "unknown key optimizer.learning_rate"),
        ("optimizer.weigth_decay=1", "did you mean optimizer.weight_decay"),
        ("optimiser.lr=1", "did you mean optimizer"),
        ("optimizer.lr=fast", "optimizer.lr='fast' must be a number"),
        ("optimizer.lr=-1", "must be above 0"),
        ("data.batch_size=many", "must be of type int"),
        ("data.batch_size=true", "must be of type int"),
        ("data.flip=2", "probability"),
        ("data.short_sides=800", "must be a list"),
        ("data.sources=[{annotations: a.json}]", "neither `format`"),
        ("schedule.name=linear", "choose one of multistep"),
        ("schedule.name=plateau", "needs run.evaluate_every"),
        ("schedule.milestones=[67000]", "fractions of the run"),
        ("schedule.restarts=[0.8,0.7]", "the smallest first"),
        ("run.ema_decay=1", "must be in"),
        ("model.config=small", "must be a mapping"),
        ("lr", "section.key=value"),
        ("lr=1", "did you mean optimizer.lr=1?"),
        ("run.max_steps=3", "did you mean schedule.max_steps?"),
        ("optimizer.lr=[", "is no valid YAML"),
        ("optimizer.lr=.nan", "must be above 0"),
        ("optimizer.weight_decay=-1", "must be 0 or more"),
        ("optimizer.betas=[0.9]", "two numbers"),
        ("data.workers=-1", "must be 0 or more"),
        ("model.config={mlm_los_weight: 1}", "did you mean model.config.mlm_loss_weight?"),
        ("data.sources=[{name: flickr30k_train, weight: 2}]", "set data.epoch_samples"),
        ("data.sources=[{format: coco, streaming: true}]", "only a single source of format hub"),
    ],
)
def test_refusals(override: str, message: str) -> None:
    with pytest.raises(RecipeError, match=re.escape(message)):
        load_recipe(None, [override])


@pytest.mark.parametrize("value", ["2024", "no", "a: b", "~", "out #1", "1e3"])
def test_text_stays_text(value: str) -> None:
    assert load_recipe(None, [assign("run.output_dir", value)]).run.output_dir == value


def test_bad_file(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text("model: [")
    with pytest.raises(RecipeError, match="no valid YAML"):
        load_recipe(path)
    path.write_text("- a\n- b\n")
    with pytest.raises(RecipeError, match="must hold sections"):
        load_recipe(path)
    with pytest.raises(FileNotFoundError):
        load_recipe(tmp_path / "missing.yaml")
