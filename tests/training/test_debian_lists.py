"""Debian's descriptions, by an apt-get that writes what the real one would."""

from __future__ import annotations

from pathlib import Path

import pytest

from regard._errors import DataError
from regard.training.debian_lists import debian_translations, stanzas
from regard.training.sources import sha256_of
from tests.training.package_cases import client, first_on_path

LISTS = {
    "host_debian_dists_stable_main_binary-amd64_Packages": "Package: sample\nSource: samples\n\nPackage: other\n",
    "host_debian_dists_stable_main_i18n_Translation-en": "Package: sample\nDescription-en: A sample\n Of text.\n",
    "host_debian_dists_stable_main_i18n_Translation-zh%5fCN": "Package: sample\nDescription-zh_CN: 样本\n",
    "host_debian_dists_stable-updates_main_i18n_Translation-en": "Package: newer\n",
    "host_debian-security_dists_stable-security_main_i18n_Translation-en": "Package: safer\n",
    "host_debian_dists_stable_contrib_i18n_Translation-en": "Package: else\n",
}


@pytest.fixture
def apt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("REGARD_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PATH", first_on_path(tmp_path / "bin"))
    return tmp_path / "bin"


def brings(folder: Path, lists: dict[str, str]) -> None:
    prepared = folder.parent / "prepared"
    prepared.mkdir()
    for name, text in lists.items():
        (prepared / name).write_text(text)
    find = 'for option; do case "$option" in Dir::State::lists=*) lists="${option#*=}";; esac; done'
    client(folder, "apt-get", f'{find}\ncp {prepared}/* "$lists/"')


def test_the_lists_of_the_release_itself_are_kept(apt: Path) -> None:
    brings(apt, LISTS)
    found = debian_translations(["en", "zh_CN"], download=True, recipe="summarization")
    assert list(stanzas(found.packages)) == ["Package: sample\nSource: samples", "Package: other"]
    assert list(stanzas(found.translations["en"])) == ["Package: sample\nDescription-en: A sample\n Of text."]
    assert "样本" in next(stanzas(found.translations["zh_CN"]))
    assert found.sha256["Translation-en"] == sha256_of(found.translations["en"])
    client(apt, "apt-get", "exit 1")
    assert debian_translations(download=False, recipe="summarization").packages == found.packages
    with pytest.raises(DataError, match="expected languages of en, de, fr, zh_CN, got de"):
        debian_translations(["de"], download=False, recipe="summarization")


def test_absent_lists_name_the_command(apt: Path) -> None:
    with pytest.raises(DataError, match=r"To download them: regard train summarization --download"):
        debian_translations(download=False, recipe="summarization")


def test_an_apt_that_fails_or_brings_something_else(apt: Path) -> None:
    client(apt, "apt-get", "echo no network >&2; exit 100")
    with pytest.raises(DataError, match="apt-get failed with 100: no network"):
        debian_translations(download=True, recipe="summarization")
    brings(apt, {"host_ubuntu_dists_noble_universe_i18n_Translation-en": "Package: a\n"})
    with pytest.raises(DataError, match="brought no lists of Debian's main section, only none"):
        debian_translations(download=True, recipe="summarization")


def test_a_machine_without_apt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REGARD_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(DataError, match="fetched by apt-get, which this machine has not"):
        debian_translations(download=True, recipe="summarization")
