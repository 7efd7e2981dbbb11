"""ResNets for Keras, from a name in a notebook to a verified file on a phone.

Every public name is imported on first use: `import reszoo` loads no TensorFlow.
"""

import importlib
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
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
    from reszoo.training.recipe_table import RECIPES as RECIPES
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
    from reszoo_export.evaluation import evaluate as evaluate

    card = get_card
    from reszoo_export.batch import PredictResult as PredictResult
    from reszoo_export.batch import predict_files as predict_files
    from reszoo_export.benchmark import Measurement as Measurement
    from reszoo_export.benchmark import benchmark as benchmark
    from reszoo_export.explanations import Explanation as Explanation
    from reszoo_export.explanations import Features as Features
    from reszoo_export.explanations import explain as explain
    from reszoo_export.explanations import features as features
    from reszoo_export.export import export as export
    from reszoo_export.hub import PushResult as PushResult
    from reszoo_export.hub import push as push
    from reszoo_export.inspection import FileDescription as FileDescription
    from reszoo_export.inspection import inspect as inspect
    from reszoo_export.manifest import Manifest as Manifest
    from reszoo_export.predictor import Predictor as Predictor
    from reszoo_export.published_check import CheckedWeights as CheckedWeights
    from reszoo_export.published_check import check_weights as check_weights
    from reszoo_export.site import write_site as write_site
    from reszoo_export.verification.verify import verify as verify

__version__ = "0.2.0"

# Module -> the public names in it, imported on first use. A module must not be called
# like a function here, because importing it would replace the function (hence
# cards.py). Only this table and the command line know of `reszoo_export`.
_MODULES = {
    "reszoo.blocks": "mlp residual",
    "reszoo.cards": "Card Confidence",
    "reszoo.confidence": "calibrate",
    "reszoo.data.resize": "ResizeResult resize_images",
    "reszoo.data.checks": "ScanReport scan",
    "reszoo.errors": (
        "CheckpointError DataError ExportError ReszooError UnknownNameError "
        "UsageError VerificationError"
    ),
    "reszoo.metrics": "Metrics",
    "reszoo.preprocessing": "Preprocessing",
    "reszoo.specs": "ResNetSpec list_models",
    "reszoo.studies.results": "StudyResult",
    "reszoo.studies.study": "gradient_norms study",
    "reszoo.training.compile": "compile",
    "reszoo.training.previews": "preview",
    "reszoo.training.recipe_table": "RECIPES",
    "reszoo.training.recipes": "Recipe",
    "reszoo.training.trainer": "TrainResult train",
    "reszoo.weights.names": "LoadReport",
    "reszoo.zoo": "build from_keras_applications load load_report save",
    "reszoo_export.batch": "PredictResult predict_files",
    "reszoo_export.benchmark": "Measurement benchmark",
    "reszoo_export.evaluation": "evaluate",
    "reszoo_export.explanations": "Explanation Features explain features",
    "reszoo_export.export": "export",
    "reszoo_export.hub": "PushResult push",
    "reszoo_export.inspection": "FileDescription inspect",
    "reszoo_export.manifest": "Manifest",
    "reszoo_export.predictor": "Predictor",
    "reszoo_export.published_check": "CheckedWeights check_weights",
    "reszoo_export.site": "write_site",
    "reszoo_export.verification.verify": "verify",
}
# Public name -> "module:name".
_LAZY = {
    name: f"{module}:{name}"
    for module, names in _MODULES.items()
    for name in names.split()
} | {"card": "reszoo.zoo:get_card"}

__all__ = sorted([*_LAZY, "__version__"])


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'reszoo' has no attribute {name!r}")
    module, attribute = _LAZY[name].split(":")
    value = getattr(importlib.import_module(module), attribute)
    globals()[name] = value
    # Keras then knows the classes in its files of reszoo's models.
    if "keras" in sys.modules:
        importlib.import_module("reszoo.layers")
    if "tensorflow" in sys.modules:
        importlib.import_module("reszoo.training.compile")
    return value


def __dir__() -> list[str]:
    return __all__
