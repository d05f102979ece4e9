"""What a callable really attends to: `audit` recovers it from outputs alone and compares it with a declaration.

recover, heads, scores, leaks           probes: weights, who reads whom, from scores to weights, what a mask lets by
declared                                what should be, and where that can be seen
describe_mask, mask_rules               a bool matrix in words, and a mask as rules that can be broken
compare_mask, compare_scores, findings  the differences, each with a code
examination, conclusions                which probes, in which settings, and what they amount to
entry, result, report, picture          the function, its answer, and the answer for people
ways, multihead, huggingface            things that can be run in several ways, and two kinds of them
"""

from regard.trust.audit.entry import audit as audit
from regard.trust.audit.findings import CODES as CODES
from regard.trust.audit.findings import Finding as Finding
from regard.trust.audit.result import Audit as Audit

__all__ = ["CODES", "Audit", "Finding", "audit"]
