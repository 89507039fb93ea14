"""Bounds on controls: sets they must lie in, and the l1 penalty, which is met by its proximal map as a set is."""

from mfoc.bounds.penalty import L1
from mfoc.bounds.protocol import AdmissibleSet
from mfoc.bounds.region import Region, RowRegion, region
from mfoc.bounds.sets import Box, EuclideanBall, Simplex

__all__ = ["L1", "AdmissibleSet", "Box", "EuclideanBall", "Region", "RowRegion", "Simplex", "region"]
