"""The 1,000 classes of ImageNet-1k."""

from importlib.resources import files


def class_names() -> tuple[str, ...]:
    """Return the names of the 1,000 classes in the order of published weights.

    The order is that of the sorted WordNet numbers, which torchvision, timm and
    keras.applications share. Source: torchvision 0.28.0, `models/_meta.py`. Names
    that belong to two classes tell in parentheses which is meant, "crane (bird)".
    """
    text = files("reszoo.data").joinpath("imagenet_classes.txt").read_text("utf-8")
    return tuple(text.splitlines())
