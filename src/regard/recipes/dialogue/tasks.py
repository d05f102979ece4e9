"""What is trained on conversations and on stories, and what is measured: perplexity by turn, accuracy by distance."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping, Sequence
from functools import lru_cache

import torch
from torch import Tensor, nn

from regard.recipes.dialogue.babi import WORDS, Part, make_story
from regard.recipes.dialogue.config import Config
from regard.recipes.dialogue.data import TEXT, Corpus
from regard.recipes.dialogue.model import DialogueModel, model_of_budget
from regard.recipes.dialogue.segments import Batch, Example, collate, longest_first, read
from regard.recipes.equal_budget import drawn_from
from regard.training.data_digest import digest_of
from regard.training.loss import vocabulary_cross_entropy
from regard.training.order import length_batches

DEPTHS = ((1, 4), (5, 8), (9, 16), (17, 32), (33, None))
"""Turns, from and to, by which perplexity is told apart."""
_EVALUATED_TOKENS = 4096
_STORIES_OF_AN_EPOCH = 4096


class SegmentTask:
    """What conversations and stories share: an example is read whole, from an empty memory, within one `loss`."""

    metric = "negative_loss"

    def __init__(self, config: Config, vocabulary: int, tokenizer: str = "") -> None:
        self.config = config
        self.model: nn.Module = build(config, vocabulary, tokenizer)

    def example(self, number: int) -> Example:
        """One of training."""
        raise NotImplementedError

    def order(self, epoch: int) -> Sequence[Sequence[int]]:
        raise NotImplementedError

    def evaluate(self, model: nn.Module) -> Mapping[str, float]:
        raise NotImplementedError

    def units(self, indices: Sequence[int]) -> int:
        """Tokens that are predicted."""
        return sum(int((self.example(number).targets >= 0).sum()) for number in indices)

    def batch(self, indices: Sequence[int]) -> Batch:
        return collate([self.example(number) for number in indices])

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        made, config = as_dialogue_model(model), self.config
        total = torch.zeros((), device=batch["inputs"].device)
        for segment in read(made, batch, config.segment, gradient_segments=config.gradient_segments):
            asked = segment.targets >= 0
            total = total + vocabulary_cross_entropy(
                segment.states[asked],
                made.embedding.weight,
                segment.targets[asked],
                smoothing=config.label_smoothing,
            )
            # What is written last is not read again, but other processes wait for the gradient of every weight.
            total = total + 0.0 * sum(part["memory"].sum() for part in segment.state if "memory" in part.tensors)
        return total


class ConversationTask(SegmentTask):
    """Conversations: every token is predicted."""

    def __init__(self, config: Config, corpus: Corpus) -> None:
        super().__init__(config, TEXT + corpus.tokenizer.get_vocab_size(), corpus.tokenizer.to_str())
        self.corpus = corpus
        most = config.most_tokens
        self.examples = [
            whole.part(begin, min(begin + most, whole.length))
            for whole in corpus.examples("train")
            for begin in range(0, whole.length, most)
        ]

    def example(self, number: int) -> Example:
        return self.examples[number]

    def data_digest(self) -> str:
        """Of the tokens of all training conversations."""
        return digest_of(example.tokens for example in self.examples)

    def order(self, epoch: int) -> Sequence[Sequence[int]]:
        lengths = [example.length for example in self.examples]
        return length_batches(lengths, self.config.batch_tokens, seed=self.config.seed, epoch=epoch)

    def evaluate(self, model: nn.Module) -> Mapping[str, float]:
        """Of the first tokens of some conversations of the validation part."""
        chosen = self.corpus.examples("validation")[: self.config.validation_conversations]
        sums, counts = losses_by_depth(
            as_dialogue_model(model),
            [example.part(0, min(self.config.most_tokens, example.length)) for example in chosen],
            self.config.segment,
        )
        loss = float(sums.sum() / counts.sum())
        return {"loss": loss, "perplexity": math.exp(loss), "negative_loss": -loss}


class StoryTask(SegmentTask):
    """Stories: the answers are predicted, and an example's number says its distance. They are told when needed."""

    metric = "accuracy"

    def __init__(self, config: Config) -> None:
        super().__init__(config, len(WORDS))

    def example(self, number: int) -> Example:
        return story_example("train", number, self.config.distances, self._shape)

    def order(self, epoch: int) -> Sequence[Sequence[int]]:
        """New stories in each epoch."""
        size = max(self.config.batch_tokens // self.example(0).length, 1)
        first = epoch * _STORIES_OF_AN_EPOCH
        return [
            list(range(begin, begin + size))
            for begin in range(first, first + max(_STORIES_OF_AN_EPOCH - size, 0) + 1, size)
        ]

    def evaluate(self, model: nn.Module) -> Mapping[str, float]:
        """The part of the last questions of validation stories that is answered rightly, and by distance."""
        right = self.answered(model, "validation", max(self.config.test_stories // 4, 1))
        by_distance = {f"accuracy_{distance}": float(each.mean()) for distance, each in right.items()}
        return {"accuracy": sum(by_distance.values()) / len(by_distance), **by_distance}

    def answered(self, model: nn.Module, part: Part, count: int) -> dict[int, Tensor]:
        """For each distance float32 (count,): 1 where the last question of a story is answered rightly."""
        made = as_dialogue_model(model)
        return {
            distance: answered_rightly(
                made, [story_example(part, number, (distance,), self._shape) for number in range(count)], self.config
            )
            for distance in self.config.distances
        }

    @property
    def _shape(self) -> tuple[int, int, int]:
        return self.config.story_turns, self.config.facts, self.config.seed


def build(config: Config, vocabulary: int, tokenizer: str = "") -> DialogueModel:
    """The model of a configuration, its weights drawn from the seed."""
    with drawn_from(config.seed):
        return model_of_budget(
            vocabulary,
            config.embed_dim,
            config.num_heads,
            config.num_layers,
            memory=config.memory,
            slots=config.slots,
            decay=config.decay,
            reach=config.reach,
            dropout_p=config.dropout_p,
            tokenizer=tokenizer,
        )


def as_dialogue_model(model: nn.Module) -> DialogueModel:
    """What is trained or evaluated, by its type."""
    if not isinstance(model, DialogueModel):
        raise TypeError(f"expected a DialogueModel, got {type(model).__name__}")
    return model


@lru_cache(maxsize=8192)
def story_example(part: Part, number: int, distances: tuple[int, ...], shape: tuple[int, int, int]) -> Example:
    """A story as numbers; shape is turns, facts and seed."""
    turns, facts, seed = shape
    distance = distances[number % len(distances)]
    story = make_story(part, number, distance=distance, turns=turns, facts=facts, seed=seed)
    words = [word for turn in story.turns for word in turn]
    of_turn = len(story.turns[0])
    tokens = torch.tensor([_NUMBER_OF[word] for word in words])
    asked = torch.zeros(len(words), dtype=torch.bool)
    asked[[of_turn * (turn + 1) - 1 for turn in story.asked]] = True
    return Example(tokens, torch.arange(len(words)) // of_turn + 1, asked)


_NUMBER_OF = {word: number for number, word in enumerate(WORDS)}


@torch.no_grad()
def losses_by_depth(model: DialogueModel, examples: Sequence[Example], size: int) -> tuple[Tensor, Tensor]:
    """Sums of cross entropies in nats, and how many tokens, of the turns of `DEPTHS`: each (conversations, 5)."""
    sums = torch.zeros(len(examples), len(DEPTHS), dtype=torch.float64)
    counts = torch.zeros_like(sums)
    device = model.embedding.weight.device
    for places in _by_length(examples):
        some = [examples[place] for place in places]
        rows = [places[row] for row in longest_first(some)]
        batch = {name: tensor.to(device) for name, tensor in collate(some).items()}
        depths = _padded([depth_of(examples[row].turns[1:]) for row in rows])
        for segment in read(model, batch, size):
            real = segment.targets >= 0
            losses = nn.functional.cross_entropy(
                model.logits(segment.states[real]), segment.targets[real], reduction="none"
            )
            row, place = real.cpu().nonzero(as_tuple=True)
            into = (torch.tensor(rows)[row], depths[row, segment.begin + place])
            sums.index_put_(into, losses.double().cpu(), accumulate=True)
            counts.index_put_(into, torch.ones(len(row), dtype=torch.float64), accumulate=True)
    return sums, counts


def depth_of(turns: Tensor) -> Tensor:
    """Which of `DEPTHS` each turn is in."""
    return torch.bucketize(turns, torch.tensor([last for _, last in DEPTHS if last is not None]))


@torch.no_grad()
def answered_rightly(model: DialogueModel, examples: Sequence[Example], config: Config) -> Tensor:
    """Float32 (stories,): 1 where the likeliest word for the last place is the answer. Stories are equally long."""
    found: list[Tensor] = []
    device = model.embedding.weight.device
    most = max(4 * _EVALUATED_TOKENS // examples[0].length, 1)
    for begin in range(0, len(examples), most):
        batch = {name: tensor.to(device) for name, tensor in collate(examples[begin : begin + most]).items()}
        last = deque(read(model, batch, config.segment), maxlen=1).pop()
        found.append((model.logits(last.states[:, -1]).argmax(-1) == last.targets[:, -1]).float().cpu())
    return torch.cat(found)


def _padded(rows: Sequence[Tensor]) -> Tensor:
    return nn.utils.rnn.pad_sequence(list(rows), batch_first=True)


def _by_length(examples: Sequence[Example]) -> list[list[int]]:
    """Numbers of conversations of like length, some thousand tokens together."""
    groups: list[list[int]] = [[]]
    for place in longest_first(examples):
        if groups[-1] and examples[groups[-1][0]].length * (len(groups[-1]) + 1) > _EVALUATED_TOKENS:
            groups.append([])
        groups[-1].append(place)
    return groups
