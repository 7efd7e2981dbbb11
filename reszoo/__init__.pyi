"""The public names and their modules: read by type checkers, and by `__init__.py`.

A module must not be called like a function here, because importing it would replace
the function (hence cards.py). Only this file and the command line know of
`reszoo_export`.
"""

from reszoo.blocks import mlp as mlp
from reszoo.blocks import residual as residual
from reszoo.cards import Card as Card
from reszoo.cards import Confidence as Confidence
from reszoo.confidence import calibrate as calibrate
from reszoo.data.checks import ScanReport as ScanReport
from reszoo.data.checks import scan as scan
from reszoo.data.resize import ResizeResult as ResizeResult
from reszoo.data.resize import resize_images as resize_images
from reszoo.errors import CheckpointError as CheckpointError
from reszoo.errors import DataError as DataError
from reszoo.errors import ExportError as ExportError
from reszoo.errors import ReszooError as ReszooError
from reszoo.errors import UnknownNameError as UnknownNameError
from reszoo.errors import UsageError as UsageError
from reszoo.errors import VerificationError as VerificationError
from reszoo.metrics import Metrics as Metrics
from reszoo.preprocessing import Preprocessing as Preprocessing
from reszoo.specs import ResNetSpec as ResNetSpec
from reszoo.specs import list_models as list_models
from reszoo.studies.results import StudyResult as StudyResult
from reszoo.studies.study import gradient_norms as gradient_norms
from reszoo.studies.study import study as study
from reszoo.training.compile import compile as compile
from reszoo.training.previews import preview as preview
from reszoo.training.recipes import RECIPES as RECIPES
from reszoo.training.recipes import Recipe as Recipe
from reszoo.training.trainer import TrainResult as TrainResult
from reszoo.training.trainer import train as train
from reszoo.weights.names import LoadReport as LoadReport
from reszoo.zoo import build as build
from reszoo.zoo import from_keras_applications as from_keras_applications
from reszoo.zoo import get_card
from reszoo.zoo import load as load
from reszoo.zoo import load_report as load_report
from reszoo.zoo import save as save
from reszoo_export.batch import PredictResult as PredictResult
from reszoo_export.batch import predict_files as predict_files
from reszoo_export.benchmark import Measurement as Measurement
from reszoo_export.benchmark import benchmark as benchmark
from reszoo_export.evaluation import CheckedWeights as CheckedWeights
from reszoo_export.evaluation import Explanation as Explanation
from reszoo_export.evaluation import Features as Features
from reszoo_export.evaluation import check_weights as check_weights
from reszoo_export.evaluation import evaluate as evaluate
from reszoo_export.evaluation import explain as explain
from reszoo_export.evaluation import features as features
from reszoo_export.export import export as export
from reszoo_export.hub import PushResult as PushResult
from reszoo_export.hub import push as push
from reszoo_export.inspection import FileDescription as FileDescription
from reszoo_export.inspection import inspect as inspect
from reszoo_export.manifest import Manifest as Manifest
from reszoo_export.predictor import Predictor as Predictor
from reszoo_export.site import write_site as write_site
from reszoo_export.verification.verify import verify as verify

card = get_card
_LAZY: dict[str, str]
__all__: list[str]
__version__: str
