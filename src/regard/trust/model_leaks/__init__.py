"""Whole models: does the future reach the past, padding the tokens, a document the next, a sample its neighbours?

subject, editing        what a model reads and gives, and how the vectors of chosen tokens are changed
reaching, chunks        the two kinds of experiments
checks, ways            what is asked, and who computes attention meanwhile
entry, result           the function and its answer
"""

from regard.trust.model_leaks.entry import audit_model as audit_model
from regard.trust.model_leaks.result import Check as Check
from regard.trust.model_leaks.result import ModelAudit as ModelAudit

__all__ = ["Check", "ModelAudit", "audit_model"]
