"""The scripts in convert/."""

import importlib.util
from pathlib import Path

import torch
from checkpoints import VOCAB, small_state
from parity.architectures import recorded_config
from parity.recorded_case import write_case

from glip_hf import GlipForGrounding


def test_scripts(tmp_path, capsys, monkeypatch):
    """The three scripts in a row, as the README tells it."""

    def script(name):
        path = Path(__file__).parents[2] / "convert" / f"{name}.py"
        spec = importlib.util.spec_from_file_location(f"script_{name}", path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    def run(name, *arguments):
        code = script(name).main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    source, out = tmp_path / "x.pth", tmp_path / "out"
    original = small_state("small_a")
    torch.save({"model": original}, source)
    recorded_config("small_a").save_pretrained(tmp_path)
    options = ["--tokenizer", VOCAB, "--config", tmp_path / "config.json"]
    code, text, _ = run("convert_glip_to_hf", source, out, *options)
    assert code == 0 and f"-> {out}" in text and "sha256" in text
    code, _, error = run("convert_glip_to_hf", source, out, *options)
    assert code == 1 and error.startswith("glip convert: ") and "--force" in error
    pushed = []
    monkeypatch.setattr("glip_hf.conversion.push_to_hub", lambda *a: pushed.append(a) or "https://x")
    code, *_ = run("convert_glip_to_hf", source, out, *options, "--force", "--push-to-hub", "me/glip")
    assert code == 0
    assert pushed == [(out, "me/glip")]

    model = GlipForGrounding.from_pretrained(out).eval()
    write_case(tmp_path / "case", model)
    code, text, _ = run("verify", out, tmp_path / "case.json")
    assert code == 0 and "within tolerance" in text
    with torch.no_grad():
        model.head.bias0 += 1
    model.save_pretrained(tmp_path / "changed")
    code, text, _ = run("verify", tmp_path / "changed", tmp_path / "case.json", "--only-failed")
    assert code == 1 and "FAILED" in text
    code, _, error = run("verify", out, tmp_path / "absent.json")
    assert code == 1 and "not a recorded case" in error

    code, text, _ = run("convert_hf_to_glip", out, tmp_path / "back.pth")
    assert code == 0
    assert all(torch.equal(x, original[k]) for k, x in torch.load(tmp_path / "back.pth")["model"].items())
    code, _, error = run("convert_hf_to_glip", out, tmp_path / "back.pth")
    assert code == 1 and "exists" in error
