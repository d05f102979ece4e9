"""Two processes that share a batch compute what one computes of it: loss and every gradient."""

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import multiprocessing

from regard.recipes.image_classification.recipe import Classification
from regard.recipes.image_classification.recipe import Config as ClassificationConfig
from regard.recipes.image_text.recipe import Config as ImageTextConfig
from regard.recipes.image_text.recipe import ImageText
from tests.recipes.small_images import clothes, emoji

NAMES = ("image_classification", "image_text-clip", "image_text-siglip")


def task_named(name: str):
    if name == "image_classification":
        return Classification(
            ClassificationConfig(model="cnn", attention="cbam", width=8, batch_size=11), clothes(60, 20)
        )
    config = ImageTextConfig(
        loss="clip" if name.endswith("clip") else "siglip", batch_size=11, embed_dim=32, num_heads=2, picture_layers=1,
        caption_layers=1, width=16, vocabulary=400,
    )  # fmt: skip
    return ImageText(config, emoji())


def summed(task, part: slice) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Loss and gradients of a part of the first batch, as sums; 11 pairs do not divide by 2."""
    loss = task.loss(task.model.train(), task.batch(task.order(0)[0][part]))
    loss.backward()
    return loss.detach(), {name: parameter.grad for name, parameter in task.model.named_parameters()}


def share(process: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=process, world_size=2)
    for name in NAMES:
        loss, gradients = summed(task_named(name), slice(process, None, 2))
        for tensor in (loss, *gradients.values()):
            dist.all_reduce(tensor)
        if process == 0:
            torch.save({"loss": loss, "gradients": gradients}, f"{folder}/{name}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory) -> Path:
    """A folder with the sums of both processes, for each task."""
    folder = tmp_path_factory.mktemp("sums")
    multiprocessing.spawn(share, args=(str(folder),), nprocs=2)
    return folder


@pytest.mark.parametrize("name", NAMES)
def test_two_processes_compute_what_one_does(two_processes: Path, name):
    found = torch.load(two_processes / f"{name}.pt", weights_only=True)
    loss, gradients = summed(task_named(name), slice(None))
    torch.testing.assert_close(found["loss"], loss, rtol=1e-5, atol=1e-5)
    assert found["gradients"].keys() == gradients.keys()
    for key, gradient in gradients.items():
        torch.testing.assert_close(found["gradients"][key], gradient, rtol=1e-3, atol=1e-4, msg=key)
