"""`run_worker.py` with parameters sharded as FSDP2 does, on CPU processes: `python sharded_worker.py OUTPUT [...]`.

Where there is no GPU, accelerate has no FSDP; so this does what it does with `examples/launch/fsdp.yaml` elsewhere:
it wraps the same classes, and gathers the same way.
"""

from pathlib import Path
from typing import Any

import run_worker
import torch
import yaml
from accelerate import Accelerator
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from glip_hf.training import loop

LAUNCH = Path(__file__).parents[2] / "examples" / "launch" / "fsdp.yaml"
WRAPPED = yaml.safe_load(LAUNCH.read_text())["fsdp_config"]["fsdp_transformer_layer_cls_to_wrap"].split(",")


def prepare(self: Accelerator, model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> tuple[Any, Any]:
    mesh = init_device_mesh("cpu", (self.num_processes,))
    layers = [module for module in model.modules() if type(module).__name__ in WRAPPED]
    assert {type(module).__name__ for module in layers} == set(WRAPPED)
    for module in reversed(layers):
        fully_shard(module, mesh=mesh)
    fully_shard(model, mesh=mesh)
    named = dict(model.named_parameters())
    assert all(isinstance(parameter, DTensor) for parameter in named.values())
    for group in optimizer.param_groups:
        group["params"] = [named[name] for name in group["names"]]
    self._models.append(model)
    return model, self.prepare_optimizer(optimizer)


def get_state_dict(self: Accelerator, model: torch.nn.Module) -> dict[str, torch.Tensor]:
    options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True, cpu_offload=True)
    return get_model_state_dict(model, options=options)


Accelerator.prepare, Accelerator.get_state_dict = prepare, get_state_dict
loop.SHARDED = ("MULTI_CPU",)


if __name__ == "__main__":
    run_worker.main()
