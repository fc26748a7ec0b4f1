# Copyright 2026 The glip_hf authors. MIT licence.
"""A prompt table goes to the Hub and comes back by name, without the model."""

from .hub_server import HubServer

PUSH = """
import sys
import torch
from glip_hf import GlipForGrounding

model = GlipForGrounding.from_pretrained(sys.argv[1])
torch.manual_seed(0)
torch.nn.init.normal_(model.add_prompt_table(16))
print(model.push_prompt_table("user/my-task", private=True))
"""
PULL = """
import sys
import torch
from glip_hf import GlipForGrounding

model = GlipForGrounding.from_pretrained(sys.argv[1])
table = model.load_prompt_table("user/my-task")
torch.manual_seed(0)
assert torch.equal(table, torch.randn(16, 32)) and model.config.prompt_table_length == 16
"""


def test_pushed_and_loaded_by_name(saved, run_python) -> None:
    with HubServer() as hub:
        online = {"HF_ENDPOINT": hub.url, "HF_TOKEN": hub.token, "HF_HUB_DISABLE_XET": "1", "HF_HUB_OFFLINE": "0"}
        online["NO_PROXY"] = "127.0.0.1"
        assert "user/my-task" in run_python(PUSH, saved, env=online)
        assert set(hub.files("user/my-task")) == {"prompt_table.json", "prompt_table.safetensors"}
        run_python(PULL, saved, env=online)
        assert hub.unknown == []
