"""A character model of Shakespeare: training, the length test, and what its heads do with the first character.

    regard train language_model --download                                  rotary positions
    regard train language_model --set position=alibi --set gate=element
    regard run language_model "ROMEO:"

The test predicts the same characters from windows of 256, 512, 1024 and 2048 characters, of which the last half is
new each time (Press et al. 2021, https://arxiv.org/abs/2108.12409, call it sliding evaluation): every prediction sees
at least half a window. A model that reads further than it was trained gains or keeps its loss; one that does not
loses.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

import regard
from regard.recipes.language_model.data import load
from regard.recipes.language_model.model import LanguageModel
from regard.recipes.language_model.sample import run
from regard.recipes.language_model.task import BLOCK, CharacterTask, Config, as_language_model, sliding_losses
from regard.training.task import Task

__all__ = ["Config", "make_task", "report", "run"]


def make_task(config: Config, *, download: bool) -> CharacterTask:
    """Shakespeare, or `config.text`, and the variant that the configuration describes."""
    return CharacterTask(config, load(config.text, download=download))


@torch.no_grad()
def sink_share(model: LanguageModel, text: Tensor, length: int, windows: int = 16) -> Tensor:
    """(layers, heads): the mean weight on the first character of a window, of the queries in its second half.

    A head that weighs all characters alike gives it 1 / place: 0.0027 on the mean for windows of 256. Raises
    RegardError as `ObservedLayer.statistics` does, from which it comes.
    """
    stride = max((len(text) - length) // windows, 1)
    batch = torch.stack([text[begin : begin + length] for begin in range(0, len(text) - length + 1, stride)][:windows])
    with regard.observe(model) as seen:
        model(batch.to(model.embedding.weight.device))
    shares = [layer.statistics(want=("sink_share",)).sink_share for layer in seen.layers]
    return torch.stack([share[:, :, length // 2 :].mean((0, 2)) for share in shares if share is not None])


def report(task: Task, model: nn.Module, config: Config) -> dict[str, object]:
    """The test: losses of blocks of 256 characters by window length, and the sink share of each layer and head."""
    if not isinstance(task, CharacterTask):
        raise TypeError(f"no report of {type(task).__name__}")
    made = as_language_model(model.eval())
    count = min(config.test_characters, len(task.text.test) - 1) // BLOCK * BLOCK
    losses = {length: sliding_losses(made, task.text.test, length, count) for length in config.test_lengths}
    shares = None if config.mixer == "s4d" else sink_share(made, task.text.test, config.length)
    return {
        "loss": {str(length): float(each.mean()) for length, each in losses.items()},
        "bits_per_character": {str(length): float(each.mean()) / math.log(2) for length, each in losses.items()},
        "losses_of_blocks": {str(length): _numbers(each.view(-1, BLOCK).mean(1)) for length, each in losses.items()},
        "sink_share": None if shares is None else [_numbers(layer) for layer in shares],
    }


def _numbers(values: Tensor) -> list[float]:
    return [round(float(value), 6) for value in values]
