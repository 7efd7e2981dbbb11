"""ResNets for Keras, from a name in a notebook to a verified file on a phone.

Every public name is imported on first use: `import reszoo` loads no TensorFlow.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from reszoo.blocks import mlp as mlp
    from reszoo.blocks import residual as residual
    from reszoo.cards import Card as Card
    from reszoo.data.resize import ResizeResult as ResizeResult
    from reszoo.data.resize import resize_images as resize_images
    from reszoo.data.scan import ScanReport as ScanReport
    from reszoo.data.scan import scan as scan
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
    from reszoo.studies.study import study as study
    from reszoo.training.compile import compile as compile
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
    from reszoo_export.benchmark import Measurement as Measurement
    from reszoo_export.benchmark import benchmark as benchmark
    from reszoo_export.export import export as export
    from reszoo_export.inspection import FileDescription as FileDescription
    from reszoo_export.inspection import inspect as inspect
    from reszoo_export.manifest import Manifest as Manifest
    from reszoo_export.predictor import Predictor as Predictor
    from reszoo_export.verification.verify import verify as verify

__version__ = "0.1.0"

# Public name -> module and name in it. No module may have the name of a verb, for its
# import would put the module in the verb's place (hence cards.py, evaluation.py). The
# rows that point into `reszoo_export` are, with cli.py, the only places where the zoo
# knows of its exporter.
_LAZY = {
    "Card": "reszoo.cards:Card",
    "CheckpointError": "reszoo.errors:CheckpointError",
    "DataError": "reszoo.errors:DataError",
    "ExportError": "reszoo.errors:ExportError",
    "FileDescription": "reszoo_export.inspection:FileDescription",
    "LoadReport": "reszoo.weights.names:LoadReport",
    "Manifest": "reszoo_export.manifest:Manifest",
    "Measurement": "reszoo_export.benchmark:Measurement",
    "Metrics": "reszoo.metrics:Metrics",
    "Predictor": "reszoo_export.predictor:Predictor",
    "Preprocessing": "reszoo.preprocessing:Preprocessing",
    "Recipe": "reszoo.training.recipes:Recipe",
    "ResNetSpec": "reszoo.specs:ResNetSpec",
    "ResizeResult": "reszoo.data.resize:ResizeResult",
    "ReszooError": "reszoo.errors:ReszooError",
    "ScanReport": "reszoo.data.scan:ScanReport",
    "StudyResult": "reszoo.studies.results:StudyResult",
    "TrainResult": "reszoo.training.trainer:TrainResult",
    "UnknownNameError": "reszoo.errors:UnknownNameError",
    "UsageError": "reszoo.errors:UsageError",
    "VerificationError": "reszoo.errors:VerificationError",
    "benchmark": "reszoo_export.benchmark:benchmark",
    "build": "reszoo.zoo:build",
    "card": "reszoo.zoo:get_card",
    "compile": "reszoo.training.compile:compile",
    "evaluate": "reszoo_export.evaluation:evaluate",
    "export": "reszoo_export.export:export",
    "from_keras_applications": "reszoo.zoo:from_keras_applications",
    "inspect": "reszoo_export.inspection:inspect",
    "list_models": "reszoo.specs:list_models",
    "load": "reszoo.zoo:load",
    "load_report": "reszoo.zoo:load_report",
    "mlp": "reszoo.blocks:mlp",
    "residual": "reszoo.blocks:residual",
    "resize_images": "reszoo.data.resize:resize_images",
    "save": "reszoo.zoo:save",
    "scan": "reszoo.data.scan:scan",
    "study": "reszoo.studies.study:study",
    "train": "reszoo.training.trainer:train",
    "verify": "reszoo_export.verification.verify:verify",
}

__all__ = sorted([*_LAZY, "__version__"])


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'reszoo' has no attribute {name!r}")
    module, attribute = _LAZY[name].split(":")
    value = getattr(importlib.import_module(module), attribute)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
