# Copyright 2026 The glip_hf authors. MIT licence.
"""What runs on a GPU, run without one: tensors of PyTorch's fake mode know their device, and an operation on tensors of
two devices is an error. It needs a CUDA build of PyTorch, which CI has in its environment `newest`."""

import pytest
import torch
from tiny import tiny_config, tiny_inputs, tiny_labels
from torch import Tensor
from transformers.utils import is_torchvision_available
from transformers.utils.import_utils import is_torch_greater_or_equal

from benchmarks.launches import Launches, backward, fake, fake_cuda, fake_model
from glip_hf import kernels
from glip_hf.postprocess_glip import post_process_grounding

# Without a GPU, 2.6 aborts the process at the first convolution of fake CUDA tensors; 2.14 is what was tried.
pytestmark = pytest.mark.skipif(
    not torch.backends.cuda.is_built() or not is_torch_greater_or_equal("2.14"),
    reason="this PyTorch was built without CUDA, or is older than 2.14: what runs on a GPU was not tested "
    "(scripts/matrix.sh newest)",
)


@pytest.fixture(autouse=True)
def gpu():
    """A GPU that Triton runs on."""
    with fake_cuda():
        yield


def on_gpu(outputs) -> bool:
    tensors = [value for value in outputs.values() if isinstance(value, Tensor)]
    return len(tensors) > 4 and all(value.is_cuda for value in tensors)


def run(model, inputs, **more) -> tuple[Launches, object]:
    """The second pass over these inputs: the first makes the constants of their size."""
    with Launches():
        model(**inputs, **more)
    with Launches() as seen:
        return seen, model(**inputs, **more)


@pytest.mark.parametrize(("images", "attention"), [(1, "sdpa"), (3, "eager")])
@torch.no_grad()
def test_inference_never_waits(images, attention) -> None:
    model = fake_model(tiny_config()).eval()
    model.set_attn_implementation(attention)
    positive_map = torch.ones(images, 2, 9, dtype=torch.bool)
    pixel_mask = torch.ones(images, 64, 96, dtype=torch.int64)
    inputs = fake(tiny_inputs(images) | {"pixel_mask": pixel_mask, "positive_map": positive_map})
    seen, outputs = run(model, inputs)
    assert on_gpu(outputs) and not seen.waits.total()


@torch.no_grad()
def test_one_image_with_several_captions_never_waits() -> None:
    model = fake_model(tiny_config()).eval()
    seen, outputs = run(model, fake(tiny_inputs(1, captions=3)))
    assert on_gpu(outputs) and len(outputs.logits) == 3 and not seen.waits.total()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@torch.no_grad()
def test_half_precision_never_waits(dtype) -> None:
    model = fake_model(tiny_config(), dtype).eval()
    seen, outputs = run(model, fake(tiny_inputs()))
    assert on_gpu(outputs) and outputs.logits.dtype == dtype and not seen.waits.total()


@pytest.mark.parametrize(("images", "half"), [(1, False), (4, True)], ids=["float32", "autocast"])
def test_a_training_step_waits_twice(images, half) -> None:
    """Once to check the labels and once for the number of positive locations, however many images there are; every
    trained parameter gets a gradient on its device."""
    model = fake_model(tiny_config(fusion_dropout=0.1)).train()
    inputs, labels = fake(tiny_inputs(images)), fake(tiny_labels(images))
    with torch.autocast("cuda", torch.bfloat16, enabled=half):
        seen, outputs = run(model, inputs, labels=labels)
    assert on_gpu(outputs) and seen.waits.total() == 2
    with Launches() as back:
        gradients = backward(outputs.loss)
    assert not back.waits.total()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    assert all(gradients[parameter].is_cuda and gradients[parameter].dtype == parameter.dtype for parameter in trained)


@torch.no_grad()
@pytest.mark.skipif(not is_torchvision_available(), reason="NMS without torchvision reads values, which fakes lack")
def test_post_processing_waits_a_bounded_number_of_times() -> None:
    model = fake_model(tiny_config()).eval()
    for images in (1, 3):
        outputs = model(**fake(tiny_inputs(images)))
        with Launches() as seen:
            found = post_process_grounding(outputs)
        assert len(found) == images and all(one["scores"].is_cuda for one in found)
        assert 0 < seen.waits.total() <= 28 * images, seen.waits


def test_the_plain_form_of_every_operation() -> None:
    with kernels.disable():
        model = fake_model(tiny_config(fusion_dropout=0.1)).train()
        seen, outputs = run(model, fake(tiny_inputs()), labels=fake(tiny_labels()))
        assert on_gpu(outputs) and seen.waits.total() == 2
        assert all(value is None or value.is_cuda for value in backward(outputs.loss).values())
