"""What theory says of a network and its training, beside what is measured on the network itself."""

from mfoc.analysis import information as information
from mfoc.analysis import kernel as kernel
from mfoc.analysis import noise as noise
from mfoc.analysis import propagation as propagation
