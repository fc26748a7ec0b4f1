"""Checkpoints: whole or absent, damaged ones left for an older one, other runs refused by name, nothing unpickled.

The run of these tests has a model of two layers and counts its steps by hand: what it saves and restores is the same.
"""

import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from glip_hf.runs import RunFolderError, file_digest
from glip_hf.training.batches import Batches
from glip_hf.training.checkpoints import find_checkpoints
from glip_hf.training.loop import Run
from glip_hf.training.recipe import RecipeError, load_recipe

TENSORS = ("model", "optimizer", "average")


def make_run(output: Path, *overrides: str) -> Run:
    settings = [f"run.output_dir={output}", "run.trackers=[]", "schedule.max_steps=8", "schedule.warmup_steps=0"]
    recipe = load_recipe(None, [*settings, *overrides])
    torch.manual_seed(recipe.run.seed)
    return Run(recipe, nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4)), None, lambda accelerator: Batches([]))


def advance(run: Run, step: int, save: bool = True) -> Path | None:
    """Train to that step, each step a function of its number."""
    while run.progress.step < step:
        torch.manual_seed(run.progress.step)
        run.model(torch.randn(2, 3)).pow(3).sum().backward()
        run.optimizer.step()
        run.optimizer.zero_grad()
        run.schedule.step()
        run.average.update(run._trained())
        run.progress.step += 1
        run.progress.history.append({"step": run.progress.step, "AP": 0.1 * run.progress.step})
    return run.save() if save else None


def everything(run: Run) -> dict[str, torch.Tensor]:
    optimizer = {f"{index}.{name}": value for index, state in run.optimizer.state_dict()["state"].items()
                 for name, value in state.items()}  # fmt: skip
    return dict(run.unwrapped.state_dict()) | {f"average.{k}": v for k, v in run.average.average.items()} | optimizer


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with checkpoints of steps 2, 4 and 6."""
    output = tmp_path_factory.mktemp("saved") / "out"
    run = make_run(output)
    for step in (2, 4, 6):
        advance(run, step)
    run._release()
    return output


@pytest.fixture
def output(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "out"))


def resume(output: Path, *overrides: str, what: str = "latest") -> Run:
    run = make_run(output, f"run.resume={what}", *overrides)
    run._release()
    return run


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> dict[int, dict[str, torch.Tensor]]:
    """All tensors at each step of a run without interruption."""
    run = make_run(tmp_path_factory.mktemp("expected"))
    found = {}
    for step in range(1, 9):
        advance(run, step, save=False)
        found[step] = {name: value.clone() for name, value in everything(run).items()}
    run._release()
    return found


def assert_at(run: Run, step: int, expected: dict[int, dict[str, torch.Tensor]]) -> None:
    found = everything(run)
    assert run.progress.step == step and found.keys() == expected[step].keys()
    assert all(torch.equal(value, found[name]) for name, value in expected[step].items())


def test_a_resumed_run_is_where_it_was_and_goes_on_the_same(output: Path, expected: dict) -> None:
    run = resume(output)
    assert_at(run, 6, expected)
    assert [entry["step"] for entry in run.progress.history] == [1, 2, 3, 4, 5, 6]
    advance(run, 8)
    assert_at(run, 8, expected)
    names = {path.name for path in (output / "checkpoints" / "step_00000008").iterdir()}
    assert names == {"checkpoint.json", "state.json", *(f"{name}.safetensors" for name in TENSORS)}


# -- damage ----------------------------------------------------------------------------------------


def cut(name: str, size: int) -> Callable[[Path], None]:
    return lambda folder: os.truncate(folder / name, size)


def flip(name: str, where: float) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        data = bytearray((folder / name).read_bytes())
        data[int(where * (len(data) - 1))] ^= 0x10
        (folder / name).write_bytes(data)

    return damage


def replaced(name: str, text: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_bytes(text.encode("latin-1"))


def directory(name: str) -> Callable[[Path], None]:
    return lambda folder: ((folder / name).unlink(), (folder / name).mkdir())


def linked(name: str, target: str) -> Callable[[Path], None]:
    return lambda folder: ((folder / name).unlink(), (folder / name).symlink_to(target))


def manifest(**changes: object) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        value = json.loads((folder / "checkpoint.json").read_text()) | changes
        (folder / "checkpoint.json").write_text(json.dumps({k: v for k, v in value.items() if v is not None}))

    return damage


def signed(change: Callable[[Path], None]) -> Callable[[Path], None]:
    """Damage that the checksums do not show: somebody has made new ones."""

    def damage(folder: Path) -> None:
        change(folder)
        files = {path.name: file_digest(path) for path in folder.iterdir() if path.name != "checkpoint.json"}
        manifest(files=files)(folder)

    return damage


def state(*path: str, value: object) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        whole = part = json.loads((folder / "state.json").read_text())
        for key in path[:-1]:
            part = part[key]
        part[path[-1]] = value
        (folder / "state.json").write_text(json.dumps(whole))

    return signed(damage)


def tensors(name: str, change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        named = load_file(folder / f"{name}.safetensors")
        change(named)
        save_file(named, folder / f"{name}.safetensors")

    return signed(damage)


ALL = ("checkpoint.json", "state.json", *(f"{name}.safetensors" for name in TENSORS))
DAMAGE = {
    **{f"{name} missing": (lambda folder, name=name: (folder / name).unlink()) for name in ALL},
    **{f"{name} empty": cut(name, 0) for name in ALL},
    **{f"{name} cut": cut(name, 40) for name in ALL},
    **{f"{name} flipped at {where}": flip(name, where) for name in ALL[1:] for where in (0, 0.5, 1)},
    **{f"{name} a directory": directory(name) for name in ALL},
    "linked to nothing": linked("model.safetensors", "nothing"),
    "linked to itself": linked("model.safetensors", "model.safetensors"),
    "linked to a device": linked("model.safetensors", "/dev/zero"),
    "manifest null": replaced("checkpoint.json", "null"),
    "manifest a list": replaced("checkpoint.json", "[]"),
    "manifest too deep": replaced("checkpoint.json", "[" * 200_000),
    "manifest not text": replaced("checkpoint.json", "\xff\xfe\x00"),
    "manifest of another step": manifest(step=5),
    "manifest of a step below 0": manifest(step=-6),
    "manifest of a step in words": manifest(step="six"),
    "manifest of a later format": manifest(format=2),
    "manifest without files": manifest(files=None),
    "manifest with files elsewhere": manifest(files={"../../run.json": "0"}),
    "manifest with a file of the system": manifest(files={"/etc/hostname": "0"}),
    "manifest with unknown keys": manifest(code="import os"),
    "manifest of no run": manifest(run={"settings": []}),
    "files empty": manifest(files={}),
    "state with an unknown key": state("progress", "load_state_dict", value="x"),
    "state of another step": state("progress", "step", value=4),
    "schedule of another step": state("schedule", "step_number", value=4),
    "schedule with an unknown key": state("schedule", "optimizer", value=1),
    "step in words": state("progress", "step", value="6"),
    "step a flag": state("progress", "step", value=True),
    "history a number": state("progress", "history", value=5),
    "a scaler that is not used": state("scaler", value={"scale": 1.0}),
    "state too deep": signed(replaced("state.json", "[" * 200_000)),
    "an unknown tensor": tensors("model", lambda named: named.update(code=torch.zeros(1))),
    "a missing tensor": tensors("model", lambda named: named.pop("0.bias")),
    "another shape": tensors("model", lambda named: named.update({"0.bias": torch.zeros(5)})),
    "another type": tensors("average", lambda named: named.update({"0.bias": torch.zeros(4, dtype=torch.float64)})),
    "an unknown moment": tensors("optimizer", lambda named: named.update({"0.bias:max_exp": torch.zeros(4)})),
    "a moment of another shape": tensors("optimizer", lambda named: named.update({"0.bias:exp_avg": torch.zeros(1)})),
    "not safetensors": signed(replaced("model.safetensors", "PK\x03\x04" * 100)),
    "a header of an exabyte": signed(replaced("model.safetensors", "\xff" * 7 + "\x7f" + "{}")),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_checkpoint_is_left_for_an_older_one(kind: str, output: Path, expected: dict, capsys) -> None:
    DAMAGE[kind](output / "checkpoints" / "step_00000006")
    run = resume(output)
    assert_at(run, 4, expected)
    notes = capsys.readouterr().out.splitlines()
    assert len(notes) == 2 and "step_00000006: " in notes[0] and "going back to an older checkpoint" in notes[0], notes
    assert len(notes[0]) < 500 and "resumed from" in notes[1] and "step_00000004" in notes[1]
    with pytest.raises(RunFolderError, match="no checkpoint to resume.*step_00000006.*--overwrite") as error:
        resume(output, what=str(output / "checkpoints" / "step_00000006"))
    assert "\n" not in str(error.value) and len(str(error.value)) < 1000


def test_no_whole_checkpoint_is_an_error(output: Path) -> None:
    for path in find_checkpoints(output / "checkpoints"):
        flip("model.safetensors", 0.9)(path)
    with pytest.raises(RunFolderError, match="no checkpoint to resume: .*step_00000006: model.safetensors has another"):
        resume(output)


class Payload:
    def __reduce__(self) -> tuple:
        return os.system, ("touch executed",)


def test_nothing_in_a_checkpoint_is_unpickled(output: Path, expected: dict, tmp_path: Path, monkeypatch) -> None:
    """Files that accelerate and PyTorch would load, beside ours and in their places."""
    monkeypatch.chdir(tmp_path)
    newest = output / "checkpoints" / "step_00000006"
    names = ["custom_checkpoint_0.pkl", "random_states_0.pkl", "optimizer.bin", "pytorch_model.bin", "scheduler.bin"]
    for name in names:
        (newest / name).write_bytes(pickle.dumps(Payload()))
        torch.save(Payload(), newest / f"{name}.pt")
    assert_at(resume(output), 6, expected)
    for path in newest.iterdir():
        if path.name != "checkpoint.json":
            path.write_bytes(pickle.dumps(Payload()))
    signed(lambda folder: None)(newest)
    assert_at(resume(output), 4, expected)
    assert not (tmp_path / "executed").exists()


def test_what_is_no_checkpoint_is_named_first(output: Path, tmp_path: Path) -> None:
    (output / "final").mkdir()
    for what, message in ((tmp_path / "nowhere", "no such checkpoint"), (output / "final", "has no checkpoint.json")):
        with pytest.raises(RunFolderError, match=message):
            resume(output, what=str(what))


def test_checkpoints_of_older_versions_are_refused(output: Path, tmp_path: Path) -> None:
    older = tmp_path / "older" / "step_00000002"
    older.mkdir(parents=True)
    (older / "custom_checkpoint_0.pkl").write_bytes(pickle.dumps(Payload()))
    with pytest.raises(RunFolderError, match="an older glip_hf wrote it"):
        resume(tmp_path / "new", what=str(older))


# -- other runs ------------------------------------------------------------------------------------


def test_a_used_folder_is_refused_until_it_is_resumed_or_overwritten(output: Path) -> None:
    with pytest.raises(RunFolderError, match="holds an earlier run.*--resume latest.*--overwrite.*--output-dir"):
        make_run(output)
    assert len(find_checkpoints(output / "checkpoints")) == 3
    make_run(output, "run.overwrite=true")._release()
    assert not find_checkpoints(output / "checkpoints")
    with pytest.raises(RecipeError, match="overwrite deletes the run that run.resume=latest goes on with"):
        resume(output, "run.overwrite=true")


def test_two_runs_in_one_folder(output: Path) -> None:
    first = make_run(output, "run.resume=latest")
    with pytest.raises(RunFolderError, match="in use by"):
        make_run(output, "run.resume=latest")
    first._release()


@pytest.mark.parametrize(
    "change",
    ["run.seed=1", "optimizer.lr=0.5", "tuning.mode=head", "data.batch_size=8", "data.scenes=9",
     "run.gradient_accumulation=2", "schedule.gamma=0.5", "data.flip=0.25", "run.ema_decay=0.5"],
)  # fmt: skip
@pytest.mark.parametrize("what", ["latest", "DIR"])
def test_another_recipe_is_refused_by_name(output: Path, tmp_path: Path, change: str, what: str) -> None:
    key, value = change.split("=")
    with pytest.raises(RunFolderError, match=rf"with {key}=.*, this one has {value}: ") as error:
        if what == "latest":
            resume(output, change)
        else:  # in a new folder
            resume(tmp_path / "new", change, what=str(output / "checkpoints" / "step_00000004"))
    assert "\n" not in str(error.value)
    resume(output)  # nothing was changed


@pytest.mark.parametrize("change", ["data.workers=2", "run.log_every=5", "run.on_nonfinite=zero", "data.root=x"])
def test_what_decides_nothing_may_change(output: Path, expected: dict, change: str) -> None:
    assert_at(resume(output, change), 6, expected)


def test_a_longer_run_is_told(output: Path, capsys) -> None:
    resume(output, "schedule.max_steps=20")
    assert "the run began with steps 8 (now 20)" in capsys.readouterr().out


def test_a_rolled_back_run_keeps_what_is_newer_in_time(output: Path, expected: dict) -> None:
    checkpoints = output / "checkpoints"
    run = resume(output, what=str(checkpoints / "step_00000002"))
    assert_at(run, 2, expected)
    advance(run, 3)
    assert [path.name[-1] for path in find_checkpoints(checkpoints)] == ["4", "6", "3"]
    assert_at(resume(output), 3, expected)
    advance(run, 4)
    assert [path.name[-1] for path in find_checkpoints(checkpoints)] == ["6", "3", "4"]


def test_latest_in_a_new_folder_begins(tmp_path: Path, capsys) -> None:
    assert resume(tmp_path / "new").progress.step == 0
    assert "no checkpoint yet: starting at step 0" in capsys.readouterr().out


def test_the_library_of_matrix_products_is_that_of_the_first_part(output: Path, monkeypatch) -> None:
    from glip_hf.kernels.cpu_linear import onednn_available, onednn_is_faster

    if not onednn_available():
        pytest.skip("this build has one library")
    for library in ("mkl", "onednn"):
        for path in [output, *find_checkpoints(output / "checkpoints")]:
            file = path / ("run.json" if path == output else "checkpoint.json")
            value = json.loads(file.read_text())
            (value if path == output else value["run"])["environment"]["matmul"] = library
            file.write_text(json.dumps(value))
        monkeypatch.delenv("GLIP_CPU_MATMUL", raising=False)
        onednn_is_faster.cache_clear()
        resume(output)
        assert onednn_is_faster() == (library == "onednn")
    monkeypatch.delenv("GLIP_CPU_MATMUL", raising=False)
    onednn_is_faster.cache_clear()
