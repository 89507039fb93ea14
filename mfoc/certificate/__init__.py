"""A certificate of optimality for controls, however they were found."""

from mfoc.certificate.certify import certify, certify_module
from mfoc.certificate.report import Certificate, StageCertificate
from mfoc.certificate.study import Measure

__all__ = ["Certificate", "Measure", "StageCertificate", "certify", "certify_module"]
