# Copyright 2026 The glip_hf authors. MIT licence.
"""Pushing to the Hub and loading by name, through a Hub of our own on loopback.

One process pushes a model, a model with code and a prompt table; others, with empty caches, load them.
"""

from collections.abc import Iterator

import pytest
import torch
from huggingface_hub import ModelCard
from random_glip import PHOTO, random_model

from .hub_server import HubServer
from .loading import LOAD, check, expected

OWN_CARD = b"---\nlicense: mit\n---\n# My own card\n"
PUSH = """
import sys
import torch
from glip_hf import GlipForGrounding, GlipProcessor

source = sys.argv[1]
model, processor = GlipForGrounding.from_pretrained(source), GlipProcessor.from_pretrained(source)
model.push_to_hub("user/glip-demo")
processor.push_to_hub("user/glip-demo")
model = GlipForGrounding.from_pretrained(source)
model.save_pretrained("here", push_to_hub=True, repo_id="user/glip-code", with_code=True)
GlipProcessor.from_pretrained(source).push_to_hub("user/glip-code", with_code=True)
model = GlipForGrounding.from_pretrained(source)
torch.manual_seed(0)
torch.nn.init.normal_(model.add_prompt_table(16))
print(model.push_prompt_table("user/my-task", private=True))
"""
PULL = """
import sys
import torch
from glip_hf import GlipForGrounding, GlipProcessor
from PIL import Image

image, results = sys.argv[1:]
model = GlipForGrounding.from_pretrained("user/glip-demo").eval()
processor = GlipProcessor.from_pretrained("user/glip-demo")
inputs = processor(images=Image.open(image), text=["cat", "remote control"], return_tensors="pt")
state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
with torch.inference_mode():
    outputs = model(**inputs)
found = processor.post_process_grounded_object_detection(outputs, inputs, threshold=0.3)[0]
table = model.load_prompt_table("user/my-task")
assert model.config.prompt_table_length == 16
torch.save({"state": state, "logits": outputs.logits, "boxes": found["boxes"], "table": table}, results)
"""


@pytest.fixture(scope="module")
def hub(saved, run_python) -> Iterator[HubServer]:
    """A Hub to which everything has been pushed."""
    with HubServer() as server:
        server.repos["user/glip-code"] = [("0" * 40, {"README.md": OWN_CARD})]
        assert "user/my-task" in run_python(PUSH, saved, env=server.environment)
        yield server
        assert server.unknown == []


def test_pushed_and_loaded_by_name(saved, run_python, hub, tmp_path) -> None:
    files = hub.files("user/glip-demo")
    assert set(files) == {
        "README.md",
        "config.json",
        "model.safetensors",
        "processor_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    assert files["model.safetensors"] in hub.large.values()
    card = ModelCard(files["README.md"].decode())
    assert card.data.pipeline_tag == "zero-shot-object-detection" and "# user/glip-demo" in card.text
    assert "parameters" in card.text
    assert set(hub.files("user/my-task")) == {"prompt_table.json", "prompt_table.safetensors"}  # without the model

    results = tmp_path / "results.pt"
    run_python(PULL, PHOTO, results, env=hub.environment)
    loaded = torch.load(results)
    state = random_model().state_dict()
    assert loaded["state"].keys() == state.keys()
    assert all(torch.equal(loaded["state"][key], value) for key, value in state.items())
    for key, value in expected(saved, plain=False).items():
        torch.testing.assert_close(loaded[key], value, rtol=0, atol=1e-5)
    torch.manual_seed(0)
    assert torch.equal(loaded["table"], torch.randn(16, 32))


def test_pushed_with_code_and_loaded_without_glip_hf(saved, run_python, hub, tmp_path) -> None:
    files = hub.files("user/glip-code")
    assert {"modeling_glip.py", "processing_glip.py", "hub_glip.py"} <= set(files)
    card = ModelCard(files["README.md"].decode())
    assert "# My own card" in card.text and "glip" in card.data.tags  # kept, and tagged
    results = tmp_path / "results.pt"
    run_python(LOAD, "user/glip-code", PHOTO, results, installed=False, env=hub.environment)
    check(torch.load(results), saved)
