"""What layers know of inputs and labels, and the information bottleneck (Tishby, Pereira & Bialek 1999), in nats."""

from mfoc.analysis.information.binning import Binned as Binned
from mfoc.analysis.information.bounds import Bounds as Bounds
from mfoc.analysis.information.bounds import Estimator as Estimator
from mfoc.analysis.information.gaussian import GaussianBottleneck as GaussianBottleneck
from mfoc.analysis.information.gaussian import gaussian_bottleneck as gaussian_bottleneck
from mfoc.analysis.information.gaussian import gaussian_information as gaussian_information
from mfoc.analysis.information.kde import KDE as KDE
from mfoc.analysis.information.plane import InformationPlane as InformationPlane
from mfoc.analysis.information.plane import LayerInformation as LayerInformation
from mfoc.analysis.information.plane import information_plane as information_plane
from mfoc.analysis.information.variational import InformationBottleneck as InformationBottleneck
from mfoc.analysis.information.variational import Rates as Rates
from mfoc.analysis.information.variational import information_bottleneck as information_bottleneck
from mfoc.analysis.information.variational import with_noise as with_noise
