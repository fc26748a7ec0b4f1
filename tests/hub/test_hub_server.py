# Copyright 2026 The glip_hf authors. MIT licence.
"""`push_to_hub` and `from_pretrained("user/name")`, through a Hub of our own on loopback."""

import pytest
import torch
from huggingface_hub import ModelCard
from random_glip import PHOTO, random_model

from .hub_server import HubServer
from .loading import LOAD, check, expected

PUSH = """
import sys
from glip_hf import GlipForGrounding, GlipProcessor

source = sys.argv[1]
GlipForGrounding.from_pretrained(source).push_to_hub("user/glip-demo")
GlipProcessor.from_pretrained(source).push_to_hub("user/glip-demo")
"""
PUSH_WITH_CODE = """
import sys
from glip_hf import GlipForGrounding, GlipProcessor

source = sys.argv[1]
model = GlipForGrounding.from_pretrained(source)
model.save_pretrained("here", push_to_hub=True, repo_id="user/glip-demo", with_code=True)
GlipProcessor.from_pretrained(source).push_to_hub("user/glip-demo", with_code=True)
"""
PULL = """
import sys
import torch
from glip_hf import GlipForGrounding, GlipProcessor
from PIL import Image

photo, results = sys.argv[1:]
model = GlipForGrounding.from_pretrained("user/glip-demo").eval()
processor = GlipProcessor.from_pretrained("user/glip-demo")
inputs = processor(images=Image.open(photo), text=["cat", "remote control"], return_tensors="pt")
with torch.inference_mode():
    outputs = model(**inputs)
found = processor.post_process_grounded_object_detection(outputs, inputs, threshold=0.3)[0]
torch.save({"state": model.state_dict(), "logits": outputs.logits, "boxes": found["boxes"]}, results)
"""


@pytest.fixture
def hub():
    with HubServer() as server:
        yield server
        assert server.unknown == []


@pytest.fixture
def online(hub) -> dict[str, str]:
    return {
        "HF_ENDPOINT": hub.url,
        "HF_TOKEN": hub.token,
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_OFFLINE": "0",
        "NO_PROXY": "127.0.0.1",
    }


def test_pushed_and_loaded_by_name(saved, run_python, hub, online, tmp_path) -> None:
    run_python(PUSH, saved, env=online)
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

    results = tmp_path / "results.pt"
    run_python(PULL, PHOTO, results, env=online)
    loaded = torch.load(results)
    state = random_model().state_dict()
    assert loaded["state"].keys() == state.keys()
    assert all(torch.equal(loaded["state"][key], value) for key, value in state.items())
    for key, value in expected(saved).items():
        torch.testing.assert_close(loaded[key], value, rtol=0, atol=1e-5)


def test_pushed_with_code_and_loaded_without_glip_hf(saved, run_python, hub, online, tmp_path) -> None:
    own = b"---\nlicense: mit\n---\n# My own card\n"
    hub.repos["user/glip-demo"] = [("0" * 40, {"README.md": own})]
    run_python(PUSH_WITH_CODE, saved, env=online)
    files = hub.files("user/glip-demo")
    assert {"modeling_glip.py", "processing_glip.py", "hub_glip.py"} <= set(files)
    card = ModelCard(files["README.md"].decode())
    assert "# My own card" in card.text and "glip" in card.data.tags  # kept, and tagged
    results = tmp_path / "results.pt"
    run_python(LOAD, "user/glip-demo", PHOTO, results, installed=False, env=online)
    check(torch.load(results), saved)
