"""A text whose alignment is known: a tiny encoder-decoder that copies, and one that reverses.

Which step's weights align a word is then a matter of fact: the step that predicts it, if the model learns by itself;
the step that the loss was put on, if it is guided.
"""

from __future__ import annotations

import pytest
import torch

from regard import observe
from regard.explain import (
    GoldAlignment,
    WatchedHead,
    argmax_links,
    guided_alignment_loss,
    link_tensor,
    score_alignments,
    target_rows,
)
from regard.nn import Transformer

WORDS, LENGTH, BEGIN, END = 12, 6, 12, 13
RULES = ("predicting", "consuming")


def texts(count, *, backwards, seed):
    """Source (count, LENGTH) of distinct words, target, and the links, which are the same for all."""
    draw = torch.Generator().manual_seed(seed)
    source = torch.rand(count, WORDS, generator=draw).argsort(1)[:, :LENGTH]
    links = {(LENGTH - 1 - at if backwards else at, at) for at in range(LENGTH)}
    return source, source.flip(1) if backwards else source, links


def begun(target):
    return torch.cat([torch.full_like(target[:, :1], BEGIN), target], 1)


def ended(target):
    return torch.cat([target, torch.full_like(target[:, :1], END)], 1)


def trained(*, backwards, rule=None, steps):
    """One layer and one head each; `rule`: guide the head by these rows."""
    torch.manual_seed(0)
    model = Transformer(14, 14, 32, 1, encoder_layers=1, decoder_layers=1, dropout_p=0.0, share=True)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for step in range(steps):
        source, target, links = texts(32, backwards=backwards, seed=step)
        with WatchedHead(model.decoder.layers[0].cross_attention) as watched:
            logits = model(source, begun(target))
            loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), ended(target).flatten())
            if rule is not None:
                rows = target_rows(watched.weights(), rule)
                loss = loss + guided_alignment_loss(rows, link_tensor([links] * 32, LENGTH, LENGTH)) / (32 * LENGTH)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval()


def errors(model, *, backwards):
    """AER by each rule, from the weights that `regard.observe` shows."""
    source, target, links = texts(64, backwards=backwards, seed=10**6)
    with torch.no_grad(), observe(model, ["decoder.layers.0.cross_attention"]) as seen:
        model(source, begun(target))
    weights = seen.layers[0].weights()[:, 0]
    gold = [GoldAlignment(LENGTH, LENGTH, links)] * len(source)
    return {
        rule: score_alignments([argmax_links(sample) for sample in target_rows(weights, rule)], gold).aer
        for rule in RULES
    }


@pytest.mark.parametrize("backwards", [False, True], ids=["copy", "reverse"])
def test_a_model_that_learned_by_itself_looks_at_the_word_it_predicts(backwards):
    found = errors(trained(backwards=backwards, steps=400), backwards=backwards)
    assert found["predicting"] < 0.05
    assert found["consuming"] > 0.5


@pytest.mark.parametrize("rule", RULES)
def test_a_guided_head_looks_where_it_was_guided_to(rule):
    found = errors(trained(backwards=True, rule=rule, steps=150), backwards=True)
    assert found[rule] < 0.05
    assert found[RULES[1 - RULES.index(rule)]] > 0.5
