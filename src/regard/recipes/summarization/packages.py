"""The packages whose manual pages are read, pinned. The licences are those of the pages.

All are for every machine, so that one sha256 holds on each.
"""

from __future__ import annotations

from regard.training.sources import Package

_MEMBERS = ("usr/share/man/man*/*", "usr/share/doc/*/copyright")


def _pages(name: str, version: str, sha256: str, *, megabytes: float, licence: str) -> Package:
    file = f"{name}_{version.replace(':', '%3a')}_all.deb"
    return Package("debian", name, version, file, sha256, licence, megabytes, _MEMBERS)


PAGES = (
    _pages(
        "manpages",
        "6.03-2",
        "efa1ba4cd19ad7baeae959c9209a7eb74be2ebb858bcabb412597bfc9f588c91",
        megabytes=1.3,
        licence="GPL-2+, BSD",
    ),
    _pages(
        "manpages-dev",
        "6.03-2",
        "96f55cb5e26231d5567c89b692bced63825a14a2d5bd18fdf16ea2ed44eb9838",
        megabytes=2.0,
        licence="GPL-2+, BSD",
    ),
    _pages(
        "git-man",
        "1:2.39.5-0+deb12u3",
        "904dbd8dbc3db34c6780fb0abfe35816d4a90a490126ef0a055a77a0c5dcab82",
        megabytes=2.1,
        licence="GPL-2",
    ),
    _pages(
        "libssl-doc",
        "3.0.22-1~deb12u2",
        "b79995160eeb7673b3933bf270105e075814a13b3d499db8c65bb41735748b41",
        megabytes=2.4,
        licence="Apache-2.0",
    ),
    _pages(
        "perl-doc",
        "5.36.0-7+deb12u4",
        "f4269cff4576d6f02a6756df842988e58451c7e945b08517dd235531b24e48f8",
        megabytes=7.9,
        licence="Artistic, GPL-1+",
    ),
    _pages(
        "tcl8.6-doc",
        "8.6.13+dfsg-2",
        "e6468aa726a0d77f3e61ae4714bcf7c4c4ddd02828388977f765ffdda4935876",
        megabytes=1.7,
        licence="TCL",
    ),
    _pages(
        "tk8.6-doc",
        "8.6.13-2",
        "8e93967b9d5d36e2eff002f27261b93417a7c439a8207932fe8335f0ac84b407",
        megabytes=1.2,
        licence="TCL",
    ),
)
