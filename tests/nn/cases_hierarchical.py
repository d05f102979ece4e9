"""Hierarchical attention, looked at through the weight of each token in its document and the document's vector."""

from regard.nn import HierarchicalAttention
from regard.positions import ALiBi, T5Bias
from tests.nn.cases import Case, tokens

WIDTH = 8


def document(length):
    """Paragraphs of sentences: the last sentence of the first paragraph is empty, and so is the second paragraph."""
    first = length // 2
    return [[first // 2, first - first // 2, 0], [], [length - first]]


def of_two_levels(length):
    return [length // 3, length - length // 3]


def token_by_token(found):
    """(documents, length, width): each token's share of its document."""
    return found.token_weights.unsqueeze(-1) * found.documents.unsqueeze(1)


def case(name, make, one_document=document, **more):
    return Case(
        name,
        make,
        tokens(WIDTH),
        options=lambda batch, length: {"structure": [one_document(length)] * batch},
        with_padding=lambda lengths: {"structure": [one_document(length) for length in lengths]},
        output=token_by_token,
        **more,
    )


CASES = [
    case("hierarchical_han", lambda: HierarchicalAttention(WIDTH)),
    case("hierarchical_han_of_two_levels", lambda: HierarchicalAttention(WIDTH, levels=2), of_two_levels),
    case(
        "hierarchical_han_with_gru",
        lambda: HierarchicalAttention(WIDTH, levels=2, gru=True),
        of_two_levels,
        compiles=False,
    ),
    case("hierarchical_transformer", lambda: HierarchicalAttention(WIDTH, 2, form="transformer")),
    case(
        "hierarchical_transformer_with_positions",
        lambda: HierarchicalAttention(
            WIDTH, 2, form="transformer", num_layers=2, positions=[ALiBi(2), None, T5Bias(2, max_distance=20)]
        ),
    ),
]
