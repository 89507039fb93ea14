"""A certificate of optimality for controls, however they were found."""

from mfoc.certificate.certify import Certificate, StageCertificate, certify, certify_module
from mfoc.certificate.study import Measure

__all__ = ["Certificate", "Measure", "StageCertificate", "certify", "certify_module"]
