"""A certificate of optimality for controls, however they were found."""

from mfoc.certificate.certify import certify, certify_module
from mfoc.certificate.intervals import Measure
from mfoc.certificate.report import Certificate, Principle, StageCertificate, Standing, Verdict

__all__ = [
    "Certificate", "Measure", "Principle", "StageCertificate", "Standing", "Verdict", "certify", "certify_module",
]  # fmt: skip
