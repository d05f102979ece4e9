"""Passports: what a model computed on one device, with what is true, to be replayed and compared on another."""

from regard.trust.passport.recording import record as record
from regard.trust.passport.replaying import replay as replay
from regard.trust.passport.report import Report as Report
from regard.trust.passport.report import Row as Row
from regard.trust.passport.summary import Summary as Summary
from regard.trust.passport.summary import show as show

__all__ = ["Report", "Row", "Summary", "record", "replay", "show"]
