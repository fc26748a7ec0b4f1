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
        ("optimizer.lr=fast", "optimizer.lr='fast': Input should be a valid number"),
        ("optimizer.lr=true", "optimizer.lr=True: Input should be a valid number"),
        ("optimizer.lr=-1", "optimizer.lr=-1: Input should be greater than 0"),
        ("data.batch_size=many", "data.batch_size='many': Input should be a valid integer"),
        ("data.batch_size=true", "data.batch_size=True: Input should be a valid integer"),
        ("data.batch_size=1.5", "data.batch_size=1.5: Input should be a valid integer"),
        ("data.flip=2", "data.flip=2: Input should be less than or equal to 1"),
        ("data.aspect_grouping=1", "data.aspect_grouping=1: Input should be a valid boolean"),
        ("data.short_sides=800", "data.short_sides=800: Input should be a valid list"),
        ("data.short_sides=[]", "data.short_sides=[]: List should have at least 1 item"),
        ("data.short_sides=[0]", "data.short_sides[0]=0: Input should be greater than 0"),
        ("data.sources=[{annotations: a.json}]", "neither `format`"),
        ("schedule.name=linear", "schedule.name='linear': Input should be 'multistep', 'cosine' or 'plateau'"),
        ("schedule.name=plateau", "needs run.evaluate_every"),
        ("schedule.milestones=[67000]", "schedule.milestones[0]=67000: Input should be less than 1"),
        ("schedule.restarts=[0.8,0.7]", "schedule.restarts=[0.8, 0.7] must be in ascending order"),
        ("run.ema_decay=1", "run.ema_decay=1: Input should be less than 1"),
        ("model.config=small", "model.config='small': Input should be a valid dictionary"),
        ("model.image_size=31", "model.image_size=31 must be from 32 to 8192 pixels, or 0 for that of the model"),
        ("model.image_size=100000", "model.image_size=100000 must be from 32 to 8192 pixels"),
        ("run.seed=4294967296", "run.seed=4294967296: Input should be less than 4294967296"),
        ("run.output_dir=''", "run.output_dir='': String should have at least 1 character"),
        ("lr", "section.key=value"),
        ("lr=1", "did you mean optimizer.lr=1?"),
        ("run.max_steps=3", "did you mean schedule.max_steps?"),
        ("run.seed.low=3", "run.seed=0 is not a section"),
        ("optimizer.lr=[", "is not valid YAML"),
        ("optimizer.lr=.nan", "optimizer.lr=nan: Input should be greater than 0"),
        ("optimizer.weight_decay=-1", "optimizer.weight_decay=-1: Input should be greater than or equal to 0"),
        ("optimizer.betas=[0.9]", "optimizer.betas=[0.9]: List should have at least 2 items"),
        ("optimizer.betas=[0.9, 1]", "optimizer.betas[1]=1: Input should be less than 1"),
        ("data.workers=-1", "data.workers=-1: Input should be greater than or equal to 0"),
        ("model.config={mlm_los_weight: 1}", "did you mean model.config.mlm_loss_weight?"),
        ("data.sources=[{name: flickr30k_train, weight: 2}]", "set data.epoch_samples"),
        ("data.sources=[{format: coco, streaming: true}]", "only a single source of format hub"),
        ("data.sources=[{format: hub, streaming: 'no'}]", "data.sources[0].streaming='no' must be true or false"),
    ],
)
def test_refusals(override: str, message: str) -> None:
    with pytest.raises(RecipeError, match=re.escape(message)):
        load_recipe(None, ["run.seed=0", override])


def test_all_errors_at_once(tmp_path: Path) -> None:
    """Of the file and of the overrides, unknown keys and bad values alike, one line each."""
    path = tmp_path / "recipe.yaml"
    text = "optimizer: {lr: fast, learning_rate: 1}\ndata: {batch_size: 0, short_sides: [480, tall]}\nmdoel: {}\n"
    path.write_text(text)
    with pytest.raises(RecipeError) as error:
        load_recipe(path, ["lr", "model.config={d_modle: 1, depth: 2}", "schedule.name=linear"])
    assert str(error.value).splitlines() == [
        "9 errors in the recipe:",
        "  override 'lr' must read section.key=value: did you mean optimizer.lr=?",
        "  unknown key model.config.d_modle: did you mean model.config.d_model?",
        "  unknown key model.config.depth: see glip_hf.GlipConfig.",
        "  data.short_sides[1]='tall': Input should be a valid integer",
        "  data.batch_size=0: Input should be greater than 0",
        "  optimizer.lr='fast': Input should be a valid number",
        "  unknown key optimizer.learning_rate: known: "
        "lr, text_lr, bias_lr_factor, weight_decay, betas, eps, clip_norm, fused.",
        "  schedule.name='linear': Input should be 'multistep', 'cosine' or 'plateau'",
        "  unknown key mdoel: did you mean model?",
    ]


def test_all_contradictions_at_once() -> None:
    overrides = ["schedule.epochs=0", "schedule.name=plateau", "tuning.early_stopping=2"]
    with pytest.raises(RecipeError) as error:
        load_recipe(None, [*overrides, "data.sources=[{format: coco, streaming: true, weight: 1}]"])
    text = str(error.value)
    assert text.startswith("5 errors in the recipe:\n")
    for part in ("schedule.max_steps or", "schedule.name=plateau", "early_stopping", "weight", "can be streamed"):
        assert part in text


@pytest.mark.parametrize("value", ["2024", "no", "a: b", "~", "out #1", "1e3"])
def test_text_stays_text(value: str) -> None:
    assert load_recipe(None, [assign("run.output_dir", value)]).run.output_dir == value


def test_bad_file(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    for text in ("run: {seed: 1}\nrun: {seed: 2}", "run:\n  seed: 1\n  seed: 2"):
        path.write_text(text)
        with pytest.raises(RecipeError, match="twice in one section"):
            load_recipe(path)
    path.write_text("")
    assert load_recipe(path) == load_recipe()
    path.write_text("model: [")
    with pytest.raises(RecipeError, match="is not valid YAML"):
        load_recipe(path)
    path.write_text("- a\n- b\n")
    with pytest.raises(RecipeError, match="must hold sections"):
        load_recipe(path)
    path.write_text("1: 2")
    with pytest.raises(RecipeError, match=re.escape("[1]=1: Keys should be strings")):
        load_recipe(path)
    path.write_text("data: coco")
    with pytest.raises(RecipeError, match=re.escape("data='coco' must be a mapping of data.* keys.")):
        load_recipe(path)
    with pytest.raises(FileNotFoundError):
        load_recipe(tmp_path / "missing.yaml")
