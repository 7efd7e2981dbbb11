"""How each library runs a model; also writes torchvision's models as files.

Run: python benchmarks/inference_peers.py VARIANT FOLDER (in the peers' environment)
"""

import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import harness
import numpy as np

SIDE, CLASSES = 224, 1000
CHECKPOINT, KERAS_EXPORT = "model.safetensors", "keras_export"
TORCH_ONNX, NCNN = "torch.onnx", "torch.ncnn"
# The files of `quantize_static`, by the call in int8_peers.py that wrote each.
STATIC = {"defaults": "static.onnx", "minmax": "static-minmax.onnx"}
OURS = {
    "saved_model": "saved_model",
    "tflite": "model.tflite",
    "tflite-fp16": "model-fp16.tflite",
    "tflite-dynamic": "model-dynamic.tflite",
    "tflite-int8": "model-int8.tflite",
    "onnx": "model.onnx",
    "onnx-int8": "model-int8.onnx",
}
Call = Callable[[], Any]


@dataclass(frozen=True)
class Peer:
    """How another library runs a model.

    Attributes:
        opened: Takes a folder, the variant and its images; returns the call.
        packages: Packages whose versions are reported.
        file: The file in the folder that it opens, if any.
        elsewhere: Whether it runs in the peers' environment.
    """

    opened: Callable[[Path, str, Any], Call]
    packages: tuple[str, ...]
    file: str = ""
    elsewhere: bool = True


def pixels(batch: int) -> Any:
    """Return images of noise, uint8 `(batch, 224, 224, 3)`."""
    shape = (batch, SIDE, SIDE, 3)
    return np.random.default_rng(0).integers(0, 256, shape, np.uint8)


def normalised(images: Any) -> Any:
    """Return images in about the range that models see, float32."""
    return (images / np.float32(128) - 1).astype(np.float32)


def planes(images: Any) -> Any:
    """Return normalised images `(batch, 3, height, width)`."""
    return np.ascontiguousarray(normalised(images).transpose(0, 3, 1, 2))


def of_file(path: Path, images: Any) -> Call:
    """Run one of reszoo's files."""
    from reszoo_export.runtimes import open_runtime

    runtime = open_runtime(path, harness.THREADS)
    return lambda: runtime.run(images)


def of_keras(folder: Path, _: str, images: Any) -> Call:
    """Run `keras.Model.predict`."""
    import reszoo

    model, seen = reszoo.load(folder / CHECKPOINT), normalised(images)
    return lambda: model.predict(seen, verbose=0)


def keras_hub_model(variant: str, shape: tuple[int, int, int]) -> Any:
    """Return KerasHub's classifier of that name, which takes pixels."""
    import keras_hub

    depths, kind = {
        "resnet18": ([2, 2, 2, 2], "basic_block"),
        "resnet50": ([3, 4, 6, 3], "bottleneck_block"),
    }[variant]
    widths, strides = [64, 128, 256, 512], [1, 2, 2, 2]
    backbone = keras_hub.models.ResNetBackbone(
        [64], [7], widths, depths, strides, kind, image_shape=shape
    )
    return keras_hub.models.ResNetImageClassifier(
        backbone=backbone, num_classes=CLASSES, preprocessor=None
    )


def of_keras_hub(_: Path, variant: str, images: Any) -> Call:
    """Run the `predict` of KerasHub's model."""
    model, seen = keras_hub_model(variant, images.shape[1:]), normalised(images)
    return lambda: model.predict(seen, verbose=0)


def of_keras_export(folder: Path, _: str, images: Any) -> Call:
    """Run the SavedModel that Keras wrote."""
    import tensorflow as tf

    loaded = tf.saved_model.load(str(folder / KERAS_EXPORT))
    serve, seen = loaded.signatures["serving_default"], normalised(images)
    name = next(iter(serve.structured_input_signature[1]))
    return lambda: next(iter(serve(**{name: tf.constant(seen)}).values())).numpy()


def torch_model(variant: str) -> Any:
    """Return torchvision's model in evaluation mode."""
    sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
    from torch_peers import import_torchvision

    torchvision = import_torchvision()
    import torch

    torch.set_num_threads(harness.THREADS)
    torch.manual_seed(0)
    return getattr(torchvision.models, variant)(weights=None).eval()


def of_torch(how: str) -> Callable[[Path, str, Any], Call]:
    """Run torch, without gradients: "eager", "channels_last" or "compile"."""

    def opened(_: Path, name: str, images: Any) -> Call:
        model = torch_model(name)
        import torch

        seen = torch.from_numpy(planes(images))
        if how != "eager":
            model = model.to(memory_format=torch.channels_last)
            seen = seen.contiguous(memory_format=torch.channels_last)
        if how == "compile":
            model = torch.compile(model)

        def call() -> Any:
            with torch.inference_mode():
                return model(seen).numpy()

        return call

    return opened


def of_onnxruntime(file: str) -> Callable[[Path, str, Any], Call]:
    """Run torch's ONNX file, or one of `quantize_static`, in ONNX Runtime."""

    def opened(folder: Path, _: str, images: Any) -> Call:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = harness.THREADS
        session = onnxruntime.InferenceSession(
            folder / file, options, providers=["CPUExecutionProvider"]
        )
        shown = planes(images) if file == TORCH_ONNX else images
        seen = {session.get_inputs()[0].name: shown}
        return lambda: session.run(None, seen)[0]

    return opened


def of_openvino(file: str, precision: str) -> Callable[[Path, str, Any], Call]:
    """Run an ONNX file of reszoo or of torch in OpenVINO."""

    def opened(folder: Path, _: str, images: Any) -> Call:
        import openvino

        how = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": harness.THREADS,
            "INFERENCE_PRECISION_HINT": precision,
        }
        core = openvino.Core()
        model = core.read_model(folder / file)
        seen = images if file == OURS["onnx"] else planes(images)
        model.reshape(list(seen.shape))
        request = core.compile_model(model, "CPU", how).create_infer_request()
        return lambda: request.infer([seen])[model.outputs[-1].any_name]

    return opened


def of_ncnn(folder: Path, _: str, images: Any) -> Call:
    """Run ncnn, which takes one image at a time."""
    import ncnn

    net = ncnn.Net()
    net.opt.num_threads = harness.THREADS
    net.load_param(str(folder / f"{NCNN}.param"))
    net.load_model(str(folder / f"{NCNN}.bin"))
    seen = [ncnn.Mat(image).clone() for image in planes(images)]

    def answer(image: Any) -> Any:
        with net.create_extractor() as extractor:
            extractor.input("in0", image)
            return np.array(extractor.extract("out0")[1])

    return lambda: np.stack([answer(image) for image in seen])


PEERS: dict[str, Peer] = {
    "keras predict": Peer(of_keras, ("keras", "tensorflow"), CHECKPOINT, False),
    "KerasHub predict": Peer(of_keras_hub, ("keras-hub", "keras", "tensorflow")),
    "Model.export": Peer(of_keras_export, ("keras", "tensorflow"), KERAS_EXPORT, False),
    **{
        name: Peer(of_onnxruntime(STATIC[call]), ("onnxruntime",), STATIC[call], False)
        for name, call in (
            ("quantize_static, defaults", "defaults"),
            ("quantize_static, minmax", "minmax"),
        )
    },
    "torch eager": Peer(of_torch("eager"), ("torch", "torchvision")),
    "torch channels_last": Peer(of_torch("channels_last"), ("torch", "torchvision")),
    "torch.compile": Peer(of_torch("compile"), ("torch", "torchvision")),
    "torch's onnx": Peer(
        of_onnxruntime(TORCH_ONNX), ("onnxruntime", "torch"), TORCH_ONNX
    ),
    "openvino": Peer(of_openvino(OURS["onnx"], "f32"), ("openvino",), OURS["onnx"]),
    "openvino, torch's onnx": Peer(
        of_openvino(TORCH_ONNX, "f32"), ("openvino", "torch"), TORCH_ONNX
    ),
    "openvino bf16": Peer(
        of_openvino(OURS["onnx"], "bf16"), ("openvino",), OURS["onnx"]
    ),
    "ncnn": Peer(of_ncnn, ("ncnn",), f"{NCNN}.bin"),
}


def make_torch_files(python: str, variant: str, folder: Path) -> None:
    """Have torch write its ONNX file and pnnx ncnn's; existing files stay."""
    if not (folder / f"{NCNN}.bin").exists():
        words = [python, __file__, variant, str(folder.resolve())]
        subprocess.run(words, check=True, capture_output=True)


def _write_torch_files(name: str, folder: Path) -> None:
    model = torch_model(name)
    import torch

    seen = torch.zeros((1, 3, SIDE, SIDE))
    torch.onnx.export(
        model,
        (seen,),
        folder / TORCH_ONNX,
        input_names=["input"],
        dynamic_axes={"input": {0: "batch"}},
        dynamo=False,
    )
    traced = folder / "torch.pt"
    torch.jit.trace(model, seen).save(traced)
    pnnx = Path(sys.executable).parent / "pnnx"
    subprocess.run(
        [
            pnnx,
            traced,
            f"inputshape=[1,3,{SIDE},{SIDE}]",
            "fp16=0",
            f"ncnnparam={folder / NCNN}.param",
            f"ncnnbin={folder / NCNN}.bin",
        ],
        check=True,
        cwd=folder,
    )


if __name__ == "__main__":
    _write_torch_files(sys.argv[1], Path(sys.argv[2]))
